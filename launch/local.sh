#!/usr/bin/env bash
# Runs medinit_jax in several processes on this machine, to try what several hosts do.
#
#   launch/local.sh 2 --config=configs/swcl.py:simclr --workdir=runs/two
#
# The first argument is how many; the others go to medinit_jax.main. A signal reaches all of them. On
# a machine with GPUs one process uses all of them by itself; set PYTHON for another interpreter.
set -euo pipefail

python=${PYTHON:-python}
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
shift

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
pids=()
for ((process = 0; process < count; process++)); do
    "$python" -m medinit_jax.main --coordinator="127.0.0.1:$port" --processes="$count" \
        --process="$process" "$@" &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM

code=0
for pid in "${pids[@]}"; do
    while true; do
        own=0
        wait "$pid" || own=$?
        # A signal to this script ends `wait`, not the process.
        kill -0 "$pid" 2>/dev/null || break
    done
    [ "$own" -eq 0 ] || code=$own
done
exit "$code"
