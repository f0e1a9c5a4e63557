"""The starts of the hyper-initializer paper: what is trained for each, what a run takes of it."""

from __future__ import annotations

from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.study.job import REFERENCE, Job
from medinit_jax.study.plan import Cell, Plan, Rule, plain, update

MODALITIES = {"fundus": "fundus", "CT": "ct", "X-ray": "xray"}
# Whose training images an initializer sees at size "real", unless a folder is named.
PRETRAINING = {"fundus": "eyepacs_dr", "ct": "rsna_ihd", "xray": "rsna_cxr"}


def initializer(plan: Plan, modality: str) -> Job:
    """Returns the job that trains the initializer of a modality.

    Raises:
        UsageError: Evaluation images are wanted, but no folder holds them.
    """
    config = plain(plan.config.base.hyper[modality])
    update(config, plain(plan.size.hyper))
    config["stages"] = ["train"]
    config["seed"] = plan.config.first_seed
    folder = plan.config.images[modality]
    if plan.config.size == "real":
        config["data"]["name"] = PRETRAINING[modality]
        if folder:
            config["data"] |= {"source": "folder", "path": folder}
        elif plan.config.include_eval_images:
            raise UsageError(
                f"config.include_eval_images=True needs a folder with all images: set "
                f"config.images.{modality}."
            )
    facts = {"role": "initializer", "start": "hyper", "task": modality, "model": ""}
    return Job("hyper", f"initializer {modality}", config, facts)


def rotation(plan: Plan, cell: Cell) -> Job:
    """Returns the job that trains the cell's network alone on rotation."""
    config = plan.finetune(cell._replace(start="random", fraction=1.0), plan.seeds[0])
    config["data"]["target"] = "rotation"
    config["evaluate"]["cam_epochs"] = []
    facts = {"role": "rotnet", "start": "rotnet", "task": cell.task, "model": cell.model}
    return Job("finetune", f"rotnet {cell.task} {cell.model}", config, facts)


def _modality(cell: Cell) -> str:
    return MODALITIES[TASKS[cell.task].modality]


def _without_initializer(plan: Plan, cell: Cell) -> str:
    if _modality(cell) in plan.config.base.hyper:
        return ""
    return f"config.base.hyper has no initializer for {_modality(cell)}"


def _hyper(start: str, **train: Any) -> Rule:
    def changes(plan: Plan, cell: Cell, ids: list[str]) -> dict[str, Any]:
        del plan, cell
        init = {"start": start, "path": f"{REFERENCE}{ids[-1]}", "unknown_types": "nearest"}
        return {"init": init, "train": train}

    def jobs(plan: Plan, cell: Cell) -> list[Job]:
        return [initializer(plan, _modality(cell))]

    return Rule(_without_initializer, jobs, changes)


def _without_weights(plan: Plan, cell: Cell) -> str:
    if plan.config.imagenet.get(cell.model):
        return ""
    return f"no weights were given with config.imagenet.{cell.model}"


def _segments(plan: Plan, cell: Cell) -> str:
    del plan
    if TASKS[cell.task].kind == "segmentation":
        return "rotation is learned by classifiers; this network segments"
    return ""


RANDOM = Rule(
    lambda plan, cell: "",
    lambda plan, cell: [],
    lambda plan, cell, ids: {"init": {"start": "random", "path": ""}},
)
IMAGENET = Rule(
    _without_weights,
    lambda plan, cell: [],
    lambda plan, cell, ids: {
        "init": {"start": "imagenet", "path": plan.config.imagenet[cell.model]}
    },
)
RULES: dict[str, Rule] = {
    "hyper": _hyper("hyper"),
    "random": RANDOM,
    "matched": _hyper("matched"),
    "untrained": _hyper("untrained"),
    "rotnet": Rule(
        _segments,
        lambda plan, cell: [rotation(plan, cell)],
        lambda plan, cell, ids: {
            "init": {
                "start": "encoder",
                "path": f"{REFERENCE}{ids[-1]}",
                "unknown_types": "nearest",
            }
        },
    ),
    "imagenet": IMAGENET,
    "probe": _hyper("hyper", freeze="encoder"),
}
