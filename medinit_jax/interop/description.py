"""`network.json`: a network as a list of steps with the names that its tensors have in a layout.

`torch_network.py` runs it in plain PyTorch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medinit_jax.arch.program import OWN_INIT, Block, Program, Step

Owners = Mapping[tuple[str, str], tuple[str, ...]]

# What a step of each kind says beside its inputs and tensors.
_OPTIONS = {
    "conv": ("stride", "padding", "dilation", "groups", "standardized", "epsilon"),
    "conv_t": ("stride",),
    "batch_norm": ("epsilon",),
    "layer_norm": ("epsilon",),
    "group_norm": ("groups", "epsilon"),
    "attention": ("heads",),
    "bilinear": ("size", "aligned"),
    "nearest": ("size",),
    "pad": ("padding",),
    "max_pool": ("kernel", "stride", "padding"),
    "avg_pool": ("kernel", "stride", "padding"),
    "adaptive_pool": ("size",),
    "subsample": ("stride", "offset"),
    "dropout": ("rate",),
}
_STATISTICS = ("mean", "var", "counter")


def describe(
    program: Program,
    owners: Owners,
    state: Mapping[str, np.ndarray],
    head: bool = True,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a network as `network.json` holds it.

    Args:
        program: The network, as far as it has weights.
        owners: {(module, leaf): names in the state}; several where a tensor is kept in parts. The
            leaves of batch statistics are "mean", "var" and "counter".
        state: {name: array} under the layout's names.
        head: Whether the network ends in its classifier.
        beside: Names in the state that the network does not read.

    Returns:
        `input_shape` (height, width, channels), `steps`, `tensors` {name: shape and role}, `head`,
        the number of the value that the first layer of the head reads, None without one, and
        `beside`.
    """
    steps: list[dict[str, Any]] = []
    number = {0: 0}
    read = None
    for index, call in enumerate(program.calls, start=1):
        values = [number[i] for i in call.inputs]
        for step in call.block.steps:
            module = call.module(step.name)
            described = {
                "kind": step.kind,
                "of": [values[i] for i in step.args],
                **{key: getattr(step, key) for key in _OPTIONS.get(step.kind, ())},
            }
            if step.name:
                described["tensors"] = _tensors(step, module, owners)
                if head and read is None and index == len(program.calls):
                    read = described["of"][0]
            steps.append(described)
            values.append(len(steps))
        number[index] = values[-1]
    roles = {
        name: role
        for described in steps
        for role, names in described.get("tensors", {}).items()
        for name in names
    }
    return {
        "format": 1,
        "input_shape": list(program.input_shape),
        "steps": steps,
        "tensors": {
            name: {"shape": list(state[name].shape), "role": _role(role)}
            for name, role in roles.items()
        },
        "head": read,
        "beside": list(beside),
    }


def without_head(program: Program) -> Program:
    """Returns a network up to what the first layer with weights of its last call reads.

    Of a classifier these are the features, pooled or flattened; its modules are those of
    `encoder.body`. Of a segmentation network they are those of every pixel.
    """
    last = program.calls[-1]
    place = next(i for i, step in enumerate(last.block.steps) if step.name)
    value = last.block.steps[place].args[0]
    kept = value - last.block.arity + 1
    if kept <= 0:
        return Program(program.calls[: last.inputs[value]], program.input_shape)
    block = Block(last.block.arity, last.block.steps[:kept])
    call = dataclasses.replace(last, block=block)
    return Program((*program.calls[:-1], call), program.input_shape)


def _tensors(step: Step, module: str, owners: Owners) -> dict[str, list[str]]:
    """Returns {role: names} of a step's tensors; the roles are those of `torch_network`."""
    roles = {"bias": "bias", "kernel": "weight", "scale": "weight", "embedding": "weight"}
    roles |= dict.fromkeys(OWN_INIT, "weight")
    found = {
        role: list(owners[module, leaf]) for leaf, role in roles.items() if (module, leaf) in owners
    }
    own = f"{module}.stats"
    found |= {leaf: list(owners[own, leaf]) for leaf in _STATISTICS if (own, leaf) in owners}
    return found


def _role(role: str) -> str:
    if role == "counter":
        return role
    return "buffer" if role in _STATISTICS else "parameter"
