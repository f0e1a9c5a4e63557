"""Studies: the tables and figures of the papers, run by plan.

    python -m medinit_jax.main --config=configs/study.py:hyper_table2
    python -m medinit_jax.main --config=configs/study.py:hyper_fig2 --config.size=phantom

Of the hyper-initializer paper (arXiv 2206.03661): `hyper_table2` (six tasks, five networks),
`hyper_fig2` (share of the labels), `hyper_fig3` (class activation maps by epoch), `hyper_fig4`
(convergence). Of SWCL's (arXiv 2108.02122): `swcl_table2`, `swcl_table3`, `swcl_compare`, see
`configs/swcl_study.py`. `pretexts`: which pretext carries over, see `configs/pretext_study.py`.
`--config.size`: `mini` runs in minutes on 2 CPU cores and shows that all
works, no more; `phantom` takes the drawn twins in full; `real` takes the prepared sets at the
paper's size, is meant for accelerators, and was not run by us.

The initializer of each modality is a job of its own, as is every fine-tuning; jobs lie in
`config.jobs_dir` and are shared by all studies. The same command goes on where it stopped. On more
machines: the same command on each, with `--workdir` and `config.jobs_dir` on storage that they
share (docs/scaling.md); or `--config.runner=ray` (pip install 'medinit_jax[ray]'), `slurm` or
`commands`.
"""

from ml_collections import ConfigDict, config_dict

from medinit_jax.core.config import beside, unknown_variant

STUDIES = ("hyper_table2", "hyper_fig2", "hyper_fig3", "hyper_fig4")
TASKS = ("eyepacs_dr", "aptos_dr", "refuge2_seg", "drive_seg", "rsna_ihd", "rsna_cxr")
ENCODERS = ("resnet18", "resnet50", "resnet101", "regnet_y_1_6gf")
MODALITIES = ("fundus", "ct", "xray")


def get_config(study: str = "hyper_table2") -> ConfigDict:
    """Returns a study; see the head of this file."""
    of_swcl = beside(__file__, "swcl_study")
    if study in of_swcl.STUDIES:
        return of_swcl.get_config(study).lock()
    of_pretexts = beside(__file__, "pretext_study")
    if study in of_pretexts.STUDIES:
        return of_pretexts.get_config(study).lock()
    if study not in STUDIES:
        raise unknown_variant(study, (*STUDIES, *of_swcl.STUDIES, *of_pretexts.STUDIES))
    # hyper, random, matched, untrained; also rotnet (the network pretrained alone on rotation),
    # imagenet (weights from config.imagenet), probe (predicted parameters frozen).
    starts = ("hyper", "random", "matched", "untrained")
    config = head(study, starts, ENCODERS, TASKS[0])
    # size=real: a folder with all images per modality, in the place of the training images of
    # EyePACS, RSNA-IHD and RSNA-CXR. The paper trains on all images, evaluation images included.
    config.images = ConfigDict(dict.fromkeys(MODALITIES, ""))
    config.include_eval_images = False
    config.base = ConfigDict(
        {
            "finetune": {task: _variant("finetune", task) for task in TASKS},
            "hyper": {modality: _initializer(modality) for modality in MODALITIES},
        }
    )
    config.sizes = ConfigDict({"mini": _mini(), "phantom": _phantom(), "real": _real()})
    if study == "hyper_fig2":
        config.starts = ("hyper", "random", "matched")
    if study == "hyper_fig3":
        _maps(config)
    if study == "hyper_fig4":
        config.sizes.mini.finetune.train.epochs = 6
    return config.lock()


def head(study: str, starts: tuple[str, ...], encoders: tuple[str, ...], task: str) -> ConfigDict:
    """Returns what all studies have; `base`, the runs that they are made of, and `sizes` are left.

    Args:
        study: Its name.
        starts: What is compared.
        encoders: Networks of which a file of ImageNet weights may be given.
        task: One of its tasks.
    """
    config = ConfigDict()
    config.route = "study"
    config.study = study
    config.size = "mini"
    config.note = ""
    config.cache_dir = ""
    config.jobs_dir = "runs/jobs"
    # local, ray, slurm or commands; one job alone: its id.
    config.runner = "local"
    config.ray_cores = 1.0
    config.only = ""
    # Whether a plan that has changed replaces the one in the workdir.
    config.fresh = False
    config.first_seed = 42
    config.starts = starts
    config.imagenet = ConfigDict(dict.fromkeys(encoders, ""))
    # Over label fractions: the same number of epochs, or of steps.
    config.budget = "epochs"
    # Changes of every fine-tuning, such as --config.finetune.train.epochs=5; None changes nothing.
    config.finetune = unset(_variant("finetune", task), ("data", "train", "optim", "evaluate"))
    return config


def _variant(name: str, variant: str) -> dict:
    """Returns the configuration of a file in this folder."""
    return beside(__file__, name).get_config(variant).to_dict()


def unset(config: dict, parts: tuple[str, ...]) -> ConfigDict:
    """Returns a place without a value for each setting of these parts of a run."""

    def empty(value):
        if isinstance(value, dict):
            return {key: empty(held) for key, held in value.items()}
        return config_dict.placeholder(type(value))

    return ConfigDict({part: empty(config[part]) for part in parts})


def _initializer(modality: str) -> dict:
    config = _variant("hyper", "")
    config["note"] = ""
    # Starts of the paper: rotation alone, and no label decides.
    config["pretext"]["name"], config["hyper"]["tiling"] = "rotation", "repeat"
    config["train"] |= {"select": "last", "trials": 1}
    config["data"]["name"] = modality
    if modality != "fundus":
        config["data"]["augment"]["normalize_laterality"] = False
    return config


def _mini() -> dict:
    return {
        "phantom": True,
        "pixels": 32,
        "shares": {
            "eyepacs_dr": 0.05,
            "aptos_dr": 0.2,
            "refuge2_seg": 0.1,
            "rsna_ihd": 0.06,
            "rsna_cxr": 0.15,
        },
        "seeds": 2,
        "learning_rates": (0.01,),
        "weight_decays": (1e-4,),
        "fractions": (0.25, 1.0),
        "models": {"unet": {"width": 8}},
        "hyper": {
            "data": {"patients": {"train": 300, "val": 40, "test": 40}},
            "train": {"steps": 200, "validate_every": 0, "log_every": 50, "checkpoint_every": 100},
        },
        "finetune": {
            "data": {"size": 32},
            "train": {"epochs": 3, "batch": 16, "recalibrate_batches": 4, "devices": 1},
            "evaluate": {"batch": 32, "resamples": 200},
        },
        "classification": {"model": {"stem": "imagenet"}},
        "segmentation": {"train": {"batch": 4}},
    }


def _phantom() -> dict:
    return {
        "phantom": True,
        "pixels": 128,
        "shares": {},
        "seeds": 3,
        "learning_rates": (0.003, 0.01, 0.05),
        "weight_decays": (1e-4,),
        "fractions": (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
        "models": {"unet": {"width": 16}},
        "hyper": {"train": {"steps": 1200}},
        "finetune": {"data": {"size": 128}, "train": {"epochs": 20}},
        "classification": {"model": {"stem": "imagenet"}},
        "segmentation": {"train": {"batch": 4, "epochs": 60, "validate_every": 5}},
    }


def _real() -> dict:
    return {
        "phantom": False,
        "pixels": 512,
        "shares": {},
        "seeds": 3,
        "learning_rates": (0.003, 0.01, 0.05),
        "weight_decays": (1e-4,),
        "fractions": (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
        "models": {},
        "hyper": {
            "space": "deepnets",
            "data": {"source": "prepared", "size": 224, "workers": 8},
            "hyper": {"max_shape": (64, 64, 11, 11)},
            "optim": {"warmup_steps": 4000},
            "pretext": {"mode": "four"},
            "train": {
                "steps": 109_000,
                "meta_batch": 8,
                "batch_size": 64,
                "bn_group": 16,
                "first_architectures": 0,
                "validate_every": 2000,
            },
        },
        "finetune": {},
        "classification": {},
        "segmentation": {},
    }


def _maps(config: ConfigDict) -> None:
    """Figure 3: maps after the epochs that the paper shows, from two starts, one seed."""
    config.starts = ("hyper", "random")
    for name, size in config.sizes.items():
        size.seeds = 1
        # Drift is measured against the last epoch, so it has a map too.
        epochs = 50 if name == "real" else 20
        maps = {"cam_epochs": tuple(sorted({1, 3, 5, 10, 20, epochs}))}
        size.finetune.update({"train": {"epochs": epochs}, "evaluate": maps})
    # Maps of one pixel show nothing.
    config.sizes.mini.pixels = 96
    config.sizes.mini.finetune.data.size = 96
    config.sizes.mini.shares = ConfigDict({"eyepacs_dr": 0.02, "rsna_ihd": 0.03, "rsna_cxr": 0.07})
