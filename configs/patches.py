"""Patches of photographs of both eyes, scored by a trained labeler: SWAP of the SWCL paper.

    python -m medinit_jax.main --config=configs/patches.py --config.labeler=runs/labeler \
        --config.labelled=medinit_oia_odir --config.unlabelled=medinit_eyepacs/pretrain448
    python -m medinit_jax.main --config=configs/patches.py:authors --config.labeler=runs/labeler ...
    python -m medinit_jax.main --config=configs/patches.py:phantom --config.labeler=runs/labeler

The labeler is any fine-tuned classifier of the two classes normal and abnormal that ends in global
average pooling and a linear layer, such as a ResNet. Its class activation map, softmaxed, is the
abnormality of every pixel; a patch has the mean of it. Sets are prepared ones (phantoms are drawn)
whose eyes and patients are known; patients with one eye are counted and listed. Photographs of a
labelled set that are normal give five scores of 0; of the unlabelled sets all are scored, and
labels that they have are only kept beside the patches.

What comes out: the prepared set `retinal_swap/NAME`, or with `:authors` a folder `patches/` in the
workdir with the files of SWCL's code; `summary.json` says which, and `configs/swcl.py` takes the
workdir as `config.data.patches`. `report.html` shows the scores and some maps. The same command
goes on where it was stopped.

The settings are those of the paper (arXiv 2108.02122): photographs of 448 pixels, patches of 224, a
threshold of 0.4, by which 29 % of its 493,470 patches were abnormal. Time: that of the network, see
`benchmarks/patches.py`; memory does not grow with the number of photographs.
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import unknown_variant

VARIANTS = ("authors", "phantom")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the scoring; see the head of this file."""
    if variant and variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = ConfigDict()
    config.route = "patches"
    # Workdir of a fine-tuning, or its model/ folder.
    config.labeler = ""
    # Prepared sets, separated by commas, "NAME:SPLIT" for one split only.
    config.labelled = ""
    config.unlabelled = ""
    config.data_dir = "data"
    # Side of the photographs (center crop of the shorter side) and of the patches, in pixels.
    config.image_size = 448
    config.crop = 224
    # "background": dark pixels have the abnormality 0, as in SWCL's code; "none".
    config.mask = "background"
    # Score from which a patch counts as abnormal, in summary and report alone.
    config.threshold = 0.4
    # "prepared": retinal_swap/NAME in data_dir; "workdir": the same in the workdir, where no other
    # run can have taken the name; "authors": labels.csv and a file for every patch.
    config.layout = "prepared"
    config.name = "default"
    # Of JPEG; 0 = PNG.
    config.quality = 0
    # Photographs scored at a time, at most 128, on all devices together.
    config.batch = 32
    # Threads that read and that write; 0 = one per core each.
    config.workers = 0
    config.note = ""
    config.cache_dir = ""
    if variant == "authors":
        config.layout = "authors"
        config.quality = 75
    if variant == "phantom":
        config.labelled = "phantom_odir_64px_x0.1"
        config.unlabelled = "phantom_eyepacs_dr_64px_x0.05"
        config.image_size = 64
        config.crop = 32
        config.name = "phantom"
    return config.lock()
