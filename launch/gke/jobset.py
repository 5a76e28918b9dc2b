#!/usr/bin/env python3
"""Writes the JobSet manifest of one training on TPU slices of GKE, as JSON, which kubectl reads like YAML.

    launch/gke/jobset.py --name first --accelerator v5litepod-16 --image IMAGE --workdir gs://BUCKET/runs/first \\
        configs/sft_qwen2_5_vl_7b.py sft.model=/mnt/BUCKET/Qwen2.5-VL-7B-Instruct >first.json

CONFIG is a path in the image (launch/Dockerfile puts configs/ there). The bucket is mounted in every pod as
/mnt/BUCKET. Only the standard library is needed, so that it runs where kubectl does.
"""

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

CHIPS_PER_HOST = 4
CORES_PER_CHIP = {"v4": 2, "v5litepod": 1, "v5p": 2, "v6e": 1}  # the number in a type's name counts TensorCores
NODE_LABEL = {
    "v4": "tpu-v4-podslice",
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
TOPOLOGIES = {"v4": CUBES, "v5litepod": PLANES, "v5p": CUBES, "v6e": PLANES}

WRONG_USAGE = 2  # the exit status of jvlmm that no restart can change


@dataclass(frozen=True)
class Slice:
    """One TPU slice as GKE's node labels describe it."""

    node_label: str
    topology: str

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.topology.split("x"))

    @property
    def chips_per_host(self) -> int:
        return min(self.chips, CHIPS_PER_HOST)

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host


def slice_types() -> dict[str, Slice]:
    """Every accelerator type by the name Cloud TPU gives it, such as v5litepod-16."""
    types = {}
    for generation, topologies in TOPOLOGIES.items():
        for topology in topologies:
            tpu = Slice(NODE_LABEL[generation], topology)
            types[f"{generation}-{tpu.chips * CORES_PER_CHIP[generation]}"] = tpu
    return types


def manifest(options: argparse.Namespace) -> dict[str, Any]:
    """The JobSet: one Job per slice, one pod per host, all restarted together until they succeed."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            # One Job per node pool: the pods of a Job are then the hosts of one slice.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                # Pods that still save a checkpoint and pods that resume from it must not overlap.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {"name": "wrongUsage", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": options.slices, "template": {"spec": job(options)}}],
        },
    }


def job(options: argparse.Namespace) -> dict[str, Any]:
    hosts = slice_types()[options.accelerator].hosts
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one host alone cannot resume: its failure is that of the Job, and of the JobSet
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "jvlmm", "operator": "In", "values": [WRONG_USAGE]},
                    "onPodConditions": [],  # older releases of JobSet require the field
                },
            ]
        },
        "template": {
            "metadata": {
                # The sidecar that mounts the bucket, without limits on what it may use.
                "annotations": {
                    "gke-gcsfuse/volumes": "true",
                    "gke-gcsfuse/cpu-limit": "0",
                    "gke-gcsfuse/memory-limit": "0",
                    "gke-gcsfuse/ephemeral-storage-limit": "0",
                },
            },
            "spec": pod(options),
        },
    }


def pod(options: argparse.Namespace) -> dict[str, Any]:
    tpu = slice_types()[options.accelerator]
    bucket, folder = bucket_and_folder(options.workdir)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu.node_label,
        "cloud.google.com/gke-tpu-topology": tpu.topology,
    }
    tolerations = []
    if options.reservation:
        selector["cloud.google.com/reservation-name"] = options.reservation
    elif not options.on_demand:
        spot = "cloud.google.com/gke-spot"
        selector[spot] = "true"
        tolerations = [{"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    return {
        "restartPolicy": "Never",
        "serviceAccountName": options.service_account,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "terminationGracePeriodSeconds": options.grace_period,
        "containers": [container(options, tpu, bucket, folder)],
        "volumes": [
            {
                "name": "bucket",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {
                        "bucketName": bucket,
                        # A checkpoint is complete once its directory is renamed; and what one host writes, the
                        # others must see at once, although they looked for it before it was there.
                        "mountOptions": "implicit-dirs,rename-dir-limit=200000,metadata-cache:negative-ttl-secs:0",
                    },
                },
            }
        ],
    }


def container(options: argparse.Namespace, tpu: Slice, bucket: str, folder: str) -> dict[str, Any]:
    return {
        "name": "jvlmm",
        "image": options.image,
        # No shell in between: the signal that announces the end has to reach jvlmm.
        "command": ["jvlmm", "run", options.config, "--workdir", folder, *options.overrides],
        "env": [dict(zip(("name", "value"), text.split("=", 1), strict=True)) for text in options.env],
        "securityContext": {"privileged": True},  # for the TPU devices
        "resources": {"limits": {"google.com/tpu": tpu.chips_per_host}},
        "volumeMounts": [{"name": "bucket", "mountPath": f"/mnt/{bucket}"}],
    }


def bucket_and_folder(workdir: str) -> tuple[str, str]:
    """gs://BUCKET/PATH → BUCKET and the path inside the pods."""
    bucket = workdir.removeprefix("gs://").partition("/")[0]
    return bucket, f"/mnt/{workdir.removeprefix('gs://')}"


class Parser(argparse.ArgumentParser):
    """Errors in one line, like those of the other launchers."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def pattern(expression: str, what: str):
    """An argparse type that takes what matches `expression`."""

    def read(text: str) -> str:
        if not re.fullmatch(expression, text):
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
        return text

    return read


def at_least(minimum: int):
    """An argparse type that takes whole numbers from `minimum` on."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {minimum}")
        return int(text)

    return read


def build_parser() -> Parser:
    """The options; those that cost money have no default but the cheapest."""
    parser = Parser(
        prog="jobset.py",
        description="Print the JobSet manifest of one training on TPU slices.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    name = pattern(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "at most 40 lower-case letters, digits and hyphens")
    add("--name", required=True, type=name, help="of the JobSet")
    add("--accelerator", required=True, choices=slice_types(), metavar="TYPE", help="such as v5litepod-16 or v6e-16")
    add("--slices", type=at_least(1), default=1, metavar="N", help="slices that train together (default: 1)")
    capacity = parser.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="capacity that can be taken away (the default)")
    capacity.add_argument("--on-demand", action="store_true", help="capacity that stays")
    capacity.add_argument("--reservation", metavar="NAME", help="your reserved capacity")
    add("--image", required=True, help="an image with jvlmm, built from launch/Dockerfile")
    add(
        "--workdir",
        required=True,
        type=pattern(r"gs://[a-z0-9][-_.a-z0-9]+/.+", "gs://BUCKET/PATH (pods lose their own disk)"),
        metavar="gs://BUCKET/PATH",
        help="the run directory",
    )
    account = "Kubernetes service account that may write to the bucket (default: default)"
    add("--service-account", default="default", metavar="NAME", help=account)
    variable = pattern(r"[A-Za-z_][A-Za-z0-9_]*=.*", "NAME=VALUE")
    add("--env", action="append", default=[], type=variable, metavar="NAME=VALUE", help="can be repeated")
    add("--max-restarts", type=at_least(0), default=20, metavar="N", help="then the JobSet fails (default: 20)")
    grace = "between SIGTERM and the end of a pod, for a checkpoint (default: 300)"
    add("--grace-period", type=at_least(1), default=300, metavar="SECONDS", help=grace)
    add("config", metavar="CONFIG", help="a recipe, as a path in the image")
    override = pattern(r"[A-Za-z_][\w.]*=.*", "an override a.b=c")
    add("overrides", nargs="*", type=override, metavar="a.b=c", help="as after `jvlmm run`")
    return parser


def main() -> int:
    parser = build_parser()
    options = parser.parse_args()
    if options.slices > 1 and slice_types()[options.accelerator].hosts == 1:
        parser.error(f"GKE joins slices of several hosts only and {options.accelerator} has one; take one larger slice")
    print(json.dumps(manifest(options), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
