"""The starts of SWCL's paper: labeler, patches and encoders as jobs, each trained once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medinit_jax.models.zoo import encoder_of
from medinit_jax.study.hyper_starts import IMAGENET
from medinit_jax.study.job import REFERENCE, Job
from medinit_jax.study.plan import Cell, Plan, Rule, plain, update


def labeler(plan: Plan) -> Job:
    """Returns the job that trains the labeler."""
    config = plain(plan.config.base.labeler)
    update(config, plain(plan.size.labeler))
    config["seed"] = plan.config.first_seed
    return Job("labeler", "labeler", config, _facts("labeler"))


def patches(plan: Plan) -> Job:
    """Returns the job that scores and cuts patches by the labeler."""
    config = plain(plan.config.base.patches)
    update(config, plain(plan.size.patches))
    own = labeler(plan)
    config["labeler"] = f"{REFERENCE}{own.id}"
    # In the job's own folder: a labeler that is trained again gives other patches.
    config["layout"] = "workdir"
    return Job("patches", "patches", config, _facts("patches"))


def encoder(plan: Plan, cell: Cell, method: str, loss: Mapping[str, Any]) -> Job:
    """Returns the job that pretrains the encoder of a cell's network.

    Args:
        plan: The study.
        cell: The cell.
        method: As `configs/swcl.py` names it.
        loss: Other settings of the loss.
    """
    config = plain(plan.config.base.swcl[method])
    update(config, plain(plan.size.swcl))
    if not _takes_patches(method):
        update(config, plain(plan.size.whole))
    update(config, plain(plan.size.methods.get(method, {})))
    update(config["loss"], loss)
    name = encoder_of(cell.model)
    config["model"]["name"] = name
    update(config["model"], plain(plan.size.encoders.get(name, {})))
    config["seed"] = plan.config.first_seed
    config["init"]["start"] = _drawn(cell)
    if _takes_patches(method):
        config["data"]["patches"] = f"{REFERENCE}{patches(plan).id}"
    facts = {**_facts(cell.start), "model": name}
    return Job("swcl", f"{cell.start} {name}", config, facts)


def supervised(plan: Plan, cell: Cell, which: str) -> Job:
    """Returns the job that trains the encoder of a cell's network on the labels of a set.

    Args:
        plan: The study.
        cell: The cell.
        which: "odir" or "eyepacs".
    """
    config = plain(plan.config.base.supervised[which])
    update(config, plain(plan.size.supervised))
    update(config, plain(plan.size.supervised_on[which]))
    name = encoder_of(cell.model)
    config["model"]["name"] = name
    update(config["model"], plain(plan.size.encoders.get(name, {})))
    config["seed"] = plan.config.first_seed
    config["init"]["start"] = _drawn(cell)
    return Job("finetune", f"{which} {name}", config, {**_facts(which), "model": name})


def _drawn(cell: Cell) -> str:
    """Returns the random start of a cell's encoder: SWCL's code leaves BiT as PyTorch starts it."""
    return "torch_default" if encoder_of(cell.model).endswith("_bit") else "random"


def _takes_patches(method: str) -> bool:
    return method in ("swcl", "swcl_image", "multitask")


def _facts(start: str) -> dict[str, Any]:
    return {"role": "pretraining", "start": start, "task": "", "model": ""}


def _from(ids: list[str]) -> dict[str, Any]:
    return {"init": {"start": "encoder", "path": f"{REFERENCE}{ids[-1]}"}}


def _pretrained(method: str, **loss: Any) -> Rule:
    def jobs(plan: Plan, cell: Cell) -> list[Job]:
        own = encoder(plan, cell, method, loss)
        return [labeler(plan), patches(plan), own] if _takes_patches(method) else [own]

    return Rule(lambda plan, cell: "", jobs, lambda plan, cell, ids: _from(ids))


def _labelled(which: str) -> Rule:
    return Rule(
        lambda plan, cell: "",
        lambda plan, cell: [supervised(plan, cell, which)],
        lambda plan, cell, ids: _from(ids),
    )


def _bit(which: str) -> Rule:
    def absent(plan: Plan, cell: Cell) -> str:
        if encoder_of(cell.model) != "resnetv2_50x1_bit":
            return f"BiT weights fit resnetv2_50x1_bit, not {encoder_of(cell.model)}"
        if not plan.config[which]:
            return f"no file was given with config.{which}"
        return ""

    return Rule(
        absent,
        lambda plan, cell: [],
        lambda plan, cell, ids: {"init": {"start": "bit", "path": plan.config[which]}},
    )


def _random(plan: Plan, cell: Cell, ids: list[str]) -> dict[str, Any]:
    del plan, ids
    return {"init": {"start": _drawn(cell), "path": ""}}


RULES: dict[str, Rule] = {
    "random": Rule(lambda plan, cell: "", lambda plan, cell: [], _random),
    "imagenet": IMAGENET,
    "simclr": _pretrained("simclr"),
    "byol": _pretrained("byol"),
    "dino": _pretrained("dino"),
    "dino_official": _pretrained("dino_official"),
    "odir": _labelled("odir"),
    "eyepacs": _labelled("eyepacs"),
    "bit_s": _bit("bit_s"),
    "bit_m": _bit("bit_m"),
    "multitask": _pretrained("multitask"),
    "swcl_image": _pretrained("swcl_image"),
    "swcl": _pretrained("swcl"),
    "swcl_t03": _pretrained("swcl", threshold=0.3),
    "swcl_t05": _pretrained("swcl", threshold=0.5),
    "swcl_no_position": _pretrained("swcl", scheme="abnormality-patient"),
    "swcl_no_abnormality": _pretrained("swcl", scheme="position-patient"),
    "swcl_no_patient": _pretrained("swcl", scheme="position-abnormality"),
    "swcl_only_patient": _pretrained("swcl", scheme="patient"),
    "swcl_only_abnormality": _pretrained("swcl", scheme="abnormality"),
    "swcl_only_position": _pretrained("swcl", scheme="position"),
}
