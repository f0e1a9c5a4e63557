#!/usr/bin/env bash
# Runs medinit_jax on a Google Cloud TPU VM: makes the VM, copies the committed code, installs,
# starts. With --dry-run it prints its commands and runs none of them.
#
#   launch/tpu_vm.sh --dry-run NAME -- --config=configs/hyper.py:fundus --config.data.path=images
#
# Options, before NAME: --zone=ZONE --type=TYPE --image=IMAGE --no-create --dry-run
# What follows -- goes to medinit_jax.main. A VM costs money until it is deleted: see README.md.
set -euo pipefail

zone=us-west4-a
type=v5litepod-4
image=v2-alpha-tpuv5-lite
create=yes
dry=no
name=

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

while [ $# -gt 0 ]; do
    case $1 in
        --zone=*) zone=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --image=*) image=${1#*=} ;;
        --no-create) create=no ;;
        --dry-run) dry=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*)
            echo "tpu_vm.sh has no option $1; --help lists them." >&2
            exit 2
            ;;
        *) name=$1 ;;
    esac
    shift
done

if [ -z "$name" ]; then
    echo "tpu_vm.sh needs the name of a VM; --help shows an example." >&2
    exit 2
fi
if [ $# -eq 0 ]; then
    set -- --config=configs/hyper.py
fi

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

on_vm() {
    run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

if [ "$dry" = no ] && ! command -v gcloud >/dev/null; then
    echo "gcloud is not installed; install the Google Cloud CLI, or use --dry-run." >&2
    exit 2
fi
cd "$(dirname "$0")/.."

if [ "$create" = yes ]; then
    run gcloud compute tpus tpu-vm create "$name" --zone="$zone" \
        --accelerator-type="$type" --version="$image"
fi

if [ "$dry" = no ]; then
    hosts=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
        --format='value(networkEndpoints.len())')
    if [ "$hosts" -ne 1 ]; then
        echo "$name has $hosts hosts, which need --cluster=auto and a folder that they share" \
            "(docs/scaling.md); delete it and choose a --type with one host." >&2
        exit 2
    fi
fi

archive=$(mktemp -d)/code.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
# Only what is committed is copied, so that the run can be told from its commit.
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:code.tar.gz" --zone="$zone" --worker=all

on_vm 'mkdir -p medinit_jax && tar -xzf code.tar.gz -C medinit_jax'
# The image's own Python may be older than 3.11; uv brings one.
on_vm 'python3 -m pip install --user --quiet uv'
on_vm 'cd medinit_jax && python3 -m uv venv --quiet --allow-existing --python 3.11 .venv'
on_vm 'cd medinit_jax && python3 -m uv pip install --quiet --python .venv/bin/python -c constraints.txt "jax[tpu]" -e .'

printf -v arguments ' %q' "$@"
# Detached, so that the run outlives this connection; it goes on where it stopped when repeated.
on_vm "cd medinit_jax && { nohup .venv/bin/python -m medinit_jax.main$arguments >>run.log 2>&1 </dev/null & }"

cat <<END

Look on:  gcloud compute tpus tpu-vm ssh $name --zone=$zone --command='tail -f medinit_jax/run.log'
Fetch:    gcloud compute tpus tpu-vm scp --recurse $name:medinit_jax/runs . --zone=$zone
Delete:   gcloud compute tpus tpu-vm delete $name --zone=$zone
END
