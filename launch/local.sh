#!/usr/bin/env bash
# Runs medinit_jax as several processes of one machine, as several hosts would.
#
#   launch/local.sh --processes=2 -- --config=configs/swcl.py:swcl --config.data.patches=runs/patches
#
# Options:  --processes=N   how many
#           --gpus          process i sees GPU i alone; without it all see the same devices
#           --port=PORT     where they meet
# One process shares its work among all GPUs by itself, so this is for trying out what several hosts
# do. The first process prints, the others write to local-N.log. If one fails, all are ended.
set -euo pipefail

processes=2
gpus=no
port=47111
python=${PYTHON:-python}

while [ $# -gt 0 ]; do
    case $1 in
        --processes=*) processes=${1#*=} ;;
        --port=*) port=${1#*=} ;;
        --gpus) gpus=yes ;;
        -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *)
            echo "local.sh: there is no option $1; --help lists them." >&2
            exit 2
            ;;
    esac
    shift
done

started=()
told=
end_all() { kill -TERM "${started[@]}" 2>/dev/null || true; }
# A run that is told to stop saves first.
trap 'told=yes; end_all' INT TERM

for ((i = 0; i < processes; i++)); do
    [ "$gpus" = no ] || export CUDA_VISIBLE_DEVICES=$i
    command=("$python" -m medinit_jax.main --coordinator="localhost:$port" --processes="$processes" --process="$i" "$@")
    if [ "$i" -eq 0 ]; then
        "${command[@]}" &
    else
        "${command[@]}" >"local-$i.log" 2>&1 &
    fi
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
        end_all
    fi
done
exit "$code"
