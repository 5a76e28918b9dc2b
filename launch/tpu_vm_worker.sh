#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each host of a TPU slice, where it is copied to the home directory.
# Usage: tpu_vm_worker.sh install REQUIREMENT [BUCKET] | start ARGUMENT… | follow | wait | stop
#
# gcloud repeats a command when the connection breaks, so each of these can be repeated; and the run does not
# depend on a connection: `start` returns at once, `follow` shows the log and takes over the exit status.
set -euo pipefail

venv=$HOME/.jvlmm-venv
place=$HOME/.jvlmm-run # pid, log and exit status of the last run

running() {
    [[ -f $place/pid ]] && grep -qs tpu_vm_worker "/proc/$(<"$place/pid")/cmdline"
}

install() {
    if running; then
        echo "jvlmm runs on $HOSTNAME; its installation stays as it is"
        return
    fi
    local requirement=$1 bucket=${2:-}
    if [[ $requirement == *.whl ]]; then
        requirement="jvlmm[tpu] @ file://$HOME/${requirement##*/}"
    fi
    # The images of TPU VMs bring an older Python than jvlmm needs; uv brings its own.
    PATH=$PATH:$HOME/.local/bin
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv venv --quiet --allow-existing --python 3.12 "$venv"
    uv pip install --quiet --python "$venv/bin/python" --reinstall-package jvlmm "$requirement"
    [[ -z $bucket ]] || mount_bucket "$bucket"
}

mount_bucket() {
    local bucket=$1 folder=/mnt/$1
    if mountpoint -q "$folder"; then return; fi
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo mkdir -p "$folder"
    sudo chown "$(id -u):$(id -g)" "$folder"
    # A checkpoint is complete once its directory is renamed; and what one host writes, the others must see at
    # once, although they looked for it before it was there.
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-negative-ttl-secs=0 "$bucket" "$folder"
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -qq -y -o DPkg::Lock::Timeout=300 gcsfuse # a fresh machine updates itself meanwhile
}

start() {
    mkdir -p "$place"
    exec 9>"$place/lock"
    flock 9
    if running; then
        echo "jvlmm already runs on $HOSTNAME"
        return
    fi
    rm -f "$place/status"
    setsid bash "${BASH_SOURCE[0]}" supervise "$@" >"$place/log" 2>&1 </dev/null 9>&- &
    echo $! >"$place/pid"
}

supervise() {
    local child="" status
    trap '[[ -z $child ]] || kill -TERM "$child" 2>/dev/null || :' TERM
    "$venv/bin/jvlmm" "$@" &
    child=$!
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break # a signal ends `wait`, but not yet jvlmm, which saves a checkpoint
    done
    echo "$status" >"$place/status.new"
    mv "$place/status.new" "$place/status"
}

await_end() {
    while running; do sleep 0.5; done
    if [[ ! -f $place/status ]]; then
        echo "jvlmm ended without an exit status on $HOSTNAME" >&2
        return 1
    fi
    return "$(<"$place/status")"
}

main() {
    local task=${1:-}
    shift || :
    case $task in
        install) install "$@" ;;
        start) start "$@" ;;
        supervise) supervise "$@" ;;
        follow)
            tail --lines=+1 --follow --pid="$(<"$place/pid")" "$place/log"
            await_end
            ;;
        wait) await_end ;;
        stop)
            if running; then kill -TERM "$(<"$place/pid")"; fi
            await_end || :
            ;;
        *)
            echo "tpu_vm_worker.sh: error: unknown task '$task'" >&2
            return 2
            ;;
    esac
}

# One line, read before it runs: the file may be copied anew while the run it supervises goes on.
main "$@"; exit
