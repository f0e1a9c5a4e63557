"""What the newest checkpoint of a run holds: its network, and the heads that pretraining used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medinit_jax.core.checkpoint import Checkpoints, Restored
from medinit_jax.core.errors import UsageError

CHECKPOINTS = "checkpoints"
# Of BYOL; the averaged network has none.
_PREDICTOR = "predictor"


class Beside(NamedTuple):
    """Heads on the features of an encoder, which only its pretraining used.

    Attributes:
        params: {module: {leaf: array}}.
        statistics: {"module.stats": {"mean" and "var": array}}.
        remark: What whoever uses the weights should know.
    """

    params: Mapping[str, Mapping[str, Any]]
    statistics: Mapping[str, Mapping[str, Any]]
    remark: str


NOTHING = Beside({}, {}, "")


def newest(folder: Path) -> tuple[Restored, dict[str, Any]]:
    """Returns the newest checkpoint of a folder, and its description of the network.

    Raises:
        UsageError: There is none, it is damaged, or does not say what network it is of.
    """
    checkpoints = Checkpoints(folder)
    try:
        held = checkpoints.read()
    finally:
        checkpoints.close()
    record = held.extra.get("model")
    if not isinstance(record, dict):
        raise UsageError(
            f"The checkpoint of step {held.step} in {folder} does not say what network it is of; "
            "let the run go on to its end, or name one that trained a network."
        )
    return held, record


def network_of(held: Restored, record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the arrays of a stopped run's network as `model/` would have them, and a remark."""
    if record.get("kind") != "encoder":
        part = held.state["best"]
        remark = (
            f"The run was stopped at step {held.step}; these are the weights that validated best "
            "until then."
        )
        return {"params": part["params"], "batch_stats": part["statistics"]}, remark
    params, statistics = _pretrained(held, record)
    tree = {"params": params["encoder"], "batch_stats": statistics.get("encoder", {})}
    return tree, f"The run was stopped; these are its weights after step {held.step}."


def heads_of_pretraining(
    workdir: Path, record: Mapping[str, Any], encoder: Mapping[str, Mapping[str, Any]]
) -> Beside:
    """Returns the heads that a pretraining used, from its newest checkpoint.

    Args:
        workdir: Of the pretraining.
        record: What `model.json` or the checkpoint says of the encoder.
        encoder: Its parameters {module: {leaf: array}}; the heads belong to no other.

    Returns:
        The heads, those of the network that was exported: the teacher's have no predictor. Without
        arrays where the checkpoints are gone, or are of another encoder.

    Raises:
        UsageError: The checkpoint is damaged.
    """
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        return Beside({}, {}, f"The heads of its pretraining are not here: {folder} is missing.")
    held, _ = newest(folder)
    params, statistics = _pretrained(held, record)
    if not _same(params["encoder"], encoder):
        remark = (
            f"The heads of its pretraining are not here: step {held.step} in {folder} is of other "
            "weights."
        )
        return Beside({}, {}, remark)
    gone = {_PREDICTOR} if record.get("export") == "teacher" else set()
    heads, moved = (
        {
            module: leaves
            for name, modules in tree.get("heads", {}).items()
            if name not in gone
            for module, leaves in modules.items()
        }
        for tree in (params, statistics)
    )
    remark = f"{', '.join(heads)} are heads of its pretraining, which its features do not need."
    return Beside(heads, moved, remark)


def _pretrained(held: Restored, record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns parameters and statistics, {"encoder" and "heads"}, of the network to export."""
    if record.get("export") == "teacher":
        return held.state["target"]["params"], held.state["target"]["statistics"]
    return held.state["train"]["params"], held.state["statistics"]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
