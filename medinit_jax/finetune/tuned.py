"""What a fine-tuning left in `model/`, read again and checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import KINDS, load_params
from medinit_jax.downstream.heads import Head, width
from medinit_jax.finetune.network import make_network
from medinit_jax.finetune.recipes import Plan, make_plan
from medinit_jax.finetune.starts import MODEL_FOLDER
from medinit_jax.models.network import Network

_TASKS = ("classification", "segmentation")
_HEADS = ("softmax", "sigmoid")
# Keys of `model.json`; those of `model` that are not there are left to the network's builder.
_KEYS: dict[str, type] = {
    "task": str,
    "kind": str,
    "modality": str,
    "size": int,
    "heads": list,
    "start": dict,
    "model": dict,
    "model.name": str,
    "data": dict,
    "data.recipe": str,
    "data.normalization": str,
    "data.target": str,
}
_OPTIONS: dict[str, type] = {
    "model.stem": str,
    "model.width": int,
    "model.norm": str,
    "model.output_stride": int,
    "model.last_stride": int,
    "model.decoder": str,
}
_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


class Model(NamedTuple):
    """A fine-tuned network and all that its use needs.

    Attributes:
        network: The network.
        params: Its parameters.
        statistics: Its batch statistics.
        heads: What it predicts.
        plan: How images become what it sees.
        kind: "classification" or "segmentation".
        record: What `model.json` holds.
    """

    network: Network
    params: Any
    statistics: Any
    heads: tuple[Head, ...]
    plan: Plan
    kind: str
    record: dict[str, Any]


def load_model(path: str | Path) -> Model:
    """Loads what a fine-tuning left in `model/`.

    Args:
        path: The fine-tuning's workdir, or its `model/` folder.

    Raises:
        UsageError: There is none, or it is damaged, or `model.json` lacks a key or has another type
            under it.
    """
    folder = Path(path)
    if (folder / MODEL_FOLDER).is_dir():
        folder = folder / MODEL_FOLDER
    return model_of(*load_params(folder, "model"), folder / KINDS["model"])


def model_of(tree: Mapping[str, Any], record: Any, file: Path) -> Model:
    """Makes a model of arrays and what is recorded of them.

    Args:
        tree: "params" {module: {leaf: array}}, and "batch_stats" where the network has some.
        record: What `model.json` holds under metadata.
        file: Where it was read, for errors.

    Raises:
        UsageError: As those of `load_model`.
    """
    heads = _checked(record, file)
    if "params" not in tree:
        raise UsageError(f"{file.parent} holds no parameters; fetch the model again.")
    data = record["data"]
    try:
        network = make_network(record["model"], record["size"], width(heads), record["kind"])
        plan = make_plan(
            data["recipe"],
            record["kind"],
            record["modality"],
            record["size"],
            data["normalization"],
            any(head.name == "cup" for head in heads),
            data["target"] == "rotation",
        )
    except UsageError as error:
        raise UsageError(f"{file} describes no network that can be built here: {error}") from error
    statistics = tree.get("batch_stats", {})
    return Model(network, tree["params"], statistics, heads, plan, record["kind"], record)


def _checked(record: Any, file: Path) -> tuple[Head, ...]:
    """Returns the heads of what `model.json` holds, all of whose keys are as they have to be."""
    if not isinstance(record, dict):
        raise UsageError(f"{file} holds no object under metadata; fetch the model again.")
    if record.get("kind") == "encoder":
        raise UsageError(
            f"{file} describes a pretrained encoder, which predicts nothing; fine-tune it first "
            "with --config.init.start=encoder."
        )
    for key, kind in _KEYS.items():
        _require(record, key, kind, file)
    for key, kind in _OPTIONS.items():
        if key.split(".")[1] in record["model"]:
            _require(record, key, kind, file)
    _require_one_of(record["kind"], _TASKS, "kind", file)
    if not record["heads"]:
        raise UsageError(f"{file} has an empty list under heads; fetch the model again.")
    heads = []
    for number, head in enumerate(record["heads"]):
        place = f"heads[{number}]"
        if not isinstance(head, dict):
            raise _wrong(head, dict, place, file)
        for key, kind in {"name": str, "classes": list, "kind": str}.items():
            _require(head, key, kind, file, f"{place}.")
        for index, name in enumerate(head["classes"]):
            if not isinstance(name, str):
                raise _wrong(name, str, f"{place}.classes[{index}]", file)
        _require_one_of(head["kind"], _HEADS, f"{place}.kind", file)
        heads.append(Head(head["name"], tuple(head["classes"]), head["kind"]))
    return tuple(heads)


def _require(held: Mapping[str, Any], key: str, kind: type, file: Path, above: str = "") -> None:
    """Raises UsageError unless a key, of which dots part the levels, is there with its type."""
    value: Any = held
    for name in key.split("."):
        if name not in value:
            raise UsageError(f"{file} has no key {above}{key}; fetch the model again.")
        value = value[name]
    # True is an int to Python.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _wrong(value, kind, above + key, file)


def _require_one_of(value: str, known: tuple[str, ...], key: str, file: Path) -> None:
    if value not in known:
        raise UsageError(
            f"{file} holds {value!r} under {key}, which is none of {', '.join(known)}; fetch the "
            "model again."
        )


def _wrong(value: Any, kind: type, key: str, file: Path) -> UsageError:
    return UsageError(
        f"{file} holds {str(value)[:40]!r} under {key}, where {_NAMES[kind]} belongs; fetch the "
        "model again."
    )
