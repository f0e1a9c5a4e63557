"""The studies of SWCL's paper (arXiv 2108.02122); run through `configs/study.py` or `swcl.py`.

    python -m medinit_jax.main --config=configs/study.py:swcl_table2
    python -m medinit_jax.main --config=configs/study.py:swcl_table3 --config.size=phantom
    python -m medinit_jax.main --config=configs/swcl.py:phantom

`swcl_table2`: seven tasks from eleven starts. `swcl_table3`: REFUGE-cls from SWCL with other
thresholds and labels taken away. `swcl_compare`: glaucoma and retinopathy with a tenth of the
labels, from SWCL, SimCLR, CE-multitask, SWCL-image and random initialization. `swcl_chain`: one
task from SWCL and random (that is `configs/swcl.py:chain`, and at size mini `:phantom`).

Labeler, patches and encoders are jobs, trained once with the first seed; sizes as in `study.py`.
BiT and ImageNet weights come from files: `--config.bit_s=BiT-S-R50x1.npz`, `--config.bit_m=...`,
`--config.imagenet.resnet18=FILE`, or `=torchvision` for what that has downloaded before; without
them their cells say so.
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import beside, unknown_variant

STUDIES = ("swcl_table2", "swcl_table3", "swcl_compare", "swcl_chain")
TASKS = (
    "messidor", "idrid", "refuge_cls", "drive_seg", "chase_seg", "stare_seg", "refuge_seg",
    "aptos_dr",
)  # fmt: skip
TABLE2 = (
    "random", "simclr", "byol", "dino", "odir", "eyepacs", "bit_s", "bit_m", "multitask",
    "swcl_image", "swcl",
)  # fmt: skip
TABLE3 = (
    "random", "imagenet", "swcl_t03", "swcl", "swcl_t05", "swcl_no_position",
    "swcl_no_abnormality", "swcl_no_patient", "swcl_only_patient", "swcl_only_abnormality",
    "swcl_only_position",
)  # fmt: skip
STARTS = {
    "swcl_table2": TABLE2,
    "swcl_table3": TABLE3,
    "swcl_compare": ("swcl", "random", "simclr", "multitask", "swcl_image"),
    "swcl_chain": ("swcl", "random"),
}
ENCODERS = ("resnet18", "resnetv2_50x1_bit")
METHODS = ("swcl", "swcl_image", "multitask", "simclr", "byol", "dino", "dino_official")


def get_config(study: str) -> ConfigDict:
    """Returns a study; see the head of this file."""
    if study not in STUDIES:
        raise unknown_variant(study, STUDIES)
    config = beside(__file__, "study").head(study, STARTS[study], ENCODERS, TASKS[0])
    # Of swcl_chain.
    config.task = "refuge_cls"
    config.bit_s = ""
    config.bit_m = ""
    config.base = ConfigDict(
        {
            "finetune": {task: _finetune(task) for task in TASKS},
            "labeler": _variant("labeler", "paper"),
            "patches": _variant("patches", ""),
            "swcl": {method: _variant("swcl", method) for method in METHODS},
            "supervised": {
                "odir": _supervised("medinit_oia_odir/default", 100),
                "eyepacs": _supervised("medinit_eyepacs/pretrain448", 40),
            },
        }
    )
    config.sizes = ConfigDict({"mini": _mini(), "phantom": _phantom(), "real": _real()})
    if study == "swcl_table3":
        # The ablation of the paper: a ResNet-18, batches of 512.
        config.sizes.real.swcl = ConfigDict({"train": {"batch": 512}})
    if study == "swcl_compare":
        for size in config.sizes.values():
            size.seeds, size.fractions, size.shares = 3, (0.1,), ConfigDict()
        config.sizes.mini.swcl.train.steps = 640
        # A tenth of the labels makes few updates an epoch.
        config.sizes.mini.classification.train.update({"epochs": 40, "validate_every": 5})
    return config


def _finetune(task: str) -> dict:
    """Returns the fine-tuning of a task; DRIVE as in the paper of these tables, not in the first's.

    `aptos_dr` is no task of that paper, and keeps the first's.
    """
    finetune = beside(__file__, "finetune")
    config = finetune.get_config(task).unlock()
    if task == "drive_seg":
        finetune.second_paper(config, segmentation=True)
    return config.to_dict()


def _supervised(task: str, epochs: int) -> dict:
    """Returns a network that learns normal and abnormal eyes; all numbers are our choice."""
    config = _variant("finetune", task)
    config["labels"], config["metric"] = "abnormal", "AUC"
    config["data"]["recipe"] = "sup_pre"
    config["train"] |= {"epochs": epochs, "batch": 64}
    config["optim"] |= {
        "name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4, "schedule": "cosine",
    }  # fmt: skip
    return config


def _drawn(pixels: int) -> dict:
    """Returns the sets that labeler, patches and encoders see, drawn at a size."""
    odir, eyepacs = f"phantom_odir_{pixels}px", f"phantom_eyepacs_dr_{pixels}px_x0.25"
    seen = round(pixels * 384 / 448)
    whole = {"sets": f"{odir},{eyepacs}", "image_size": pixels}
    return {
        "phantom": True,
        "pixels": pixels,
        "labeler": {"task": odir, "s4l": {"sets": eyepacs}, "data": {"size": seen}},
        "patches": {
            "labelled": odir, "unlabelled": eyepacs, "image_size": pixels, "crop": pixels // 2,
        },
        "swcl": {"data": {"size": pixels // 2}},
        "whole": {"data": whole},
        "supervised": {"data": {"size": pixels}},
        "supervised_on": {"odir": {"task": odir}, "eyepacs": {"task": eyepacs}},
    }  # fmt: skip


def _mini() -> dict:
    config = _drawn(64)
    small = {"stem": "imagenet", "width": 16}
    config |= {
        "encoder": "resnet18",
        "encoders": {"resnet18": small},
        "models": {"resnet18": small, "deeplabv3plus_resnet18": small},
        "shares": {"messidor": 0.3, "idrid": 0.5, "refuge_cls": 0.3, "refuge_seg": 0.1,
                   "aptos_dr": 0.5},
        "folds": {"messidor": (0, 1)},
        "seeds": 2,
        "learning_rates": (0.03,),
        "weight_decays": (1e-4,),
        "fractions": (1.0,),
        "hyper": {},
        "methods": {},
        "finetune": {
            "train": {"recalibrate_batches": 4, "devices": 1, "patience": 0},
            "evaluate": {"batch": 32, "resamples": 200},
        },
        "classification": {
            "data": {"size": 64},
            "train": {"epochs": 4, "batch": 16, "validate_every": 2},
        },
        "segmentation": {
            "data": {"size": 48},
            # So few updates find nothing but background without weights.
            "train": {"steps": 60, "batch": 4, "validate_every": 5, "class_weights": "balanced"},
        },
    }  # fmt: skip
    config["labeler"] |= {
        "model": {"name": "resnet18", **small},
        "s4l": {**config["labeler"]["s4l"], "unlabelled_batch": 32},
        "train": {"epochs": 12, "batch": 32, "accumulate": 1, "validate_every": 2, "devices": 1},
        "optim": {"milestones": (8, 10, 11)},
    }
    config["swcl"] |= {
        # As many updates for every method, as in the paper (39,800).
        "train": {"steps": 160, "batch": 128, "log_every": 20, "checkpoint_every": 100},
        "optim": {"warmup_epochs": 0.5},
    }
    config["supervised"] |= {"train": {"epochs": 4, "batch": 32, "devices": 1}}
    return config


def _phantom() -> dict:
    config = _mini()
    drawn = _drawn(128)
    for part in ("labeler", "patches", "swcl", "whole"):
        for key, value in drawn[part].items():
            config[part][key] = (
                {**config[part].get(key, {}), **value} if isinstance(value, dict) else value
            )
    config["swcl"]["train"] = {**config["swcl"]["train"], "steps": 4000}
    config["supervised"]["data"] = {"size": 128}
    config |= {
        "supervised_on": drawn["supervised_on"],
        "pixels": 128,
        "shares": {},
        "folds": {"messidor": (0, 1, 2, 3, 4)},
        "seeds": 3,
        "learning_rates": (0.01, 0.03, 0.1),
        "encoders": {"resnet18": {"stem": "imagenet", "width": 0}},
        "models": {},
    }
    config["classification"] = {
        "data": {"size": 128},
        "train": {"epochs": 30, "batch": 16, "validate_every": 2},
        "model": {"stem": "imagenet"},
    }
    config["segmentation"] = {
        "data": {"size": 96},
        "train": {"epochs": 60, "batch": 4, "validate_every": 5},
    }
    return config


def _real() -> dict:
    odir, eyepacs = "medinit_oia_odir/default", "medinit_eyepacs/pretrain448"
    return {
        "phantom": False,
        "pixels": 448,
        "encoder": "resnetv2_50x1_bit",
        "encoders": {},
        "models": {},
        "shares": {},
        "folds": {"messidor": (0, 1, 2, 3, 4)},
        "seeds": 5,
        "learning_rates": (0.3, 0.1, 0.03, 0.01, 0.003),
        "weight_decays": (1e-3, 5e-4, 1e-4, 1e-5),
        "fractions": (1.0,),
        "hyper": {},
        "labeler": {},
        "patches": {"labelled": odir, "unlabelled": eyepacs},
        "swcl": {},
        "whole": {"data": {"sets": f"{odir},{eyepacs}"}},
        "methods": {},
        "supervised": {},
        "supervised_on": {"odir": {}, "eyepacs": {}},
        "finetune": {},
        "classification": {},
        "segmentation": {},
    }


def _variant(name: str, variant: str) -> dict:
    return beside(__file__, name).get_config(variant).to_dict()
