"""`card.json`: all that is known of exported weights; what nobody recorded is "not recorded"."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from medinit_jax.core.provenance import code_version
from medinit_jax.interop.counterparts import Counterpart
from medinit_jax.interop.origin import Origin
from medinit_jax.interop.preprocessing import UNKNOWN

FORMAT = "medinit_jax export 1"
CARD = "card.json"
# Of a fine-tuning's configuration, what the rest of the card does not tell.
_TRAINING = ("protocol", "train", "optim", "data", "init", "s4l", "loss", "seed", "method", "space")


def make_card(
    origin: Origin,
    layout: str,
    files: Mapping[str, Mapping[str, Any]],
    proof: Mapping[str, Any],
    loading: Mapping[str, Sequence[str]],
    remarks: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """Returns the card of an export.

    Args:
        origin: The network.
        layout: Whose names the tensors have.
        files: {name: bytes and sha256} of what was written.
        proof: Of `proof.prove`.
        loading: {"pytorch" and "flax": lines of Python}.
        remarks: What whoever uses the weights should know, beside those of the origin.
        command: By which it was made.
    """
    return {
        "format": FORMAT,
        "what": origin.what,
        "architecture": _architecture(origin, layout),
        "preprocessing": origin.preprocessing,
        "answers": _answers(origin),
        "data": _data(origin),
        "metrics": _metrics(origin),
        "training": _training(origin),
        "proof": dict(proof),
        "loading": {name: list(lines) for name, lines in loading.items()},
        "license": _license(origin),
        "use": _use(origin),
        "limits": [*origin.remarks, *remarks, *_limits(origin)],
        "files": {name: dict(what) for name, what in files.items()},
        "exported": {
            "code_version": code_version(),
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    }


def pytorch_lines(
    origin: Origin, layout: str, found: Counterpart | None, heads: Sequence[str]
) -> list[str]:
    """Returns the lines of Python that load the weights in PyTorch.

    Args:
        origin: The network.
        layout: Whose names the tensors have.
        found: The class of the layout's library; None: `network.py` beside the weights.
        heads: Modules of the head there, which an encoder lacks.
    """
    if layout == "flax":
        return []
    if found is None:
        return ["from network import load  # network.py lies beside the weights", "",
                "model = load('.')", _shapes(origin)]  # fmt: skip
    lines = [f"import {found.module}"]
    load = "model.load_pretrained('model.npz')"
    if layout != "bit":
        lines.append("from safetensors.torch import load_file")
        load = "model.load_state_dict(load_file('model.safetensors'))"
    lines += ["", f"model = {found.call}"]
    if not origin.has_head and layout != "smp":
        lines.insert(0, "import torch")
        lines += [f"model.set_submodule({head!r}, torch.nn.Identity())" for head in heads]
    return [*lines, load, "model.eval()", _shapes(origin)]


def flax_lines(origin: Origin) -> list[str]:
    """Returns the lines of Python that load the weights in Flax."""
    lines = ["import medinit_jax", "", "network, variables = medinit_jax.load_export('.')"]
    if origin.has_head:
        return [*lines, "logits = network.apply(variables, images)  # channels last"]
    lines.insert(1, "from medinit_jax.models.features import features")
    return [*lines, "found = features(network, variables, images)  # .map and .pooled"]


def _shapes(origin: Origin) -> str:
    height, width, channels = origin.program.input_shape
    return f"answers = model(images)  # float32 (batch, {channels}, {height}, {width})"


def _architecture(origin: Origin, layout: str) -> dict[str, Any]:
    kept = [name for name in origin.program.parameter_shapes() if name in origin.params]
    shapes = origin.program.parameter_shapes()
    return {
        "name": origin.name,
        "options": origin.options,
        "kind": origin.kind,
        "input_shape": list(origin.program.input_shape),
        "logits": origin.program.num_classes if origin.has_head else 0,
        "parameters": sum(_size(shape) for name in kept for shape in shapes[name].values()),
        "layout": layout,
    }


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _answers(origin: Origin) -> Any:
    if not origin.has_head:
        return "Features; there is no head."
    if not origin.heads:
        return UNKNOWN
    return [{**head._asdict(), "classes": list(head.classes)} for head in origin.heads]


def _data(origin: Origin) -> Any:
    record = origin.record
    held = origin.summary.get("data") or record.get("images")
    return {
        "task": record.get("task") or UNKNOWN,
        "modality": record.get("modality") or UNKNOWN,
        "parts": _parts(held) if isinstance(held, Mapping) else UNKNOWN,
    }


def _parts(held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {part: count, source, digests, license} of what a run recorded."""
    if "parts" in held:
        return {str(i): dict(part) for i, part in enumerate(held["parts"])}
    if "source" in held:
        return {"train": dict(held)}
    found: dict[str, Any] = {}
    for name, part in held.items():
        if not isinstance(part, Mapping):
            continue
        inner = part.get("parts")
        if inner:
            found |= {f"{name} {i}": dict(one) for i, one in enumerate(inner)}
        else:
            found[name] = dict(part)
    return found


def _metrics(origin: Origin) -> Any:
    best = origin.summary.get("best")
    if not origin.has_head or not isinstance(best, Mapping):
        return UNKNOWN
    test = best.get("test", {})
    return {
        "name": origin.summary.get("metric", UNKNOWN),
        "value": test.get("metric"),
        "interval": [test.get("low"), test.get("high")],
        "interval_is": f"95 %, bootstrap of {test.get('resamples', UNKNOWN)} over patients",
        "images": origin.summary.get("images", {}).get("test", UNKNOWN),
        "epoch": best.get("epoch"),
        "validation": best.get("validation"),
        "all": test,
    }


def _training(origin: Origin) -> dict[str, Any]:
    made = origin.summary.get("provenance", {})
    epochs, steps = origin.summary.get("epochs", UNKNOWN), origin.summary.get("steps", UNKNOWN)
    if isinstance(epochs, list):
        # Of a fine-tuning: a row for each validation.
        epochs, steps = (epochs[-1].get(key, UNKNOWN) if epochs else 0 for key in ("epoch", "step"))
    return {
        "start": origin.record.get("start", UNKNOWN),
        "code_version": origin.record.get("code_version", UNKNOWN),
        "command": made.get("command", UNKNOWN),
        "date": made.get("date", UNKNOWN),
        "device": made.get("device", UNKNOWN),
        "steps": steps,
        "epochs": epochs,
        "config": {key: origin.config[key] for key in _TRAINING if key in origin.config} or UNKNOWN,
    }


def _license(origin: Origin) -> dict[str, Any]:
    data = _data(origin)["parts"]
    terms = {}
    if isinstance(data, Mapping):
        terms = {name: part.get("license") or UNKNOWN for name, part in data.items()}
    return {
        "weights": f"{UNKNOWN}; the terms of the images that they were made from may bind them",
        "images": terms or UNKNOWN,
        "code": "Apache-2.0",
    }


def _use(origin: Origin) -> str:
    task = origin.record.get("task") or ""
    modality = origin.record.get("modality") or "images of a kind that was not recorded"
    named = {"fundus": "fundus photographs", "CT": "CT slices", "X-ray": "X-rays"}
    images = named.get(modality, modality)
    if origin.what == "predicted network":
        return f"A start for training on {images}."
    if origin.kind == "encoder":
        return f"Features of {images}, and a start for training on them."
    told = ", ".join(head.name for head in origin.heads)
    verb = "Segments" if origin.kind == "segmentation" else "Classifies"
    return f"{verb} {images} as the task {task} does ({told}), for research."


def _limits(origin: Origin) -> list[str]:
    limits = []
    test = origin.summary.get("data", {}).get("test", {}) if origin.has_head else {}
    if isinstance(test, Mapping) and test.get("source"):
        limits.append(
            f"The figures are of {test.get('count', UNKNOWN)} images of {test['source']}; nothing "
            "is known of other cameras, clinics and patients."
        )
    elif origin.has_head:
        limits.append("Nothing is recorded of how good its answers are.")
    limits.append("It is no medical device, and nobody examined it for use on patients.")
    return limits
