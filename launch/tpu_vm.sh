#!/usr/bin/env bash
# Trains on Cloud TPU VMs through queued resources: `jvlmm run` on every host, resumed after preemptions.
#
# Usage: launch/tpu_vm.sh COMMAND --name NAME --project PROJECT --zone ZONE [OPTION…] [CONFIG [a.b=c…]]
#
# Commands
#   train    request the slices, install, run and show the log; after a preemption request them anew and run the same
#            command, which resumes from its checkpoint; delete the slices at the end, however it ends
#   create   request the slices and wait until they are ACTIVE
#   run      install and run once on slices that are ACTIVE; the exit status is that of jvlmm
#   logs     show the log of the first host from its start, until the run ends
#   status   print the state of the queued resource
#   delete   delete the slices and their queued resource
#
# Which slices
#   --accelerator TYPE       v4-N, v5litepod-N, v5p-N or v6e-N, as Cloud TPU names them
#   --runtime-version V      image of the TPU VMs (default: the one for JAX on that accelerator)
#   --slices N               slices that train together over the data-centre network (default: 1)
#   --spot                   capacity that can be taken away, the cheapest (default)
#   --on-demand, --reserved  capacity that stays; your reservation
#   --create-flag FLAG       one more flag of `gcloud compute tpus queued-resources create`; can be repeated
#
# What runs there
#   --install REQUIREMENT    a wheel on this computer, or what `uv pip install` understands, for example
#                            "jvlmm[tpu] @ git+https://github.com/OWNER/REPOSITORY@TAG"
#   --workdir DIR            gs://BUCKET/PATH, mounted on every host as /mnt/BUCKET; or an absolute path that all hosts share
#   --env NAME=VALUE         a variable for jvlmm; can be repeated
#   CONFIG                   the recipe on this computer; it is copied to every host
#
# How
#   --max-restarts N         give up with status 143 after so many preemptions (default: 20)
#   --poll SECONDS           pause between looks at the state (default: 30)
#   --keep                   do not delete at the end of `train`
#   --dry-run                print the commands of an undisturbed run, one a line, and run nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/command_line.sh
source "$here/command_line.sh"

name="" project="" zone="" accelerator="" runtime="" slices=1 capacity=(--spot) create_flags=()
install="" workdir="" bucket="" environment=() config="" overrides=()
max_restarts=20 poll=30 keep="" interrupted=""

queued() { # queued VERB ARGUMENT…: one command of gcloud on this queued resource
    execute gcloud compute tpus queued-resources "$@" --project="$project" --zone="$zone" --quiet
}

# Machines that were created anew have new host keys under old names.
on_every_host() { queued ssh "$name" --node=all --worker=all --strict-host-key-checking=no --command="$1"; }
on_first_host() { queued ssh "$name" --node=0 --worker=0 --strict-host-key-checking=no --command="$1"; }

describe() { queued describe "$name" --format='value(state.state)'; }

state() { # print ACTIVE, SUSPENDED, WAITING_FOR_RESOURCES, …, or MISSING
    local answer errors tries
    errors=$(mktemp)
    for ((tries = 1; ; tries++)); do
        if answer=$(describe 2>"$errors"); then
            rm -f "$errors"
            printf '%s\n' "${answer##*$'\n'}"
            return
        fi
        if grep -q NOT_FOUND "$errors"; then
            rm -f "$errors"
            echo MISSING
            return
        fi
        ((tries < 5)) || die "cannot read the state of $name: $(tail -n 1 "$errors")"
        sleep "$poll"
    done
}

create() {
    local nodes=(--node-id="$name")
    ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
    queued create "$name" "${nodes[@]}" --accelerator-type="$accelerator" --runtime-version="$runtime" \
        "${capacity[@]}" "${create_flags[@]}"
}

delete() { queued delete "$name" --force; } # --force: with its nodes

acquire() { # until the slices are ACTIVE
    if [[ $dry_run ]]; then
        create
        describe
        return
    fi
    local now last=""
    while :; do
        now=$(state)
        [[ $now == "$last" ]] || say "$name is $now"
        last=$now
        case $now in
            ACTIVE) return ;;
            MISSING) create ;;
            SUSPENDED) delete ;; # preempted; such a request never becomes active again
            FAILED) die "the request $name failed, often for lack of quota; see why: $(dry_run=1 queued describe "$name")" ;;
            *) sleep "$poll" ;;
        esac
    done
}

attempt() { # one run on ACTIVE slices; its status is that of jvlmm
    local copied=("$here/tpu_vm_worker.sh" "$config") worker="bash tpu_vm_worker.sh"
    [[ $install != *.whl ]] || copied+=("$install")
    queued scp "${copied[@]}" "$name:" --node=all --worker=all --strict-host-key-checking=no || return
    on_every_host "$worker $(quoted install "$install" ${bucket:+"$bucket"})" || return
    local start=(start run "${config##*/}" --workdir "$workdir" "${overrides[@]}")
    on_every_host "$(quoted env "${environment[@]}" bash tpu_vm_worker.sh "${start[@]}")" || return
    # Only the first host's log is shown; then every host has to have ended well.
    on_first_host "$worker follow" || return
    on_every_host "$worker wait"
}

preempted() { # preempted STATUS: whether an attempt that ended with STATUS should be repeated
    [[ $1 != 2 ]] || return 1 # wrong usage stays wrong
    # Hosts that lost a peer fail in many ways, and earlier than the state of the request says why.
    local look now
    for look in 1 2 3; do
        now=$(state)
        [[ $now == ACTIVE ]] || return 0
        ((look == 3)) || sleep "$poll"
    done
    [[ $1 == 143 || $1 == 255 ]] # jvlmm answered SIGTERM, as before maintenance; ssh lost the host
}

train() {
    local restarts=0 status
    while :; do
        acquire
        status=0
        attempt || status=$?
        if ((status == 0)); then return; fi
        preempted "$status" || return "$status"
        ((restarts < max_restarts)) || die "gave up after $max_restarts restarts; the same command resumes" 143
        restarts=$((restarts + 1))
        say "interrupted with status $status; restart $restarts of $max_restarts"
    done
}

finish() { # at the end of `train`, however it ends: slices that nobody uses still cost
    local status=$?
    trap - EXIT INT TERM HUP
    set +e
    if [[ $keep ]]; then
        say "$name is left as it is; delete it with: $(dry_run=1 delete)"
        exit "$status"
    fi
    if [[ $interrupted ]]; then
        say "saving a checkpoint"
        on_every_host "bash tpu_vm_worker.sh stop"
    fi
    if [[ $dry_run || $(state) != MISSING ]]; then
        delete || say "error: $name is still there and costs; delete it with: $(dry_run=1 delete)"
    fi
    exit "$status"
}

flag() { # flag NAME: whether there is such an option without a value
    case $1 in
        --spot) capacity=(--spot) ;;
        --on-demand) capacity=() ;;
        --reserved) capacity=(--reserved) ;;
        --keep) keep=1 ;;
        *) return 1 ;;
    esac
}

option() { # option NAME VALUE
    case $1 in
        --name) name=$2 ;;
        --project) project=$2 ;;
        --zone) zone=$2 ;;
        --accelerator) accelerator=$2 ;;
        --runtime-version) runtime=$2 ;;
        --slices) slices=$2 ;;
        --create-flag) create_flags+=("$2") ;;
        --install) install=$2 ;;
        --workdir) workdir=$2 ;;
        --env) environment+=("$2") ;;
        --max-restarts) max_restarts=$2 ;;
        --poll) poll=$2 ;;
        *) die "unknown option $1; see launch/tpu_vm.sh --help" 2 ;;
    esac
}

check_slices() {
    required --accelerator "$accelerator" v5litepod-16
    matching --accelerator "$accelerator" '(v4|v5litepod|v5p|v6e)-[1-9][0-9]*' \
        "v4-N, v5litepod-N, v5p-N or v6e-N (TPU7x is offered on GKE alone: launch/xpk.sh)"
    number --slices "$slices" 1
    [[ -z $runtime ]] || return 0
    case $accelerator in
        v4-*) runtime=tpu-ubuntu2204-base ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
    esac
}

check_run() {
    local variable
    [[ -n $config ]] || die "missing CONFIG; name a recipe last, for example configs/sft_qwen2_5_vl_7b.py" 2
    [[ -f $config ]] || die "CONFIG '$config' is no file here" 2
    required --install "$install" "'jvlmm[tpu] @ git+https://github.com/OWNER/REPOSITORY@TAG'"
    [[ $install != *.whl || -f $install ]] || die "--install '$install' is no file here; build it: pip wheel --no-deps ." 2
    required --workdir "$workdir" gs://BUCKET/runs/first
    case $workdir in
        gs://?*/?*)
            bucket=${workdir#gs://} bucket=${bucket%%/*}
            workdir=/mnt/${workdir#gs://}
            ;;
        /?*) ;;
        *) die "--workdir '$workdir' is neither gs://BUCKET/PATH nor an absolute path; a preempted host takes its disk along" 2 ;;
    esac
    for variable in "${environment[@]}"; do
        matching --env "$variable" '[A-Za-z_][A-Za-z0-9_]*=.*' NAME=VALUE
    done
    number --max-restarts "$max_restarts" 0
}

main() {
    local command=${1:-}
    case $command in
        -h | --help) print_help && return ;;
        train | create | run | logs | status | delete) ;;
        *) die "unknown command '$command'; one of train, create, run, logs, status, delete" 2 ;;
    esac
    parse "${@:2}"
    required --name "$name" my-run
    matching --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "a name of at most 40 lower-case letters, digits and hyphens"
    required --project "$project" my-project
    required --zone "$zone" us-west4-a
    number --poll "$poll" 0
    case $command in train | create) check_slices ;; esac
    case $command in train | run) check_run ;; *) [[ -z $config ]] || die "$command takes no CONFIG" 2 ;; esac
    [[ $dry_run ]] || command -v gcloud >/dev/null || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
    case $command in
        create) acquire ;;
        run) attempt ;;
        logs) on_first_host "bash tpu_vm_worker.sh follow" ;;
        status) if [[ $dry_run ]]; then describe; else state; fi ;;
        delete) delete ;;
        train)
            trap finish EXIT
            trap 'interrupted=1; exit 130' INT
            trap 'interrupted=1; exit 143' TERM
            trap 'keep=1; exit 129' HUP # the terminal went away, the run goes on; the same command takes it up again
            train
            ;;
    esac
}

main "$@"
