#!/usr/bin/env bash
# Runs medinit_jax on the nodes that SLURM gives, one process on each, and again when time is up.
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=4:00:00 launch/slurm.sh --config=configs/hyper.py:fundus
#
# Submitted from the checkout, whose .venv has the package; the folder is on storage that all nodes
# see. Five minutes before its time is over the run is told to stop: it saves, and the job goes back
# into the queue, to go on from there.
#SBATCH --job-name=medinit
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
python=${PYTHON:-.venv/bin/python}
[ "${SLURM_NNODES:-1}" -eq 1 ] || set -- --cluster=auto "$@"
srun --kill-on-bad-exit=0 "$python" -m medinit_jax.main "$@"
code=$?
# Stopped and saved; all other codes are ends or failures, which would only come again.
if [ "$code" -eq 75 ] || [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
