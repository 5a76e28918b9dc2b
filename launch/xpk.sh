#!/usr/bin/env bash
# Trains on a GKE cluster through xpk (https://github.com/AI-Hypercomputer/xpk): one workload of TPU slices.
#
# Usage: launch/xpk.sh COMMAND --name NAME --cluster CLUSTER --project PROJECT --zone ZONE [OPTION…] [CONFIG [a.b=c…]]
#
# Commands
#   train    create the workload, wait for its end, delete it; preempted slices restart inside the cluster and resume
#   create   create the workload and return
#   wait     wait for its end: 0 succeeded, 125 failed, 124 out of time
#   delete   delete the workload; the cluster and what it costs stay
#
# Options of train and create
#   --accelerator TYPE    the cluster's TPU type as xpk names it, for example v5litepod-16, v6e-16 or tpu7x-16
#   --slices N            slices that train together (default: 1)
#   --image IMAGE         an image with jvlmm, built from launch/Dockerfile
#   --storage NAME        a storage of the cluster (`xpk storage attach`), mounted in every pod
#   --workdir DIR         a directory below that storage's mount point
#   --env NAME=VALUE      a variable for jvlmm; can be repeated
#   --max-restarts N      restarts after preemptions before the workload fails (default: 20)
#   --grace-period S      seconds between SIGTERM and the end of a pod, for a checkpoint (default: 300)
#   CONFIG                the recipe, as a path in the image
#
# Any command
#   --dry-run             print the commands, one a line, and run nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/command_line.sh
source "$here/command_line.sh"

name="" cluster="" project="" zone="" accelerator="" slices=1 image="" storage="" workdir="" environment=()
max_restarts=20 grace_period=300 config="" overrides=()

workload() { # workload VERB ARGUMENT…
    execute xpk workload "$@" --cluster="$cluster" --project="$project" --zone="$zone"
}

create() {
    local variable variables=()
    for variable in "${environment[@]}"; do variables+=(--env="$variable"); done
    # xpk runs the command in a subshell to which it hands SIGTERM: without exec it would end there. Its pods restart
    # on what signals leave; the peers of a host that vanished fail with 1.
    workload create --workload="$name" --tpu-type="$accelerator" --num-slices="$slices" --docker-image="$image" \
        --storage="$storage" --max-restarts="$max_restarts" --restart-on-exit-codes=1 \
        --termination-grace-period-seconds="$grace_period" "${variables[@]}" \
        --command="$(quoted exec jvlmm run "$config" --workdir "$workdir" "${overrides[@]}")"
}

wait_for_end() { workload list --wait-for-job-completion="$name"; }

delete() { workload delete --workload="$name" --force; }

train() {
    local status=0
    create
    wait_for_end || status=$?
    delete
    return "$status"
}

flag() { return 1; } # it has none of its own

option() { # option NAME VALUE
    case $1 in
        --name) name=$2 ;;
        --cluster) cluster=$2 ;;
        --project) project=$2 ;;
        --zone) zone=$2 ;;
        --accelerator) accelerator=$2 ;;
        --slices) slices=$2 ;;
        --image) image=$2 ;;
        --storage) storage=$2 ;;
        --workdir) workdir=$2 ;;
        --env) environment+=("$2") ;;
        --max-restarts) max_restarts=$2 ;;
        --grace-period) grace_period=$2 ;;
        *) die "unknown option $1; see launch/xpk.sh --help" 2 ;;
    esac
}

check_workload() {
    local variable
    required --accelerator "$accelerator" v5litepod-16
    matching --accelerator "$accelerator" '(v4|v5litepod|v5p|v6e|tpu7x?)-[1-9][0-9x]*' \
        "a TPU type of xpk: v4-N, v5litepod-N, v5p-N, v6e-N, tpu7-N or tpu7x-N, or a topology in place of N"
    number --slices "$slices" 1
    required --image "$image" us-docker.pkg.dev/PROJECT/REPOSITORY/jvlmm:TAG
    required --storage "$storage" my-bucket
    required --workdir "$workdir" /mnt/my-bucket/runs/first
    matching --workdir "$workdir" '/.+' "an absolute path below the mount point of --storage"
    number --max-restarts "$max_restarts" 0
    number --grace-period "$grace_period" 1
    for variable in "${environment[@]}"; do
        matching --env "$variable" '[A-Za-z_][A-Za-z0-9_]*=.*' NAME=VALUE
    done
    [[ -n $config ]] || die "missing CONFIG; name a recipe of the image last, for example configs/sft_qwen2_5_vl_7b.py" 2
}

main() {
    local command=${1:-}
    case $command in
        -h | --help) print_help && return ;;
        train | create | wait | delete) ;;
        *) die "unknown command '$command'; one of train, create, wait, delete" 2 ;;
    esac
    parse "${@:2}"
    required --name "$name" my-run
    matching --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "a name of at most 40 lower-case letters, digits and hyphens"
    required --cluster "$cluster" my-cluster
    required --project "$project" my-project
    required --zone "$zone" us-west4-a
    case $command in train | create) check_workload ;; *) [[ -z $config ]] || die "$command takes no CONFIG" 2 ;; esac
    [[ $dry_run ]] || command -v xpk >/dev/null || die "xpk is not installed: pip install xpk"
    case $command in
        wait) wait_for_end ;;
        *) "$command" ;;
    esac
}

main "$@"
