"""The four starts of a network that are compared, as parameter trees of `models.network.Network`.

All are functions of the program and a key. The key draws the network's own initialization, which
the classifier keeps in every start; hence with one key all starts share one head.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta, init_theta
from medinit_jax.hyper.initializer import graph_of, predict
from medinit_jax.models.initial import Params, initial_parameters


class Transfer(NamedTuple):
    """How predicted values enter a network.

    Attributes:
        head: Whether the classifier takes predicted values too.
        depth_fraction: Share of the tensors, in program order, that take predicted values; the
            others keep the network's own.
        init_noise: Normal noise added to a predicted tensor, in units of its standard deviation.
    """

    head: bool = False
    depth_fraction: float = 1.0
    init_noise: float = 0.0


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
    difference to `hyper_start` is what the values are worth.

    Args: as `hyper_start`.

    Returns:
        {module: {leaf: array}}, float32.

    Source: Raghu et al., Transfusion, NeurIPS 2019 (their Mean Var initialization).
    """
    if predicted is None:
        predicted = predict_body(module, theta, program, transfer.head)
    return blend(program, predicted, key, transfer, permute=True)


def untrained_start(
    module: HyperInitializer,
    seed: int,
    program: Program,
    key: jax.Array,
    transfer: Transfer = WHOLE,
) -> Params:
    """Returns parameters predicted by the hypernetwork before its training.

    Args:
        module: The hypernetwork.
        seed: The run's seed, which drew the hypernetwork.
        program: The network.
        key: As in `hyper_start`.
        transfer: As in `hyper_start`.

    Returns:
        {module: {leaf: array}}, float32.
    """
    return hyper_start(module, untrained_theta(module, seed), program, key, transfer)


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
    if not 0 <= transfer.depth_fraction <= 1:
        raise UsageError(f"depth_fraction lies in [0, 1], got {transfer.depth_fraction}")
    if transfer.init_noise < 0:
        raise UsageError(f"init_noise is at least 0, got {transfer.init_noise}")
    shapes = program.parameter_shapes()
    order = [
        (name, leaf)
        for name, leaves in shapes.items()
        for leaf in leaves
        if leaf in predicted.get(name, {})
    ]
    taken = order[: round(transfer.depth_fraction * len(order))]
    replaced = set(taken)
    # Drawing compiles by shape, so only what nothing replaces is drawn.
    kept = {
        name for name, leaves in shapes.items() for leaf in leaves if (name, leaf) not in replaced
    }
    result = {name: {} for name in shapes}
    result |= {name: dict(own) for name, own in initial_parameters(program, key, kept).items()}
    for name, leaf in taken:
        value = np.asarray(predicted[name][leaf])
        if transfer.init_noise:
            noise = _generator(key, "noise", name, leaf).standard_normal(value.shape, value.dtype)
            value = value + noise * (transfer.init_noise * value.std()).astype(value.dtype)
        if permute:
            flat = _generator(key, "permutation", name, leaf).permutation(value.reshape(-1))
            value = flat.reshape(value.shape)
        result[name][leaf] = jnp.asarray(value)
    return result


def _generator(key: jax.Array, *names: str) -> np.random.Generator:
    """Returns a generator of its own for each tensor and use; NumPy's compiles nothing by shape."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, zlib.crc32("/".join(names).encode())])
