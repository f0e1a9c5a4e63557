#!/usr/bin/env bash
# Runs medinit_jax as several processes of this machine, as several hosts would.
#
#   launch/local.sh 2 --config=configs/swcl.py:swcl --config.data.patches=runs/patches
#   launch/local.sh --gpus 2 --config=configs/swcl.py:swcl ...    process i sees GPU i alone
#
# One process shares its work among all GPUs by itself, so this is for trying out what several hosts
# do. The first process shows how far the run is. If one fails, all are ended; a signal reaches all,
# and they save first. PYTHON names another interpreter.
set -euo pipefail

gpus=no
if [ "${1-}" = --gpus ]; then
    gpus=yes
    shift
fi
if [[ ! ${1-} =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
processes=$1
shift
python=${PYTHON:-python}
port=${PORT:-$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')}

started=()
told=
end_all() { kill -TERM "${started[@]}" 2>/dev/null || true; }
# A run that is told to stop saves first.
trap 'told=yes; end_all' INT TERM

for ((i = 0; i < processes; i++)); do
    [ "$gpus" = no ] || export CUDA_VISIBLE_DEVICES=$i
    command=("$python" -m medinit_jax.main --coordinator="127.0.0.1:$port" --processes="$processes" --process="$i" "$@")
    "${command[@]}" &
    started+=($!)
done

code=0
left=$processes
while [ "$left" -gt 0 ]; do
    one=0
    wait -n || one=$?
    # Nothing is left to wait for.
    [ "$one" -ne 127 ] || break
    # It was the signal that ended the wait, not a process.
    if [ -n "$told" ]; then
        told=
        continue
    fi
    left=$((left - 1))
    if [ "$one" -ne 0 ] && [ "$code" -eq 0 ]; then
        code=$one
        # The others say by themselves which one failed and end, unless they never met.
        sleep "${GRACE:-5}"
        end_all
    fi
done
exit "$code"
