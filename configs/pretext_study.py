"""The study of pretexts; run through `configs/study.py`.

    python -m medinit_jax.main --config=configs/study.py:pretexts
    python -m medinit_jax.main --config=configs/study.py:pretexts --config.size=phantom
    python -m medinit_jax.main --config=configs/study.py:pretexts --config.size=real \
        --config.images.xray=DIR

Which pretext gives unseen networks features that carry over, and transferred by which recipe? All
is fixed here before the first run: pretexts, recipes, networks and hypernetwork seeds of both
phases, the rule of choice, the figures that are judged. *choose* trains every pretext once and
probes frozen features of `networks.choose` on validation images. The rule takes one pair of pretext
and recipe per modality. *confirm* trains it anew from `seeds.confirm` further seeds and compares
five starts on `networks.confirm` and test images, frozen and fine-tuned. Intervals are over
networks. `--config.last=choose` stops after the choice.

`--config.size`: `mini` runs in minutes on 2 CPU cores and shows that all works, no more; `phantom`
takes drawn images of three modalities at 32 px; `real` takes labeled images of your own, for each
modality a folder (sub-folders are classes), an .npz file or a table, and was not run to the end by
us. Jobs lie in `config.jobs_dir`; the same command goes on where it stopped.

Any part of a size can be set, and `hyper_of` holds the trainings of one modality. Two pretexts on
chest X-rays of 28 px, as a trial of what the choice takes:

    python -m medinit_jax.main --config=configs/study.py:pretexts --config.size=real \
        --config.images.xray=pneumonia28.npz "--config.sizes.real.modalities=('xray',)" \
        --config.sizes.real.hyper_of.xray.data.size=28 --config.sizes.real.hyper.train.steps=600 \
        "--config.sizes.real.pretexts=('hard_rotation','contrast')" \
        "--config.sizes.real.recipes=('whole','kernels')" \
        "--config.sizes.real.networks.choose=('val:0','val:1')" \
        "--config.sizes.real.fractions=(0.05,0.2)" --config.last=choose

The modality `vessels` is judged by segmentation: encoders of U-Nets start from the hypernetwork, at
random and from permuted values, and learn the vessels of DRIVE and STARE from one or two images:

    python -m medinit_jax.data prepare drive_seg --from DRIVE        (stare_seg likewise)
    python -m medinit_jax.main --config=configs/study.py:pretexts --config.size=real \
        --config.images.vessels=PHOTOGRAPHS "--config.sizes.real.modalities=('vessels',)"
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import beside, unknown_variant

STUDIES = ("pretexts",)
# Of `vessels` no image is labeled: segmentation judges it.
PROBED = ("fundus", "xray", "ct")
MODALITIES = (*PROBED, "vessels")
PRETEXTS = {
    "rotation": {"pretext": {"name": "rotation"}},
    "hard_rotation": {"pretext": {"name": "hard_rotation"}},
    "relative_position": {"pretext": {"name": "relative_position"}},
    "jigsaw": {"pretext": {"name": "jigsaw"}},
    "contrast": {"pretext": {"name": "contrast"}},
    "masked": {"pretext": {"name": "masked"}},
    "patches": {"pretext": {"name": "patches"}},
    "patches_abnormality": {
        "pretext": {"name": "patches", "patches": {"scheme": "position-abnormality"}}
    },
    "weak_labels": {"pretext": {"name": "weak_labels"}},
    "rotation_contrast": {"pretext": {"name": "hard_rotation+contrast"}},
    "rotation_patches": {"pretext": {"name": "rotation+patches"}},
}
# Those that see no label; the others are listed apart wherever they are run.
WITHOUT_LABELS = tuple(
    name for name in PRETEXTS if name not in ("patches_abnormality", "weak_labels")
)
RECIPES = {
    "whole": {},
    "half": {"depth_fraction": 0.5},
    "kernels": {"kinds": ("kernel", "embedding")},
    "scaled": {"deviation": "default"},
    "orthogonal": {"orthogonal": True},
    "noise": {"init_noise": 0.1},
}
# Of the space `compact`, the first ones of each family; fixed before any of them was judged.
CHOOSE = ("val:0", "val:2", "val:3", "val:5", "val:7", "val:1")
CONFIRM = (
    *("test:0", "test:2", "test:4"),  # cells
    *("resnet18:width=16", "test:3"),  # ResNets
    *("test:5", "test:13"),  # RegNets
    *("test:7", "test:15"),  # MobileNets
    "test:1",  # a VGG
)


def get_config(study: str) -> ConfigDict:
    """Returns the study; see the head of this file."""
    if study not in STUDIES:
        raise unknown_variant(study, STUDIES)
    config = ConfigDict()
    config.route = "study"
    config.study = study
    config.size = "mini"
    config.note = ""
    config.cache_dir = ""
    config.jobs_dir = "runs/jobs"
    config.runner = "local"
    config.fresh = False
    config.first_seed = 1111
    # The last phase that is run: choose, or confirm.
    config.last = "confirm"
    # A pair's score: mean over these shares of labels of the smaller gain, over random or matched.
    # They are what the first phase probes; the second one probes those of the size.
    config.rule = ConfigDict({"fractions": (0.05, 0.2)})
    # Where features are probed; what has to be gained to win a network; when early is.
    config.depth = 1.0
    config.margin = 0.05
    config.finetune_epoch = 3
    config.resamples = 2000
    config.pretexts = ConfigDict(PRETEXTS)
    config.recipes = ConfigDict(RECIPES)
    # size=real: images of each modality that is studied: a folder, .npz file or table. They have
    # labels, but for vessels: photographs of the fundus or crops of them, test images left out.
    config.images = ConfigDict(dict.fromkeys(MODALITIES, ""))
    config.base = ConfigDict(
        {
            "hyper": {name: _hyper(name) for name in MODALITIES},
            "finetune": {task: _vessels() for task in ("drive_seg", "stare_seg")},
        }
    )
    # Changes of every fine-tuning of a segmentation; None changes nothing.
    parts = ("data", "train", "optim", "protocol", "evaluate")
    config.finetune = beside(__file__, "study").unset(_vessels(), parts)
    sizes = {"mini": _mini(), "phantom": _phantom(), "real": _real()}
    config.sizes = ConfigDict({name: _settable(size) for name, size in sizes.items()})
    return config


def _settable(size: dict) -> dict:
    """Adds what a size leaves as it is, so that the command line can set it."""
    unset = beside(__file__, "study").unset
    parts = ("data", "hyper", "optim", "train")
    own = {name: unset(_hyper(name), parts) for name in MODALITIES}
    for name, changes in size.get("hyper_of", {}).items():
        own[name].update(changes)
    size["hyper_of"] = own
    known = _hyper(MODALITIES[0])["evaluate"]["downstream"]
    # Networks and shares of labels are those of the size.
    shown = {key: known[key] for key in known if key not in ("networks", "fractions")}
    for phase, changes in size["downstream"].items():
        whole = ConfigDict(shown)
        whole.update(changes)
        size["downstream"][phase] = whole
    return size


def _hyper(modality: str) -> dict:
    config = beside(__file__, "hyper").get_config("").to_dict()
    config["note"] = ""
    drawn = modality in PROBED
    config["data"]["name"] = modality if drawn else "fundus"
    if modality not in ("fundus", "vessels"):
        config["data"]["augment"]["normalize_laterality"] = False
    config["train"]["select"] = "probe" if drawn else "last"
    return config


def _vessels() -> dict:
    """A U-Net on crops of few photographs, as docs/results.md has it on DRIVE."""
    config = beside(__file__, "finetune").get_config("drive_seg").to_dict()
    config["data"] |= {"recipe": "crops", "size": 128}
    # What is left of the 20 or 10 training images makes one batch of crops, an epoch.
    config["train"] |= {"batch": 8, "epochs": 240, "validate_every": 40}
    config["optim"]["name"] = "adamw"
    # Half of them validates: a choice by 2 images would be none.
    config["protocol"]["validation"] = 0.5
    return config


def _segmentation(**changes: object) -> dict:
    """Tasks by which a modality is judged in the place of probes, and how they are learned."""
    return {
        "tasks": {name: () for name in PROBED} | {"vessels": ("drive_seg", "stare_seg")},
        "phantom": False,
        "pixels": 256,
        "shares": {},
        # Validation images judge the choice, test images the confirmation; seeds of fine-tuning
        # choose which images are labeled, and no seed is in both phases.
        "networks": {"choose": ("unet",), "confirm": ("unet",)},
        "models": {"unet": {"width": 16}},
        "seeds": {"choose": 2, "confirm": 5},
        "starts": {
            "choose": ("hyper", "random", "matched"),
            "confirm": ("hyper", "random", "matched", "untrained"),
        },
        # Of the training images that do not validate: of DRIVE's 10 one and two.
        "fractions": (0.1, 0.2),
        # Each start has the best of them by validation, with the first seed.
        "learning_rates": (0.001, 0.003, 0.01),
        "weight_decays": (1e-4,),
        "finetune": {},
        **changes,
    }


def _mini() -> dict:
    few = {"train": 120, "val": 160, "test": 80}
    short = {"epochs": 1, "min_steps": 2, "recalibrate_batches": 2}
    probe = {
        "seeds": 1,
        "judge": "val",
        "finetune": False,
        "starts": ("hyper", "random", "matched"),
    }
    return {
        "modalities": ("fundus",),
        "pretexts": ("rotation", "contrast"),
        "recipes": ("whole", "half"),
        "networks": {"choose": ("val:0",), "confirm": ("test:0", "test:1")},
        "seeds": {"choose": 1, "confirm": 2},
        "fractions": (0.05, 0.2),
        "hyper": {
            "data": {"patients": {"train": 60, "val": 80, "test": 40}, "size": 16},
            "optim": {"warmup_steps": 1},
            "train": {
                "steps": 6, "trials": 1, "validate_every": 3, "log_every": 2, "checkpoint_every": 3,
                "validation_networks": 1, "warm_up_signatures": 0,
                "probe": {"images": {"train": 96, "val": 96}},
            },
        },
        "downstream": {
            "choose": {**probe, "images": few, "budget": short},
            "confirm": {
                "seeds": 1,
                "starts": ("hyper", "random", "matched", "untrained", "rotnet"),
                "rotnet": {"images": 40, "epochs": 1},
                "images": few,
                "finetune_fractions": (0.2,),
                "lr_fractions": (0.2,),
                "learning_rates": (0.01,),
                "budget": {**short, "epochs": 3},
            },
        },
        "diagnostics": {"choose": {"networks": 0}, "confirm": {"networks": 2, "images": 64}},
        "segmentation": _segmentation(
            phantom=True, pixels=48, shares={"drive_seg": 0.3, "stare_seg": 0.6},
            models={"unet": {"width": 4}}, seeds={"choose": 1, "confirm": 2}, fractions=(0.2,),
            learning_rates=(0.003, 0.01),
            finetune={
                "data": {"size": 32},
                "train": {"epochs": 2, "validate_every": 1, "batch": 2, "devices": 1},
                "evaluate": {"resamples": 20},
            },
        ),
    }  # fmt: skip


def _phantom() -> dict:
    return {
        "modalities": PROBED,
        "pretexts": WITHOUT_LABELS,
        "recipes": tuple(RECIPES),
        "networks": {"choose": CHOOSE, "confirm": CONFIRM},
        "seeds": {"choose": 1, "confirm": 3},
        "fractions": (0.01, 0.05, 0.1, 0.2, 1.0),
        "hyper": {"train": {"steps": 2500}},
        "downstream": {
            "choose": {
                "seeds": 1, "judge": "val", "finetune": False,
                "starts": ("hyper", "random", "matched"), "images": {"train": 2000, "val": 800},
            },
            "confirm": {
                "seeds": 2,
                "starts": ("hyper", "random", "matched", "untrained", "rotnet"),
                "rotnet": {"images": 2000, "epochs": 4},
                "finetune_fractions": (0.1,),
                "lr_fractions": (0.1,),
                "learning_rates": (0.003, 0.01, 0.05),
                "grid_seeds": 1,
                # An epoch is one pass over the labeled images, however few they are.
                "budget": {"epochs": 20, "min_steps": 1},
            },
        },
        "diagnostics": {"choose": {"networks": 0}, "confirm": {"networks": 10}},
        "segmentation": _segmentation(phantom=True, pixels=128),
    }  # fmt: skip


def _real() -> dict:
    size = _phantom()
    size["hyper"]["data"] = {"source": "files", "labels": "folder", "size": 64}
    size["hyper"]["train"] |= {"steps": 20_000, "validate_every": 1000}
    # All images: those of a folder lie by class, so that the first ones are of one class.
    for phase in size["downstream"].values():
        phase["images"] = {"train": 0, "val": 0, "test": 0}
    photographs = {"normalization": "fundus", "fit": "fov"}
    size["hyper_of"] = {
        "fundus": {"data": photographs},
        "vessels": {"data": {**photographs, "labels": "none"}},
    }
    size["modalities"] = MODALITIES
    size["segmentation"] = _segmentation()
    return size
