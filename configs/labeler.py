"""The labeler of SWCL: normal or abnormal eyes, from labelled and unlabelled photographs.

    python -m medinit_jax.main --config=configs/labeler.py
    python -m medinit_jax.main --config=configs/labeler.py:phantom

The settings are those of the paper (arXiv 2108.02122) and its code: a ResNet-34 whose last stage
does not stride (maps of 28 x 28 at 448 px), from scratch; per update 4 parts of 64 labelled and 64
unlabelled images, each seen 4 times at 384 px; Nesterov SGD, 0.03, a tenth after epochs 140, 160
and 180 of 200. Labelled: OIA-ODIR, judged on its off-site images; unlabelled: EyePACS. The paper
reaches an AUC of 0.72.

Hardware and time: made for 8 GPUs; not run by us. `phantom` (ResNet-18 of width 16, drawn images of
64 px) takes minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import beside, unknown_variant


def get_config(variant: str = "paper") -> ConfigDict:
    """Returns the labeler; see the head of this file."""
    if variant not in ("paper", "phantom"):
        raise unknown_variant(variant, ("paper", "phantom"))
    config = beside(__file__, "finetune").get_config("medinit_oia_odir/default").unlock()
    config.route = "labeler"
    config.labels = "abnormal"
    config.metric = "AUC"
    config.model.name = "resnet34"
    config.model.last_stride = 1
    config.data.recipe = "labeler384"
    config.protocol.validation = 0.1
    config.train.update({"epochs": 200, "batch": 256, "accumulate": 4, "validate_every": 5})
    config.optim.update(
        {
            "learning_rate": 0.03,
            "weight_decay": 1e-3,
            "nesterov": True,
            "schedule": "step",
            # In epochs, unlike those of a fine-tuning.
            "milestones": (140, 160, 180),
        }
    )
    config.s4l = ConfigDict(
        {
            # Prepared sets, separated by commas; "NAME:SPLIT" for one split only.
            "sets": "medinit_eyepacs/pretrain448",
            "unlabelled_batch": 256,
            "views": 4,
            # semi_hard (squared distances, as the code has it), batch_hard_hinge or
            # batch_hard_softplus.
            "triplet": "semi_hard",
            "margin": 0.5,
            "weight": 1.0,
        }
    )
    if variant == "phantom":
        _phantom(config)
    return config.lock()


def _phantom(config: ConfigDict) -> None:
    config.task = "phantom_odir_64px"
    config.s4l.sets = "phantom_eyepacs_dr_64px_x0.3"
    config.s4l.unlabelled_batch = 32
    config.model.name = "resnet18"
    config.model.width = 16
    # Kept and judged at 64 px, seen at 55 in training, as 448 and 384.
    config.data.size = 55
    config.train.update({"epochs": 20, "batch": 32, "accumulate": 1, "validate_every": 2})
    config.optim.milestones = (14, 16, 18)
