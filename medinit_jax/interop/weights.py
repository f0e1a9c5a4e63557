"""Weights of PyTorch networks in files, brought into the form of this package's networks."""

# A neighbor has the name of the library, which a type checker takes for the library.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from medinit_jax.arch.program import OWN_INIT, Program
from medinit_jax.core.errors import UsageError
from medinit_jax.models.statistics import initial_statistics

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# Under which training scripts keep the weights beside other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict without running anything that the file holds.

    Args:
        path: A .safetensors file, or one of `torch.save` (.pth, .pt, .bin), which needs PyTorch.

    Returns:
        {name: array}; a prefix "module." of all names is dropped.

    Raises:
        UsageError: There is no such file, or it is no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}; give a .safetensors or .pth file of weights.")
    if path.suffix == ".safetensors":
        try:
            state = safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:  # pyright: ignore
            raise UsageError(f"{path} is no readable .safetensors file ({error}).") from error
    elif path.suffix in TORCH_SUFFIXES:
        state = _torch_state(path)
    else:
        raise UsageError(
            f"{path} is no file of weights that is understood; give .safetensors, "
            f"{' or '.join(TORCH_SUFFIXES)}."
        )
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


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
        # What a damaged or foreign file raises depends on the damage.
        raise UsageError(
            f"{path} holds more than weights or is damaged ({str(error).splitlines()[0]}); save "
            "the model's state_dict alone."
        ) from error
    for key in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in held.values()
    ):
        raise UsageError(f"{path} is no state dict; save model.state_dict() with torch.save.")
    return {name: value.float().numpy() for name, value in held.items()}


class Tensors(NamedTuple):
    """What a file holds of a network.

    Attributes:
        params: {"module/leaf": array}, of whatever shape the file has.
        statistics: {"module.stats/mean" or "/var": array}.
        unused: Names in the file that the network has no place for.
    """

    params: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    unused: tuple[str, ...]


def from_state(program: Program, state: Mapping[str, np.ndarray], prefix: str = "") -> Tensors:
    """Renames and transposes what a state dict holds of a network.

    Args:
        program: The network; its modules are named as in torchvision.
        state: {name: array} in PyTorch's layout.
        prefix: Of our modules' names, which the file lacks, such as "encoder.".
    """
    used = set()

    def found(module: str, leaf: str) -> np.ndarray | None:
        name = torch_name(module.removeprefix(prefix))
        name = f"{name}.{leaf}" if leaf else name
        if not module.startswith(prefix) or name not in state:
            return None
        used.add(name)
        return np.asarray(state[name], np.float32)

    kinds = {
        call.module(step.name): step.kind for call in program.calls for step in call.block.steps
    }
    maps = _flattened(program)
    params: dict[str, np.ndarray] = {}
    for module, leaves in program.parameter_shapes().items():
        for leaf, shape in leaves.items():
            own = leaf == "embedding" or leaf in OWN_INIT
            value = found(module, "" if own else "bias" if leaf == "bias" else "weight")
            if value is not None:
                kind = kinds[module] if leaf == "kernel" else ""
                params[f"{module}/{leaf}"] = _laid_out(kind, value, shape, maps.get(module))
    statistics = {}
    for name in initial_statistics(program):
        for leaf in ("mean", "var"):
            value = found(name.removesuffix(".stats"), f"running_{leaf}")
            if value is not None:
                statistics[f"{name}/{leaf}"] = value
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    return Tensors(params, statistics, tuple(sorted(set(state) - used - counters)))


def torch_name(module: str) -> str:
    """Returns torchvision's name of a module; ours are the same but in VGGs.

    There a convolution and its norm are two members of one list, here the parts of a block.
    """
    vgg = re.fullmatch(r"features\.(\d+)\.(conv|norm)", module)
    return f"features.{int(vgg[1]) + (vgg[2] == 'norm')}" if vgg else module


def _flattened(program: Program) -> dict[str, tuple[int, int, int]]:
    """Returns (channels, height, width) of the map that a dense layer reads flattened."""
    found = {}
    for index, call in enumerate(program.calls):
        block = call.block
        shapes = [program.shapes[i] for i in call.inputs] + list(program.layout(index).outputs)
        for step in block.steps:
            source = step.args[0] - block.arity
            if step.kind == "dense" and source >= 0 and block.steps[source].kind == "flatten":
                height, width, channels = shapes[block.steps[source].args[0]]
                found[call.module(step.name)] = (channels, height, width)
    return found


def _laid_out(
    kind: str, value: np.ndarray, shape: tuple[int, ...], flat: tuple[int, int, int] | None
) -> np.ndarray:
    """Brings a tensor from PyTorch's layout to Flax's, as far as its rank allows."""
    if kind == "conv_t" and value.ndim == 4:
        return value.transpose(2, 3, 0, 1)
    if value.ndim == 4 and len(shape) == 4:
        return value.transpose(2, 3, 1, 0)
    if flat and value.ndim == 2 and value.shape[1] == flat[0] * flat[1] * flat[2]:
        value = value.reshape(-1, *flat).transpose(0, 2, 3, 1)
        return value.reshape(len(value), -1).T
    if len(shape) == 2 and kind and value.size == value.shape[0] * value.shape[1]:
        return value.reshape(value.shape[:2]).T
    return value.reshape(shape) if value.size == np.prod(shape) else value
