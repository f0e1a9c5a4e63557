#!/usr/bin/env bash
# Makes everything that a release has: wheel, sdist, and an initializer with its card for fundus
# photographs, chest X-rays and CT.
#
#     launch/release.sh OUT [WORKDIR]
#
# WORKDIR (default runs/release) is where the initializers are trained, each by the main experiment
# on drawn images of its modality; said again, it goes on there. The commit has to be clean, so that
# the cards can name it.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?name the folder to be written, such as dist}
workdir=${2:-runs/release}
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    echo "The checkout has changes that are not committed; commit them first." >&2
    exit 2
fi
if compgen -G "$out/*.zip" > /dev/null; then
    echo "$out holds a release; name another folder. What is trained in $workdir is kept." >&2
    exit 2
fi

for modality in fundus xray ct; do
    settings=()
    if [ "$modality" != fundus ]; then
        # Only eyes are left or right; what the note says is of fundus phantoms, too.
        settings=(--config.data.name="$modality" --config.data.augment.normalize_laterality=False
            --config.note=)
    fi
    python -m medinit_jax.main --config=configs/hyper.py --workdir="$workdir/$modality" \
        "${settings[@]}"
    python -m medinit_jax.release build "$workdir/$modality" --name="medinit-$modality" --out="$out"
done
.ci/wheel "$out"
