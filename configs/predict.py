"""A fine-tuned network on a folder of new images.

    python -m medinit_jax.main --config=configs/predict.py --config.model=runs/finetune-aptos_dr \
        --config.images=DIR

`model` is the workdir of a fine-tuning (or its model/ folder), `images` a folder, searched with its
sub-folders, or one file; every format that training reads. The workdir gets `predictions.csv` (per
image the probability of every class, or pixels and file of every mask), `masks/` (PNGs of 0 and 255
at the image's own size), with `--config.cam=True` `cams/` (where the predicted class is seen), and
`errors.csv` with the files that could not be read, which stop nothing. `summary.json` counts all of
them, and lists the files that are no images and the links that lead out of the folder. An image is
read as fine-tuning reads it in evaluation, pixel by pixel.

Time: that of the network; memory does not grow with the number of images. Several processes
(`--coordinator`, ..., see docs/scaling.md) divide the images and leave what one leaves.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the prediction; see the head of this file."""
    config = ConfigDict()
    config.route = "predict"
    config.model = ""
    config.images = ""
    config.cam = False
    config.batch = 16
    config.note = ""
    config.cache_dir = ""
    return config.lock()
