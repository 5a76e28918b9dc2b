#!/usr/bin/env bash
# Trains on GKE with a manifest of launch/gke/jobset.py, on the cluster that kubectl points to.
#
# Usage: launch/gke.sh COMMAND MANIFEST [--poll SECONDS] [--keep] [--dry-run]
#
# Commands
#   train    create the JobSet, show the log of its first pod through every restart, delete it at the end:
#            0 when it completed, 1 when it failed
#   logs     show the log of the first pod
#   status   print Completed or Failed, or nothing while it runs
#   delete   delete the JobSet and its pods; node pools without autoscaling stay, and cost
#
# Options
#   --poll SECONDS   pause between looks at the state (default: 15)
#   --keep           do not delete at the end of `train`
#   --dry-run        print the commands of an undisturbed run, one a line, and run nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/command_line.sh
source "$here/command_line.sh"

manifest="" name="" poll=15 keep=""

apply() { execute kubectl apply --filename="$manifest"; }

state() { execute kubectl get --filename="$manifest" --output='jsonpath={.status.terminalState}'; }

logs() { # logs [OPTION OF KUBECTL]: of the first host of the first slice, which is JAX's process 0
    local first="jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    execute kubectl logs --follow --tail=-1 --container=jvlmm \
        --selector="jobset.sigs.k8s.io/jobset-name=$name,$first" "$@"
}

delete() { execute kubectl delete --filename="$manifest" --ignore-not-found; }

finish() { # at the end of `train`, however it ends
    local status=$?
    trap - EXIT INT TERM HUP
    if [[ $keep ]]; then
        say "$name is left as it is; delete it with: $(quoted launch/gke.sh delete "$manifest")"
    else
        delete || say "error: $name is still there; delete it with: $(quoted launch/gke.sh delete "$manifest")"
    fi
    exit "$status"
}

train() {
    apply
    if [[ $dry_run ]]; then
        logs
        state
        return
    fi
    local now since="" silent=0
    while :; do
        # Between two restarts there is no pod, and a pod that waits for its node has no log yet.
        logs ${since:+--since-time="$since"} 2>/dev/null || :
        since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
        if now=$(state); then
            silent=0
        elif ((++silent == 5)); then
            keep=1
            die "cannot read the state of $name any more; it goes on without this command"
        fi
        case $now in
            Completed) return 0 ;;
            Failed)
                say "$name failed; why: kubectl describe --filename=$(quoted "$manifest")"
                return 1
                ;;
        esac
        sleep "$poll"
    done
}

parse() {
    while (($#)); do
        case $1 in
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
            --keep) keep=1 ;;
            --dry-run) dry_run=1 ;;
            --poll)
                number --poll "${2:-}" 0
                poll=$2
                shift
                ;;
            -*) die "unknown option $1; see launch/gke.sh --help" 2 ;;
            *)
                [[ -z $manifest ]] || die "one MANIFEST only, '$1' is a second" 2
                manifest=$1
                ;;
        esac
        shift
    done
}

main() {
    local command=${1:-}
    case $command in
        -h | --help) print_help && return ;;
        train | logs | status | delete) ;;
        *) die "unknown command '$command'; one of train, logs, status, delete" 2 ;;
    esac
    parse "${@:2}"
    [[ -n $manifest ]] || die "missing MANIFEST; write one with launch/gke/jobset.py" 2
    [[ -f $manifest ]] || die "MANIFEST '$manifest' is no file; write one with launch/gke/jobset.py" 2
    name=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["metadata"]["name"])' "$manifest" 2>/dev/null) ||
        die "MANIFEST '$manifest' is no output of launch/gke/jobset.py" 2
    [[ $dry_run ]] || command -v kubectl >/dev/null || die "kubectl is not installed: https://kubernetes.io/docs/tasks/tools"
    case $command in
        train)
            trap finish EXIT
            trap 'exit 130' INT
            trap 'exit 143' TERM
            trap 'keep=1; exit 129' HUP # the terminal went away; the cluster goes on by itself
            train
            ;;
        status) state ;;
        *) "$command" ;;
    esac
}

main "$@"
