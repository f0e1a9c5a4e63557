"""PyTorch modules as exported programs, and in one sentence what keeps one from being exported."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medinit_jax.core.errors import UsageError

LIBRARY = str(Path(str(torch.__file__)).parent)
LONGEST = 200


def exported(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    options: Mapping[str, Any],
    training: bool,
) -> Any:
    """Exports a model in one mode; the model stays as it is.

    Args:
        model: The model.
        inputs: Its inputs.
        options: Further keyword arguments of its call.
        training: Whether in training or in evaluation mode.

    Returns:
        The `torch.export.ExportedProgram`.

    Raises:
        UsageError: The model cannot be exported.
    """
    try:
        with _mode(model, training), _quiet():
            return torch.export.export(model, tuple(inputs), dict(options) or None, strict=False)
    except Exception as error:
        raise UsageError(_reason(error, model)) from error


@contextlib.contextmanager
def _mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Puts a model into one mode, and every module back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    # Not `train()`, which some modules use to rewrite their parameters.
    for module in modes:
        module.training = training
    # The fused form of attention hides which parameter does what.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter from warning of what only it does, and from printing whole graphs."""

    def refuse(record):
        return False

    handlers = logging.getLogger("torch").handlers
    for handler in handlers:
        handler.addFilter(refuse)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(refuse)


def _reason(error: Exception, model: torch.nn.Module) -> str:
    label, place = type(model).__name__, _place(error, model)
    if "DataDependent" in type(error).__name__:
        return (
            f"{label} cannot be exported by torch.export, because it decides by values of its "
            f"input{place}; take such decisions out of forward, or use torch.where."
        )
    line = next(iter(str(error).strip().splitlines()), "")[:LONGEST].rstrip(".")
    return (
        f"{label} cannot be exported by torch.export with this example: {type(error).__name__}: "
        f"{line}{place}. Check the example's shape, dtype and device; forward must not leave "
        "PyTorch or depend on values of its input."
    )


def _place(error: Exception, model: torch.nn.Module) -> str:
    """Returns in which module an error was raised, and by which line of the user's code."""
    names = {module: name for name, module in model.named_modules()}
    owner, line, trace = None, "", error.__traceback__
    while trace is not None:
        frame, module = trace.tb_frame, trace.tb_frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and module in names:
            owner, file = module, frame.f_code.co_filename
            if not file.startswith(LIBRARY):
                line = f", line {trace.tb_lineno} of {Path(file).name}"
        trace = trace.tb_next
    if owner is None:
        return ""
    return f" (in {names[owner] or 'the model itself'}, a {type(owner).__name__}{line})"
