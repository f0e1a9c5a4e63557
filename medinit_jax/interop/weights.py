"""Files of weights, read without running anything that they hold."""

# A neighbor has the name of the library, which a type checker takes for the library.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from medinit_jax.core.errors import UsageError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SAFE_SUFFIX, ARCHIVE_SUFFIX = ".safetensors", ".npz"
# What an export calls its weights.
FILE_OF_FOLDER = "model.safetensors"
# 4 GiB: the largest network of the zoo takes 0.6.
MAX_BYTES = 4 * 2**30
# Kinds of NumPy's types: floats, whole numbers and truth values.
_REAL = "fiub"
# The function that a pickle would call, as PyTorch's refusal names it.
_CALLED = re.compile(r"GLOBAL (\S+)")
# Under which training scripts keep the weights beside other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state(path: str | Path, force: bool = False) -> dict[str, np.ndarray]:
    """Reads a state dict without running anything that the file holds.

    Args:
        path: A .safetensors file, one of `torch.save` (.pth, .pt, .bin), which needs PyTorch, an
            .npz archive, or an export's folder.
        force: Whether files beyond `MAX_BYTES` and values that are not finite are accepted.

    Returns:
        {name: array}; a prefix "module." of all names is dropped. What NumPy has no type for comes
        as float32.

    Raises:
        UsageError: There is no such file, it is no state dict, too large, or holds NaN or infinity.
    """
    path = Path(path)
    if path.is_dir():
        path /= FILE_OF_FOLDER
    if not path.is_file():
        raise UsageError(
            f"There is no file {path}; give a {SAFE_SUFFIX}, .pth or {ARCHIVE_SUFFIX} file of "
            "weights."
        )
    size = path.stat().st_size
    if size > MAX_BYTES and not force:
        raise UsageError(
            f"{path} has {size / 2**30:.1f} GiB, more than the {MAX_BYTES // 2**30} that are read "
            "unasked; check that it holds weights alone, or set config.init.force=True."
        )
    if path.suffix == SAFE_SUFFIX:
        state = _safe_state(path)
    elif path.suffix == ARCHIVE_SUFFIX:
        state = _archive_state(path)
    elif path.suffix in TORCH_SUFFIXES:
        state = _torch_state(path)
    else:
        raise UsageError(
            f"{path} is no file of weights that is understood; give {SAFE_SUFFIX}, "
            f"{ARCHIVE_SUFFIX}, {' or '.join(TORCH_SUFFIXES)}."
        )
    odd = [name for name, value in state.items() if value.dtype.kind not in _REAL]
    if odd:
        raise UsageError(
            f"{path} holds {state[odd[0]].dtype} in {odd[0]}, and weights are real numbers; give a "
            "file of weights alone."
        )
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    bad = [name for name, value in state.items() if not _finite(value)]
    if bad and not force:
        raise UsageError(
            f"{path} holds NaN or infinity in {len(bad)} of {len(state)} tensors "
            f"({', '.join(bad[:5])}); give another file, or set config.init.force=True."
        )
    return state


def _finite(value: np.ndarray) -> bool:
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _safe_state(path: Path) -> dict[str, np.ndarray]:
    try:
        state = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:  # pyright: ignore
        raise UsageError(f"{path} is no readable {SAFE_SUFFIX} file ({error}).") from error
    # bfloat16 and the like are types of another library.
    return {n: v.astype(np.float32) if v.dtype.kind == "V" else v for n, v in state.items()}


def _archive_state(path: Path) -> dict[str, np.ndarray]:
    try:
        # NumPy leaves a file open that it cannot read, unless it was opened for it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} is no readable archive of arrays ({str(error).splitlines()[0]}); give an "
            f"{ARCHIVE_SUFFIX} file, such as those of BiT networks."
        ) from error


def _torch_state(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"{path} was written by PyTorch, which is not installed; install it with pip install "
            "'medinit_jax[torch]', or save the weights as .safetensors."
        ) from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # What a damaged or foreign file raises depends on the damage; PyTorch's own words advise to
        # run what it holds.
        called = _CALLED.search(str(error))
        why = f"it names {called[1]}" if called else type(error).__name__
        raise UsageError(
            f"{path} holds more than weights or is damaged ({why}); save the model's state_dict "
            "alone."
        ) from error
    for key in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and _is_plain(value)
        for name, value in held.items()
    ):
        raise UsageError(
            f"{path} is no state dict of plain tensors; save model.state_dict() with torch.save."
        )
    known = (torch.float64, torch.float32, torch.float16)
    return {
        name: (value.float() if value.is_floating_point() and value.dtype not in known else value)
        .detach()
        .numpy()
        for name, value in held.items()
    }


def _is_plain(value: Any) -> bool:
    """Tells whether a tensor has all its numbers, one for each place."""
    import torch

    return value.layout == torch.strided and not (value.is_meta or value.is_quantized)
