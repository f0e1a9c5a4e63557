"""Any PyTorch module, initialized in place by a hyper-initializer."""

# This file has the name of the library it imports, which a type checker takes for the file itself.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax

from medinit_jax.api import Initializer
from medinit_jax.arch.dataflow import Traced
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.starts import Transfer
from medinit_jax.hyper.written import Coverage, advice, coverage, write

try:
    import torch
except ImportError as error:
    raise UsageError(
        "medinit_jax.interop.torch needs PyTorch, which is not installed; "
        "install it with: pip install 'medinit_jax[torch]'."
    ) from error

from medinit_jax.arch.torch_trace import trace  # noqa: E402


def inspect(
    model: torch.nn.Module,
    example: Any,
    *,
    options: Mapping[str, Any] | None = None,
    only: str = "",
    on_unknown: str = "fallback",
) -> Coverage:
    """Tells what a hyper-initializer would do with every parameter of a model.

    Args: as those of `initialize`.

    Returns:
        The coverage; printed, it is a table.

    Raises:
        UsageError: If the model cannot be exported.
    """
    return coverage(_traced(model, example, options, only, on_unknown, False))


def initialize(
    model: torch.nn.Module,
    example: Any,
    initializer: Initializer,
    *,
    options: Mapping[str, Any] | None = None,
    head: bool = False,
    only: str = "",
    on_unknown: str = "fallback",
    unknown_types: str = "error",
    depth_fraction: float = 1.0,
    init_noise: float = 0.0,
    orthogonal: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> Coverage:
    """Writes predicted parameters into a model, in its own dtype and on its own device.

    Prints what that means for training it.

    Buffers, `requires_grad`, training mode and all parameters that are not predicted stay as they
    are. Nothing is written if anything fails.

    Args:
        model: Any `torch.nn.Module` that `torch.export` takes.
        example: A tensor, or a tuple of tensors, batch first, on the model's device.
        initializer: From `medinit_jax.load`.
        options: Further keyword arguments of the model's call.
        head: Whether the classifier is predicted too; else it keeps its values.
        only: Name of the part of the model to predict, such as "encoder".
        on_unknown: What becomes of parameters without a rule: "fallback" or "error".
        unknown_types: What becomes of node types that the initializer was not made for: "error",
            or "nearest" to treat them as the nearest types it knows.
        depth_fraction: Share of the tensors, input first, that take predicted values.
        init_noise: Normal noise on predicted tensors, in units of their standard deviation.
        orthogonal: Whether filters are made orthogonal, see `hyper.starts.Transfer`.
        seed: Of the noise.
        quiet: Whether to print nothing.

    Returns:
        What became of every parameter.

    Raises:
        UsageError: If the model cannot be exported, an option is out of range, or the head has
            another number of classes than the initializer.
    """
    module = initializer.module
    traced = _traced(model, example, options, only, on_unknown, module.activations)
    transfer = Transfer(head, depth_fraction, init_noise, orthogonal)
    key = jax.random.key(seed)
    values = write(module, initializer.theta, traced, key, transfer, unknown_types)
    found = coverage(traced, head, values)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(torch.tensor(value))
    if not quiet:
        print(advice(found), file=sys.stderr)
    return found


def _traced(model, example, options, only, on_unknown, activations) -> Traced:
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"initialize does not understand a {type(model).__name__}: give a torch.nn.Module; "
            "for Flax modules use medinit_jax.initialize."
        )
    inputs = example if isinstance(example, tuple) else (example,)
    for part in inputs:
        if not isinstance(part, torch.Tensor):
            raise UsageError(
                f"The example holds a {type(part).__name__}; give a tensor or a tuple of tensors, "
                "batch first."
            )
    if any(isinstance(p, torch.nn.UninitializedParameter) for p in model.parameters()):
        raise UsageError("The model has layers without a shape yet; call it once before.")
    return trace(model, inputs, options or {}, on_unknown, activations, only)
