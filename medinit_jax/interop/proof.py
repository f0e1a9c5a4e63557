"""Proof of an export: the same images through the network here and through PyTorch's.

The file of weights is loaded strictly into the library's own class where there is one, else into
`torch_network.Network`. PyTorch is imported only here, and only when a proof is asked for.
"""

# A neighbor has the name of the library, which a type checker takes for the library.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.compiler import jit
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import write_arrays
from medinit_jax.interop.counterparts import counterpart
from medinit_jax.interop.description import without_head
from medinit_jax.interop.layouts import family_of
from medinit_jax.interop.origin import Origin
from medinit_jax.models.encoder import body
from medinit_jax.models.network import Network

NOT_RUN = "not run"
OWN_CLASS = "medinit_jax.interop.torch_network.Network"
# Float32 (batch, height, width, channels) -> (logits or None, features), channels last.
Run = Callable[[np.ndarray], tuple[np.ndarray | None, np.ndarray]]


class Loaded(NamedTuple):
    """A network of PyTorch with the exported weights.

    Attributes:
        title: Its class.
        run: The network as a function of images.
        answer: Images -> the answers alone.
        first: The network here up to the features that `run` returns.
        versions: Of what ran.
    """

    title: str
    run: Run
    answer: Callable[[np.ndarray], np.ndarray]
    first: Program
    versions: dict[str, str]


def has_torch() -> bool:
    """Returns whether PyTorch is installed."""
    try:
        importlib.import_module("torch")
    except ImportError:
        return False
    return True


def prove(
    origin: Origin,
    layout: str,
    state: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    heads: tuple[str, ...],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], Loaded | None]:
    """Runs the same images through both networks.

    Args:
        origin: The network here.
        layout: Whose names the tensors have.
        state: What was exported.
        description: The network as `network.json` has it.
        heads: Names in the layout of the modules in the network's last call, of which the first
            reads the features.
        settings: `images` (how many), `seed` and `tolerance`, relative to the range of the values.

    Returns:
        What the card holds, and PyTorch's network; None without PyTorch.

    Raises:
        UsageError: The weights do not load strictly.
    """
    if not has_torch():
        why = "PyTorch is not installed; pip install 'medinit_jax[torch]' and export again"
        return {"status": NOT_RUN, "reason": why}, None
    loaded = load(origin, layout, state, description, heads)
    images = _images(origin.program, settings)
    ours, theirs = _ours(origin, loaded.first, images), loaded.run(images)
    found: dict[str, Any] = {
        "class": loaded.title,
        "strict": True,
        "inputs": f"{len(images)} images of normal noise, seed {settings['seed']}",
        "tolerance": settings["tolerance"],
        "versions": {**loaded.versions, "jax": jax.__version__},
    }
    names = ("logits", "features")
    for name, here, there in zip(names, ours, theirs, strict=True):
        if here is not None and there is not None:
            found[name] = difference(here, there)
    errors = [found[name]["relative"] for name in names if name in found]
    # A NaN is below no tolerance.
    passed = all(error <= settings["tolerance"] for error in errors)
    found["status"] = "passed" if passed else "failed"
    return found, loaded


def difference(here: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """Returns the largest difference of two arrays, and relative to the range of the first."""
    if here.shape != there.shape:
        raise ValueError(f"{here.shape} and {there.shape} cannot be compared")
    here, there = np.asarray(here, np.float64), np.asarray(there, np.float64)
    with np.errstate(invalid="ignore"):
        largest, extent = float(np.abs(here - there).max()), float(np.ptp(here))
    if largest == 0:
        return {"absolute": 0.0, "relative": 0.0, "range": extent}
    return {
        "absolute": largest,
        "relative": largest / extent if extent else np.inf,
        "range": extent,
    }


def load(
    origin: Origin,
    layout: str,
    state: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    heads: tuple[str, ...],
) -> Loaded:
    """Loads exported weights strictly into a network of PyTorch; see `prove`."""
    import torch

    first = without_head(origin.program)
    versions = {"torch": str(torch.__version__)}
    found = counterpart(origin, layout)
    try:
        net = found.make() if found else None
    except ImportError:
        net = None
    if found is None or net is None:
        from medinit_jax.interop.torch_network import Network as Described

        described = Described(description)
        _strict(described, state, OWN_CLASS)

        def answers(images):
            return described(images) if origin.has_head else None, described.before_head(images)

        return Loaded(OWN_CLASS, _runner(answers), _answering(described), first, versions)
    versions[found.package] = str(importlib.import_module(found.package).__version__)
    if layout == "smp":
        # The last map of the encoder, which a head would pool.
        _strict(net, state, found.call)
        last = _last_map(net, family_of(origin.name))
        run = _runner(lambda images: (None, last(images)))
        return Loaded(
            found.call, run, lambda images: run(images)[1], body(origin.program), versions
        )
    if not origin.has_head:
        for head in heads:
            net.set_submodule(head, torch.nn.Identity())
    _load_archive(net, state) if layout == "bit" else _strict(net, state, found.call)
    read: dict[str, Any] = {}
    # What the head reads is seen on its way, whether the head is there or was replaced; as a copy,
    # for an activation may write over it.
    net.get_submodule(heads[0]).register_forward_pre_hook(
        lambda _, inputs: read.__setitem__("features", inputs[0].clone())
    )

    def both(images):
        logits = net(images)
        return logits if origin.has_head else None, read["features"].flatten(1)

    return Loaded(found.call, _runner(both), _answering(net), first, versions)


def _last_map(net: Any, family: str) -> Callable[[Any], Any]:
    """Returns the last map of an encoder of segmentation-models-pytorch as a classifier has it.

    Two of its families hand their maps to a decoder one layer earlier, though they hold that layer.
    """

    def last(images):
        found = net(images)[-1]
        if family == "efficientnet":
            return net.bn2(net.conv_head(found))
        return found.relu() if family == "densenet" else found

    return last


def _strict(net: Any, state: Mapping[str, np.ndarray], title: str) -> None:
    import torch

    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    try:
        # Strict by default; one encoder does not take the word.
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(
            f"The exported weights do not load into {title}: {' '.join(str(error).split())[:500]}."
        ) from error
    net.eval()


def _load_archive(net: Any, state: Mapping[str, np.ndarray]) -> None:
    """Loads BiT's archive by timm's own reader, which takes a file and checks every shape."""
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder) / "model.npz", state)
        net.load_pretrained(str(Path(folder) / "model.npz"))
    net.eval()


def _runner(both: Callable[[Any], tuple[Any, Any]]) -> Run:
    """Returns a function of tensors (channels first) as one of arrays (channels last)."""
    import torch

    def run(images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        with torch.no_grad():
            placed = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            logits, features = both(placed)
            return None if logits is None else _channels_last(logits), _channels_last(features)

    return run


def _answering(net: Any) -> Callable[[np.ndarray], np.ndarray]:
    run = _runner(lambda images: (None, net(images)))
    return lambda images: run(images)[1]


def _channels_last(tensor: Any) -> np.ndarray:
    values = tensor.numpy()
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


def _images(program: Program, settings: Mapping[str, Any]) -> np.ndarray:
    rng = np.random.default_rng(settings["seed"])
    return rng.standard_normal((settings["images"], *program.input_shape), np.float32)


def _ours(
    origin: Origin, first: Program, images: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns logits, None without a head, and features of the network here, in float32."""
    program = origin.program
    variables = {"params": origin.params, "batch_stats": origin.statistics}

    def run(variables, images):
        read = Network(first).apply(variables, images)
        return (Network(program).apply(variables, images) if origin.has_head else None), read

    with jax.default_matmul_precision("highest"):
        logits, read = jax.device_get(jit(run)(variables, images))
    if first.calls[-1].block.steps[-1].kind == "flatten":
        # PyTorch flattens (channels, height, width).
        last = len(first.calls) - 1
        shape = first.layout(last).outputs[-2]
        read = read.reshape(len(read), *shape).transpose(0, 3, 1, 2).reshape(len(read), -1)
    return logits, read
