"""Route 1: trains a hyper-initializer and shows what it is worth.

    python -m medinit_jax.main --config=configs/hyper.py            fundus phantoms at 32 px
    python -m medinit_jax.main --config=configs/hyper.py:full       the same, complete comparison
    python -m medinit_jax.main --config=configs/hyper.py:smoke      a minute: does everything work?
    python -m medinit_jax.main --config=configs/hyper.py:mixed      other families of networks too
    python -m medinit_jax.main --config=configs/hyper.py:folder --config.data.path=PLACE
    python -m medinit_jax.main --config=configs/hyper.py:fundus --config.data.path=DIR   (:ct :xray)

    ... --config.pretext.name=hard_rotation+contrast     other pretexts, see hyper.pretext.PRETEXTS

Data: the default draws its images itself. `:folder` takes a folder of images, an .npz file, or a
table that lists images (`config.data.table` names its columns), without labels; the comparison by
fine-tuning then needs labels (sub-folders, an array, a column) and is left out where there are
none. `:fundus`, `:ct` and `:xray` take a folder with all images of the modality, as the paper does
(224 px, 50 epochs, zoom in [0.8, 1.2], 10^6 architectures).

Hardware and time: the default takes minutes on 2 CPU cores, see docs/results.md for what it
reached; the 224 px variants are meant for a GPU or TPU and were not run to the end by us.

`--config.preset=seed_paper` means what the paper says (arXiv 2206.03661): Eq. 2 synchronous,
incoming neighbors, 1 < s <= 50, activations as nodes, cosine from 0.01, its own augmentation. What
the paper leaves open is our choice: K = 8 layers of Eq. 2, hidden size 32, meta-batch 8 (2 in the
compact space), AdamW with clip 5, the shape encoding, decoder and normalization of GHN-2. The
default preset `stable` is GHN-2's sequential traversal with warm-up, a learning rate of 3e-4 and a
decoder that starts centered (docs/results.md).
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import unknown_variant

VARIANTS = ("", "full", "smoke", "mixed", "folder", "fundus", "ct", "xray")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the experiment; see the head of this file for the variants."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = _default()
    _VARIANTS.get(variant, lambda _: None)(config)
    return config.lock()


def _default() -> ConfigDict:
    config = ConfigDict()
    config.route = "hyper"
    config.stages = ("train", "evaluate", "report")
    config.seed = 1111
    config.cache_dir = ""
    # Steps that are traced for TensorBoard's profiler; 0 = none.
    config.profile = 0
    config.init_from = ""
    config.preset = "stable"
    config.note = (
        "The images are fundus phantoms. Left eyes are mirrored to look like right ones, and "
        "images are shifted by up to 30 % instead of mirrored at random: a thumbnail then reads "
        "as few angles (0.44) as of the hard rotation with mirroring, and 0 and 180 degrees are "
        "not ambiguous between eyes. How soon training leaves chance with this and other recipes: "
        "docs/results.md."
    )
    config.space = "compact"
    config.pretext = _pretexts()
    config.data = ConfigDict(
        {
            "source": "phantom",
            "name": "fundus",
            "path": "",
            "data_dir": "data",
            "size": 32,
            "render_size": 64,
            "patients": {"train": 2000, "val": 400, "test": 400},
            "splits": (0.8, 0.1, 0.1),
            "split_seed": 0,
            "fit": "crop",
            "check": "decode",
            "labels": "folder",
            "images_key": "auto",
            "labels_key": "auto",
            "label": "",
            "table": {
                "image": "image",
                "labels": "",
                "separator": "",
                "classes": "",
                "mask": "",
                "patient": "",
                "eye": "",
                "split": "",
                "group": "",
                "root": "",
            },
            "cache_mb": 1024.0,
            "normalization": "auto",
            "batch": 8,
            "workers": 0,
            "augment": {
                "zoom": (0.8, 1.2),
                "translate": 0.3,
                "tilt": 10.0,
                "rotate": 0.0,
                "mirror": 0.0,
                "flip": 0.0,
                "border": "zero",
                "normalize_laterality": True,
                "difficulty": {"start": 0.3, "end": 1.0, "hold": 500, "steps": 400},
            },
        }
    )
    # Tiles of 64x64 channels: beyond, up to the 256 of the compact space, they repeat, shifted.
    config.hyper = ConfigDict(
        {
            "hidden": 32,
            "max_shape": (64, 64, 7, 7),
            "node_types": 15,
            "activations": False,
            "mode": "sequential",
            "layers": 8,
            "rounds": 1,
            "direction": "incoming",
            "virtual_edges": True,
            "max_distance": 50,
            "mlp_activation": "relu",
            "layer_norm": True,
            "shape_encoding": True,
            "normalize": True,
            "init_scheme": "ghn2",
            "crop": "corner",
            "decoder_scale": 1.0,
            "decoder_centered": True,
            "decoder_rank": 0,
            "tiling": "shift",
        }
    )
    config.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 3e-4,
            "weight_decay": 1e-5,
            "clip": 5.0,
            "warmup_steps": 50,
            "schedule": "cosine",
            # Whether moments are divided among the devices, a part on each.
            "sharded": False,
        }
    )
    config.train = ConfigDict(
        {
            "steps": 2500,
            # A run begins so often, with a seed of its own each time, for so many steps; the seed
            # of the least loss trains. Some leave chance late or never (docs/results.md).
            "trials": 3,
            "trial_steps": 200,
            "meta_batch": 2,
            "batch_size": 32,
            "bn_group": 32,
            "penalty": 0.0,
            "execution": "tape",
            # What several processes share of a step: its images, or its architectures.
            "spread": "images",
            "dtype": "float32",
            # Training begins with a few architectures, whose number doubles; 0 = with all of them.
            "first_architectures": 4,
            "double_every": 200,
            "warm_up_networks": 600,
            "warm_up_signatures": 250,
            "validation_networks": 8,
            "validate_every": 100,
            # Which step is published: "last", or "probe": the one whose validation networks give
            # the best frozen features, by labels of training and validation images, as more
            # training of a pretext can transfer worse. "auto" probes where images are drawn, and
            # looks at no label of yours.
            "select": "auto",
            "probe": {"label": "any", "images": {"train": 800, "val": 800}},
            "log_every": 50,
            "checkpoint_every": 500,
            # How many of the newest checkpoints stay, and whether each is read back at once.
            "checkpoints_kept": 2,
            "checkpoints_verified": False,
        }
    )
    config.evaluate = _evaluation()
    config.presets = ConfigDict({"stable": {}, "seed_paper": _seed_paper()})
    return config


def _pretexts() -> ConfigDict:
    """What networks with predicted parameters are asked; see `hyper.pretext.PRETEXTS`."""
    return ConfigDict(
        {
            # One name, or several joined by +, such as hard_rotation+contrast.
            "name": "rotation+patches",
            "weights": {
                "rotation": 1.0,
                "hard_rotation": 1.0,
                "contrast": 1.0,
                "relative_position": 1.0,
                "jigsaw": 1.0,
                "masked": 1.0,
                "weak_labels": 1.0,
                "patches": 0.25,
            },
            # From which share of the steps on each counts; the earliest of those that are named
            # count from the start. Beside others rotation does not leave chance.
            "begin": {
                "rotation": 0.0,
                "hard_rotation": 0.0,
                "contrast": 0.0,
                "relative_position": 0.0,
                "jigsaw": 0.0,
                "masked": 0.0,
                "weak_labels": 0.0,
                "patches": 0.4,
            },
            # Channels of pooled features that learned heads read.
            "width": 256,
            # Of both rotations: "one" turns every image once, "four" four times. As many views are
            # then of four times as many images, and features transfer better (docs/results.md).
            "mode": "one",
            "circle": True,
            "label_smoothing": 0.0,
            "hard_rotation": {"translate": 0.2, "tilt": 10.0, "mirror": 0.5},
            "contrast": {
                "area": (0.3, 1.0),
                "mirror": 0.5,
                "brightness": 0.4,
                "contrast": 0.4,
                "color": 0.2,
                "temperature": 0.2,
                "hidden": 128,
                "features": 64,
            },
            "relative_position": {
                "side": 0.28,
                "spacing": 0.32,
                "jitter": 0.03,
                "brightness": 0.3,
                "contrast": 0.3,
                "color": 0.2,
                "hidden": 128,
            },
            "jigsaw": {"tiles": 2, "permutations": 8, "kept": 0.8, "hidden": 128},
            "masked": {"cells": 4, "temperature": 0.2, "hidden": 128, "features": 64},
            "weak_labels": {
                "label": "any",
                "num_classes": 2,
                "answer": "learned",
                "hidden": 128,
            },
            "patches": {
                "scheme": "position-patient",
                "match": "all",
                "side": 0.5,
                "jitter": 0.05,
                "brightness": 0.3,
                "contrast": 0.3,
                "color": 0.2,
                "temperature": 0.2,
                "hidden": 128,
                "features": 64,
            },
        }
    )


def _evaluation() -> ConfigDict:
    """The reduced comparison: 12 networks, one of them fine-tuned from four starts."""
    return ConfigDict(
        {
            "splits": {"val": 12, "test": 0, "wide": 0, "deep": 0, "dense": 0, "bnfree": 0},
            "resnets": (),
            "batches": 8,
            "ridge_images": 2000,
            # A published initializer to evaluate in the place of the workdir's own; "" = its own.
            "initializer": "",
            # Ranks, likeness and twins of the features of so many networks of "test"; 0 = none.
            "diagnostics": {"networks": 0, "images": 256, "depths": (0.25, 0.5, 0.75, 1.0)},
            "downstream": {
                "networks": ("test:0",),
                "label": "any",
                "images": {"train": 2000, "val": 400, "test": 600},
                # Whose images judge: "test", or "val": one half of them, the other one chooses.
                "judge": "test",
                "fractions": (0.1,),
                # Of these, where networks are fine-tuned; () = everywhere.
                "finetune_fractions": (),
                "lr_fractions": (0.1,),
                "learning_rates": (0.01, 0.05),
                "seeds": 3,
                "grid_seeds": 0,
                "probe_depths": (0.66, 1.0),
                # hyper, random, matched, untrained; also rotnet, the network pretrained alone.
                "starts": ("hyper", "random", "matched", "untrained"),
                "rotnet": {"images": 2000, "epochs": 10, "learning_rate": 0.01},
                # Whether networks are fine-tuned, or their frozen features probed only.
                "finetune": True,
                # Which tensors take predicted values, and how; see hyper.starts.Transfer.
                "depth_fraction": 1.0,
                "kinds": ("kernel", "scale", "bias", "embedding"),
                "init_noise": 0.0,
                "orthogonal": False,
                "deviation": "predicted",
                "budget": {
                    "epochs": 6,
                    "batch": 32,
                    # Of an epoch: 12 batches of few labeled images are several passes over them.
                    "min_steps": 12,
                    "weight_decay": 1e-4,
                    "clip": 0.0,
                    "flip": False,
                    "recalibrate_steps": 100,
                    "recalibrate_batches": 16,
                },
            },
        }
    )


def _seed_paper() -> dict:
    """What the paper says, and nothing else."""
    return {
        "hyper": {
            "mode": "sync",
            "direction": "incoming",
            "node_types": 29,
            "activations": True,
            "decoder_centered": False,
            "tiling": "repeat",
        },
        "optim": {"learning_rate": 0.01, "warmup_steps": 0, "schedule": "cosine"},
        "pretext": {"name": "rotation", "mode": "four", "circle": False},
        "data": {
            "augment": {
                "zoom": (0.8, 1.2),
                "translate": 0.0,
                "tilt": 0.0,
                "mirror": 0.0,
                "normalize_laterality": False,
                "difficulty": {"start": 1.0, "end": 1.0, "hold": 0, "steps": 0},
            }
        },
        "train": {"first_architectures": 0, "penalty": 0.0, "select": "last", "trials": 1},
    }


def _full(config: ConfigDict) -> None:
    """The complete comparison: 50 networks of every split, ResNets, fractions, five seeds."""
    for split in config.evaluate.splits:
        config.evaluate.splits[split] = 50
    config.evaluate.resnets = ("resnet18", "resnet34", "resnet50", "resnet101")
    config.evaluate.batches = 16
    downstream = config.evaluate.downstream
    downstream.networks = ("resnet18", "test:0")
    downstream.fractions = (0.02, 0.1, 1.0)
    downstream.lr_fractions = ()
    downstream.learning_rates = (0.003, 0.01, 0.05)
    downstream.seeds = 5
    downstream.images = ConfigDict({"train": 0, "val": 0, "test": 0})
    downstream.budget.epochs = 20


def _smoke(config: ConfigDict) -> None:
    config.data.patients = ConfigDict({"train": 80, "val": 80, "test": 80})
    config.train.steps = 6
    config.train.trials, config.train.trial_steps = 2, 2
    config.train.warm_up_signatures = 0
    config.train.validation_networks = 1
    config.train.validate_every = 3
    config.train.log_every = 2
    config.train.checkpoint_every = 3
    config.optim.warmup_steps = 1
    evaluate = config.evaluate
    evaluate.splits.val = 1
    evaluate.batches = 1
    evaluate.ridge_images = 40
    evaluate.downstream.images = ConfigDict({"train": 60, "val": 60, "test": 60})
    evaluate.downstream.fractions = (0.5,)
    evaluate.downstream.lr_fractions = (0.5,)
    evaluate.downstream.learning_rates = (0.01,)
    evaluate.downstream.seeds = 1
    evaluate.downstream.probe_depths = (1.0,)
    evaluate.downstream.budget.epochs = 1
    evaluate.downstream.budget.min_steps = 1


def _mixed(config: ConfigDict) -> None:
    """Wider DeepNets and other families of networks: VGG, ResNet, RegNet, MobileNet, ViT, ..."""
    config.space = "mixed"
    config.hyper.node_types = 29
    config.pretext.name, config.hyper.tiling = "rotation", "repeat"
    config.train.steps = 6000
    config.train.validate_every = 500
    config.train.warm_up_networks = 30_000
    config.train.warm_up_signatures = 3_000
    config.evaluate.resnets = ("resnet18", "resnet50")


def _folder(config: ConfigDict) -> None:
    """The user's own images: a folder, an .npz file or a table."""
    config.note = ""
    config.data.source = "files"
    config.data.labels = "none"
    config.data.normalization = "gray"


def _paper(config: ConfigDict) -> None:
    """Real images at 224 px over the whole design space."""
    config.note = ""
    config.space = "deepnets"
    config.data.source = "folder"
    config.data.size = 224
    config.data.workers = 8
    config.data.check = "header"
    config.pretext.name, config.pretext.mode = "rotation", "four"
    config.hyper.tiling = "repeat"
    config.train.trials = 1
    config.train.first_architectures = 0
    config.hyper.max_shape = (64, 64, 11, 11)
    # 50 epochs of 35,000 images at 16 images (64 views) a step.
    config.train.steps = 109_000
    config.optim.warmup_steps = 4_000
    config.train.meta_batch = 8
    config.train.batch_size = 64
    config.train.bn_group = 16
    config.train.penalty = 3e-5
    config.train.warm_up_networks = 30_000
    config.train.warm_up_signatures = 5_000
    config.train.validate_every = 2_000
    config.train.log_every = 100
    config.train.checkpoint_every = 500


def _fundus(config: ConfigDict) -> None:
    _paper(config)
    config.data.fit = "fov"
    config.data.normalization = "fundus"


def _gray(config: ConfigDict) -> None:
    _paper(config)
    config.data.fit = "pad"
    config.data.normalization = "gray"
    config.data.augment.normalize_laterality = False


_VARIANTS = {
    "full": _full,
    "smoke": _smoke,
    "mixed": _mixed,
    "folder": _folder,
    "fundus": _fundus,
    "ct": _gray,
    "xray": _gray,
}
