#!/usr/bin/env bash
# Makes everything that a release has: wheel, sdist, and the fundus initializer with its card.
#
#     launch/release.sh OUT [WORKDIR]
#
# WORKDIR (default runs/release) is where the initializer is trained by the main experiment; said
# again, it goes on there. The commit has to be clean, so that the card can name it.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?name the folder to be written, such as dist}
workdir=${2:-runs/release}
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    echo "The checkout has changes that are not committed; commit them first." >&2
    exit 2
fi

python -m medinit_jax.main --config=configs/hyper.py --workdir="$workdir"
python -m medinit_jax.release build "$workdir" --name=medinit-fundus --out="$out"
.ci/wheel "$out"
