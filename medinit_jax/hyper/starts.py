"""The four starts of a network that are compared, as parameter trees of `models.network.Network`.

All are functions of the program and a key. The key draws the network's own initialization, which
the classifier keeps in every start; hence with one key all starts share one head.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta, init_theta
from medinit_jax.hyper.initializer import graph_of, predict
from medinit_jax.models.initial import Params, initial_parameters
from medinit_jax.models.network import default_deviation

KINDS = ("kernel", "scale", "bias", "embedding")
DEVIATIONS = ("predicted", "default")


class Transfer(NamedTuple):
    """How predicted values enter a network.

    Attributes:
        head: Whether the classifier takes predicted values too.
        depth_fraction: Share of the tensors, in program order, that take predicted values; the
            others keep the network's own.
        init_noise: Normal noise added to a predicted tensor, in units of its standard deviation. In
            wide layers predicted filters may repeat (`tiles.repeat`) and would stay equal.
        orthogonal: Whether the filters of every predicted kernel are made orthogonal to each other
            at the same norm, which parts repeated ones too.
        kinds: Which leaves of modules take predicted values, some of `KINDS`.
        deviation: "predicted" leaves predicted kernels and embeddings as they are; "default" scales
            each to the standard deviation of the network's own initialization, so that what is
            transferred is their form, and usual learning rates fit.

    Source of noise and orthogonal filters: Knyazev et al., Pretraining a Neural Network in One
    Forward Pass (arXiv 2207.10049), on fine-tuning predicted parameters.
    """

    head: bool = False
    depth_fraction: float = 1.0
    init_noise: float = 0.0
    orthogonal: bool = False
    kinds: tuple[str, ...] = KINDS
    deviation: Literal["predicted", "default"] = "predicted"


WHOLE = Transfer()


def random_start(program: Program, key: jax.Array) -> Params:
    """Returns the network's own random initialization.

    Args:
        program: The network.
        key: Random key.

    Returns:
        {module: {leaf: array}}, float32.
    """
    return initial_parameters(program, key)


def hyper_start(
    module: HyperInitializer,
    theta: Theta,
    program: Program,
    key: jax.Array,
    transfer: Transfer = WHOLE,
    predicted: Params | None = None,
) -> Params:
    """Returns predicted parameters; the classifier keeps the network's own unless it is asked for.

    Args:
        module: The hypernetwork.
        theta: Its parameters.
        program: The network.
        key: Random key of what is not predicted, and of the noise.
        transfer: What enters the network.
        predicted: What `predict_body` returned before, to spare the prediction.

    Returns:
        {module: {leaf: array}}, float32.

    Raises:
        UsageError: If an option is out of range, or the head cannot be predicted.
    """
    if predicted is None:
        predicted = predict_body(module, theta, program, transfer.head)
    return blend(program, predicted, key, transfer)


def matched_start(
    module: HyperInitializer,
    theta: Theta,
    program: Program,
    key: jax.Array,
    transfer: Transfer = WHOLE,
    predicted: Params | None = None,
) -> Params:
    """Returns the values of `hyper_start`, permuted at random within each predicted tensor.

    The permutation keeps every statistic of a tensor and destroys what its values mean, so that the
    difference to `hyper_start` is what the values are worth. Where filters are made orthogonal, the
    permuted ones are so again: no start is to win by that alone.

    Args: as `hyper_start`.

    Returns:
        {module: {leaf: array}}, float32.

    Source: Raghu et al., Transfusion, NeurIPS 2019 (their Mean Var initialization).
    """
    if predicted is None:
        predicted = predict_body(module, theta, program, transfer.head)
    return blend(program, predicted, key, transfer, permute=True)


def untrained_theta(module: HyperInitializer, seed: int) -> Theta:
    """Returns the parameters that a run with this seed starts from."""
    return init_theta(module, jax.random.key(seed))["params"]


def predict_body(
    module: HyperInitializer, theta: Theta, program: Program, head: bool = False
) -> Params:
    """Predicts all parameters of a network but the head's, or with `head` those too."""
    graph = graph_of(module, program)
    return predict(module, theta, graph, program.parameter_shapes(), include_head=head)


def blend(
    program: Program,
    predicted: Params,
    key: jax.Array,
    transfer: Transfer = WHOLE,
    permute: bool = False,
) -> Params:
    """Puts predicted tensors into a network's own parameters.

    Args:
        program: The network.
        predicted: {module: {leaf: array}} of some of its tensors.
        key: Random key of the network's own initialization, of noise and permutation.
        transfer: Which of the predicted tensors are taken, and how much noise they get.
        permute: Whether values are permuted within each tensor that is taken.

    Returns:
        {module: {leaf: array}} of all tensors.

    Raises:
        UsageError: If an option is out of range.
    """
    shapes = program.parameter_shapes()
    names = [(name, leaf) for name, leaves in shapes.items() for leaf in leaves]
    flat = {
        f"{name}/{leaf}": np.asarray(predicted[name][leaf])
        for name, leaf in names
        if leaf in predicted.get(name, {})
    }
    taken = enter(flat, key, transfer, permute)
    # Drawing compiles by shape, so only what nothing replaces is drawn.
    kept = {name for name, leaf in names if f"{name}/{leaf}" not in taken}
    result = {name: {} for name in shapes}
    result |= {name: dict(own) for name, own in initial_parameters(program, key, kept).items()}
    for name, leaf in names:
        if f"{name}/{leaf}" in taken:
            result[name][leaf] = jnp.asarray(taken[f"{name}/{leaf}"])
    return result


def enter(
    predicted: Mapping[str, np.ndarray],
    key: jax.Array,
    transfer: Transfer = WHOLE,
    permute: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the predicted tensors that enter a network, as they enter it.

    Args:
        predicted: {"module/leaf": array}, those nearest to the input first, in the form of
            `tiles.finish`.
        key: Random key of noise and permutation.
        transfer: Which are taken, and what is done to them.
        permute: Whether values are permuted within each tensor.

    Returns:
        {name: array} of those that are taken.

    Raises:
        UsageError: If an option is out of range.
    """
    for name, value, most in (
        ("depth_fraction", transfer.depth_fraction, 1.0),
        ("init_noise", transfer.init_noise, sys.float_info.max),
    ):
        if not isinstance(value, (int, float)) or not 0 <= value <= most:
            limit = "lies in [0, 1]" if most == 1 else "is at least 0 and finite"
            raise UsageError(f"{name} {limit}, got {value!r}")
    for option, value, known in (
        ("kinds", transfer.kinds, KINDS),
        ("deviation", (transfer.deviation,), DEVIATIONS),
    ):
        wrong = [one for one in value if one not in known]
        if wrong:
            raise UsageError(f"{option} names {wrong[0]!r}, which is none of {', '.join(known)}")
    taken = list(predicted)[: round(transfer.depth_fraction * len(predicted))]
    entered = {}
    for name in taken:
        value, leaf = predicted[name], name.rpartition("/")[2]
        if leaf not in transfer.kinds:
            continue
        if transfer.deviation == "default":
            value = _with_deviation(value, leaf)
        if transfer.init_noise:
            noise = _generator(key, "noise", name).standard_normal(value.shape, value.dtype)
            value = value + noise * (transfer.init_noise * value.std()).astype(value.dtype)
        if transfer.orthogonal and name.endswith("/kernel"):
            value = orthogonalized(value)
        entered[name] = value
    return permuted(entered, key, transfer.orthogonal) if permute else entered


def _with_deviation(value: np.ndarray, leaf: str) -> np.ndarray:
    """Scales a kernel or an embedding to the deviation that a network's own has."""
    wanted, held = default_deviation(leaf, value.shape), value.std()
    return value * value.dtype.type(wanted / held) if wanted and held else value


def permuted(
    tensors: Mapping[str, np.ndarray], key: jax.Array, orthogonal: bool = False
) -> dict[str, np.ndarray]:
    """Returns tensors whose values are permuted at random within each, by name and key.

    Args:
        tensors: {"module/leaf": array}.
        key: Random key.
        orthogonal: Whether kernels are orthogonal, and have to be so again.
    """
    mixed = {
        name: _generator(key, "permutation", name)
        .permutation(value.reshape(-1))
        .reshape(value.shape)
        for name, value in tensors.items()
    }
    if not orthogonal:
        return mixed
    return {
        name: orthogonalized(value) if name.endswith("/kernel") else value
        for name, value in mixed.items()
    }


def orthogonalized(kernel: np.ndarray) -> np.ndarray:
    """Returns the kernel with orthogonal filters (or orthogonal rows, where these are fewer).

    Args:
        kernel: (..., in, out) or (in, out).

    Returns:
        Array of the same shape, dtype and Frobenius norm; the sign of every filter is kept.
    """
    flat = kernel.reshape(-1, kernel.shape[-1])
    tall = flat if len(flat) >= flat.shape[1] else flat.T
    basis, triangle = np.linalg.qr(tall)
    basis = basis * np.where(np.diag(triangle) < 0, -1, 1).astype(kernel.dtype)
    basis = basis if len(flat) >= flat.shape[1] else basis.T
    norm = np.linalg.norm(kernel) / max(np.linalg.norm(basis), 1e-12)
    return (basis * norm).reshape(kernel.shape).astype(kernel.dtype)


def _generator(key: jax.Array, *names: str) -> np.random.Generator:
    """Returns a generator of its own for each tensor and use; NumPy's compiles nothing by shape."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, zlib.crc32("/".join(names).encode())])
