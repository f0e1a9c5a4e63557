"""Any PyTorch module, initialized in place by a hyper-initializer."""

# This file has the name of the library it imports, which a type checker takes for the file itself.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from medinit_jax.api import Initializer
from medinit_jax.arch.dataflow import Traced
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.starts import KINDS, Transfer
from medinit_jax.hyper.written import Coverage, advice, coverage, write

try:
    import torch
except ImportError as error:
    raise UsageError(
        "medinit_jax.interop.torch needs PyTorch, which is not installed; "
        "install it with: pip install 'medinit_jax[torch]'."
    ) from error

from medinit_jax.arch.torch_trace import trace  # noqa: E402

WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


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
    model = _unwrapped(model)
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
    kinds: Sequence[str] = KINDS,
    deviation: Literal["predicted", "default"] = "predicted",
    seed: int = 0,
    quiet: bool = False,
) -> Coverage:
    """Writes predicted parameters into a model, in its own dtype and on its own device.

    Prints what that means for training it.

    Buffers, `requires_grad`, training mode and all parameters that are not predicted stay as they
    are. Nothing is written if anything fails.

    Args:
        model: Any `torch.nn.Module` that `torch.export` takes; of `DataParallel` and the like, and
            of what `torch.compile` returns, it is the model inside.
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
        kinds: Which leaves take predicted values: some of kernel, scale, bias, embedding.
        deviation: "predicted", or "default" to scale predicted kernels and embeddings to the
            standard deviation of usual random ones.
        seed: Of the noise.
        quiet: Whether to print nothing.

    Returns:
        What became of every parameter.

    Raises:
        UsageError: If the model cannot be exported, an option is out of range, or the head has
            another number of classes than the initializer.
    """
    module, model = initializer.module, _unwrapped(model)
    parameters = dict(model.named_parameters())
    if empty := [name for name, parameter in parameters.items() if parameter.is_meta]:
        raise UsageError(
            f"{empty[0]} is on the meta device and has no memory to be written; move the model "
            "with model.to_empty(device='cpu') before, and set its buffers."
        )
    traced = _traced(model, example, options, only, on_unknown, module.activations)
    transfer = Transfer(head, depth_fraction, init_noise, orthogonal, tuple(kinds), deviation)
    key = jax.random.key(seed)
    values = write(module, initializer.theta, traced, key, transfer, unknown_types)
    found = coverage(traced, head, values)
    _copy(values, parameters)
    if not quiet:
        print(advice(found), file=sys.stderr)
    return found


def _copy(values: Mapping[str, np.ndarray], parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Copies all values into their parameters, or none."""
    written: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    with torch.no_grad():
        try:
            for name, value in values.items():
                own = parameters[name]
                before = own.clone()
                own.copy_(torch.tensor(value))
                written.append((own, before))
        except RuntimeError as error:
            for own, before in reversed(written):
                own.copy_(before)
            raise UsageError(
                f"The parameter {name} cannot be written: {str(error).splitlines()[0]} Nothing "
                "was changed; give the model a parameter with memory of its own."
            ) from error


def _unwrapped(model: Any) -> torch.nn.Module:
    """Returns the module itself, and refuses what cannot be exported or written."""
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"initialize does not understand a {type(model).__name__}: give a torch.nn.Module; "
            "for Flax modules use medinit_jax.initialize."
        )
    while isinstance(model, WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, WRAPPERS) else model._orig_mod
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name or 'The model'} is a ScriptModule, which hides its layers; give the module "
                "that it was compiled from."
            )
    for name, array in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(array):
            raise UsageError(f"{name} has no shape yet; call the model once before.")
    return model


def _traced(model, example, options, only, on_unknown, activations) -> Traced:
    inputs = example if isinstance(example, tuple) else (example,)
    for part in inputs:
        if not isinstance(part, torch.Tensor):
            raise UsageError(
                f"The example holds a {type(part).__name__}; give a tensor or a tuple of tensors, "
                "batch first."
            )
    return trace(model, inputs, options or {}, on_unknown, activations, only)
