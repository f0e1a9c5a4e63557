#!/usr/bin/env bash
# Runs medinit_jax on Google Cloud TPU VMs, of one host or several.
#
#   launch/tpu_vm.sh up NAME -- --config=configs/hyper.py:fundus --config.data.path=images
#   launch/tpu_vm.sh logs NAME
#   launch/tpu_vm.sh delete NAME
#
# Commands:  create   make the VM; with --queued wait in the queue for it
#            install  copy the code of the current commit to all hosts, and install it
#            run      start, in the background, on all hosts; what follows -- goes to medinit_jax.main
#            up       create, install and run
#            resume   run again; a VM that was taken away is made anew and installed before
#            logs     follow what the first host prints
#            stop     end the run; it saves first
#            delete   delete the VM, which costs money until then
# Options:   --zone=ZONE --type=TYPE --image=IMAGE   which VM
#            --spot                    cheaper, and may be taken away at any time
#            --queued                  a queued resource; say it again with resume and delete
#            --setup=COMMAND           runs on every host before the code starts, to mount storage
#            --wait=SECONDS            between two looks at the queue
#            --dry-run                 print the commands, run none
# A run of several hosts needs --workdir= on storage that all of them see.
set -euo pipefail

zone=us-west4-a
type=v5litepod-4
image=v2-alpha-tpuv5-lite
spot=no
queued=no
setup=
wait=30
dry=no
words=()

# For the hosts: nothing of it is expanded here.
# shellcheck disable=SC2016
alive='read -r pid 2>/dev/null <medinit_jax/run.pid && kill -0 "$pid" 2>/dev/null'
# shellcheck disable=SC2016
terminate='read -r pid <medinit_jax/run.pid && kill -TERM "$pid"'

fail() {
    echo "tpu_vm.sh: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --zone=*) zone=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --image=*) image=${1#*=} ;;
        --setup=*) setup=${1#*=} ;;
        --wait=*) wait=${1#*=} ;;
        --spot) spot=yes ;;
        --queued) queued=yes ;;
        --dry-run) dry=yes ;;
        -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*) fail "there is no option $1; --help lists them." ;;
        *) words+=("$1") ;;
    esac
    shift
done
[ ${#words[@]} -eq 2 ] || fail "it takes a command and the name of a VM; --help shows an example."
command=${words[0]}
name=${words[1]}
case $command in
    up | run | resume) [ $# -gt 0 ] || set -- --config=configs/hyper.py ;;
    *) [ $# -eq 0 ] || fail "$command takes no arguments after --." ;;
esac
[ "$dry" = yes ] || command -v gcloud >/dev/null ||
    fail "gcloud is not installed; install the Google Cloud CLI, or use --dry-run."
cd "$(dirname "$0")/.."

# Prints a command as it could be typed, and runs it.
run() {
    local word line=
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=@-]*) line+=" ${word@Q}" ;;
            *) line+=" $word" ;;
        esac
    done
    echo "+$line"
    if [ "$dry" = no ]; then
        "$@"
    fi
}

vm() { # VERB [ARGUMENT...]
    local verb=$1
    shift
    run gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" "$@"
}

queue() { # VERB [ARGUMENT...]
    local verb=$1
    shift
    run gcloud compute tpus queued-resources "$verb" "$name" --zone="$zone" "$@"
}

# Of several hosts none goes on if the command fails on one.
on_all() { vm ssh --worker=all --command="$1"; }

# What the cloud says of the VM, or of its place in the queue; nothing if there is none.
state() {
    local kind=tpu-vm value=state
    if [ "$queued" = yes ]; then
        kind=queued-resources value=state.state
    fi
    gcloud compute tpus "$kind" describe "$name" --zone="$zone" --format="value($value)" 2>/dev/null || true
}

create() {
    local options=(--accelerator-type="$type")
    [ "$spot" = no ] || options+=(--spot)
    if [ "$queued" = no ]; then
        vm create "${options[@]}" --version="$image"
        return
    fi
    queue create "${options[@]}" --node-id="$name" --runtime-version="$image"
    [ "$dry" = no ] || return 0
    local found
    while found=$(state) && [ "$found" != ACTIVE ]; do
        case $found in
            FAILED | SUSPENDING | SUSPENDED | DELETING | '')
                fail "the request for $name is ${found:-gone}; delete it with --queued, and ask for another zone or type."
                ;;
        esac
        echo "$name waits: $found"
        sleep "$wait"
    done
}

install() {
    local folder
    folder=$(mktemp -d)
    # Expanded now: the variable is gone when the trap runs.
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" EXIT
    # Only what is committed is copied, so that the run can be told from its commit.
    run git archive --format=tar.gz --output="$folder/code.tar.gz" HEAD
    run gcloud compute tpus tpu-vm scp "$folder/code.tar.gz" "$name:code.tar.gz" --zone="$zone" --worker=all
    on_all 'mkdir -p medinit_jax && tar -xzf code.tar.gz -C medinit_jax'
    # The image's own Python may be older than 3.11; uv brings one.
    on_all 'python3 -m pip install --user --quiet uv'
    on_all 'cd medinit_jax && python3 -m uv venv --quiet --allow-existing --python 3.11 .venv'
    on_all 'cd medinit_jax && python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt "jax[tpu]" -e .'
}

start() {
    local arguments hosts=1
    if [ "$dry" = yes ]; then
        # As far as the type tells: a host has up to eight chips.
        [ "${type##*-}" -le 8 ] || hosts=2
    else
        hosts=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(networkEndpoints.len())')
    fi
    # One host needs nobody to find; several find each other by what the VM tells them.
    [ "$hosts" -eq 1 ] || set -- --cluster=auto "$@"
    [ -z "$setup" ] || on_all "$setup"
    printf -v arguments ' %q' "$@"
    # Two runs in one workdir would spoil it.
    on_all "if $alive; then echo 'A run is going on here; stop it first.' >&2; exit 1; fi"
    # Detached, so that the run outlives this connection.
    on_all "cd medinit_jax && { nohup .venv/bin/python -m medinit_jax.main$arguments >>run.log 2>&1 </dev/null & echo \$! >run.pid; }"
    echo "Follow it with: launch/tpu_vm.sh logs $name --zone=$zone"
}

delete() {
    if [ "$queued" = yes ]; then
        queue delete --force --quiet
    else
        vm delete --quiet
    fi
}

resume() {
    local found=READY
    [ "$dry" = yes ] || found=$(state)
    case $found in
        READY | ACTIVE) ;;
        *)
            echo "$name is ${found:-gone}; it is made anew."
            [ -z "$found" ] || delete
            create
            install
            ;;
    esac
    start "$@"
}

case $command in
    create) create ;;
    install) install ;;
    run) start "$@" ;;
    up)
        create
        install
        start "$@"
        ;;
    resume) resume "$@" ;;
    logs) vm ssh --worker=0 --command='tail -n 100 -F medinit_jax/run.log' ;;
    stop) on_all "$terminate" ;;
    delete) delete ;;
    *) fail "there is no command $command; --help lists them." ;;
esac
