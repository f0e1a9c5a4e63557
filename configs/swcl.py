"""Pretraining of an encoder on fundus photographs: SWCL, and what its paper compares it with.

    python -m medinit_jax.main --config=configs/swcl.py:phantom
    python -m medinit_jax.main --config=configs/swcl.py:chain
    python -m medinit_jax.main --config=configs/swcl.py:swcl --config.data.patches=runs/patches
    python -m medinit_jax.main --config=configs/swcl.py:simclr \
        --config.data.sets=medinit_oia_odir,medinit_eyepacs/pretrain448

After the colon: `chain`, all of it in one command (labeler, patches, pretraining, fine-tuning), or
`phantom`, the same on drawn images; or one method alone: `swcl`, `swcl_image` (patches take the
label of their photograph), `multitask` (cross-entropy of abnormality and position), `simclr`,
`byol`, `dino`, `dino_official`. The supervised starts of the paper are fine-tunings:
`configs/finetune.py:medinit_oia_odir --config.labels=abnormal --config.data.recipe=sup_pre` and
`medinit_eyepacs/pretrain448` likewise. What comes out is a folder that
`--config.init.start=encoder --config.init.path=WORKDIR` of `configs/finetune.py` takes.

The settings are those of SWCL's paper (arXiv 2108.02122) and code: BiT ResNet-50x1, 496 patches in
248 pairs of eyes, AdamW at 1e-3 with 5 epochs of warm-up and a cosine, 40 epochs (39,800 steps).
Where the paper gives none (SimCLR, BYOL, DINO, CE-multitask: 200, 200, 200 and 40 epochs) the same
rate is ours. Hardware and time: made for an accelerator and not run by us; `phantom` takes minutes
on two CPU cores.
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import beside, unknown_variant

METHODS = ("swcl", "swcl_image", "multitask", "simclr", "byol", "dino", "dino_official")


def get_config(variant: str = "swcl") -> ConfigDict:
    """Returns the experiment; see the head of this file."""
    if variant in ("chain", "phantom"):
        return _chain("real" if variant == "chain" else "mini")
    if variant not in METHODS:
        raise unknown_variant(variant, ("chain", "phantom", *METHODS))
    config = _default(variant)
    if variant in ("simclr", "byol", "dino", "dino_official"):
        config.train.epochs = 200
        config.optim.warmup_epochs = 10.0
    if variant == "multitask":
        config.data.views = "ft_cls"
    if variant == "dino_official":
        config.method = "dino"
        config.loss.official = True
        config.loss.prototypes = 65_536
        config.data.views = "dino_official"
        config.optim.weight_decay = 0.04
        config.optim.weight_decay_end = 0.4
        # Of all gradients together; the official code clips those of every tensor by themselves.
        config.optim.clip = 3.0
        config.train.frozen_epochs = 1
    return config.lock()


def _chain(size: str) -> ConfigDict:
    """Returns labeler, patches, pretraining and fine-tuning as one study."""
    config = beside(__file__, "swcl_study").get_config("swcl_chain")
    config.size = size
    return config.lock()


def _default(method: str) -> ConfigDict:
    config = ConfigDict()
    config.route = "swcl"
    config.method = method
    config.seed = 42
    config.cache_dir = ""
    # Steps that are traced for TensorBoard's profiler; 0 = none.
    config.profile = 0
    config.note = ""
    # Of BYOL and DINO: the student or the teacher becomes the encoder.
    config.export = "student"
    # What they mean is said there.
    finetune = beside(__file__, "finetune").get_config()
    config.init, config.model = finetune.init, finetune.model
    # The encoder is a BiT network, which SWCL's code leaves as PyTorch starts it.
    config.init.start = "torch_default"
    config.model.name = "resnetv2_50x1_bit"
    config.data = ConfigDict(
        {
            "data_dir": "data",
            # Pairs of patches: the workdir of configs/patches.py, retinal_swap/NAME, or a folder in
            # the layout of SWCL's authors.
            "patches": "",
            # Whole images, for methods that see no patches: prepared sets, separated by commas,
            # "NAME:SPLIT" for one split only.
            "sets": "",
            # Side of the whole images from which views are drawn (patches are as they are), and of
            # the views, in pixels.
            "image_size": 448,
            "size": 224,
            # A recipe of data.views.
            "views": "contrastive",
            "normalization": "fundus",
            "cache_mb": 2048.0,
            "workers": 0,
        }
    )
    config.loss = ConfigDict(
        {
            # Columns of a patch's label that must agree: see losses.labels.SCHEMES.
            "scheme": "all",
            # Score from which a patch is abnormal.
            "threshold": 0.4,
            "match": "all",
            "reduction": "mean",
            "temperature": 0.1,
            "base_temperature": 0.0,
            # Anchors scored at a time.
            "chunk": 512,
            "head_norm": "gn_ws",
            "prototypes": 4096,
            "official": False,
            "position_weight": 0.1,
        }
    )
    config.train = ConfigDict(
        {
            "epochs": 40,
            # Updates in all; 0 = as many as the epochs have.
            "steps": 0,
            # Images; a pair of patches counts two.
            "batch": 496,
            # Views over which batch statistics are taken; 0 = the batch, over all devices.
            "bn_group": 0,
            # First momentum of the averaged network of BYOL and DINO.
            "ema": 0.996,
            # Epochs in which the last layer of the head does not learn.
            "frozen_epochs": 0,
            "dtype": "float32",
            "log_every": 50,
            "checkpoint_every": 500,
            # How many of the newest checkpoints stay, and whether each is read back at once.
            "checkpoints_kept": 2,
            "checkpoints_verified": False,
        }
    )
    config.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            # Weight decay goes there along a cosine, from the first update on; 0 = it stays.
            "weight_decay_end": 0.0,
            "schedule": "cosine",
            "warmup_epochs": 5.0,
            "momentum": 0.9,
            "nesterov": False,
            # Of schedule=step: the rate is multiplied by `decay` after each of these epochs.
            "milestones": (),
            "decay": 0.1,
            "clip": 0.0,
            # Whether moments are divided among the devices, a part on each.
            "sharded": False,
        }
    )
    return config
