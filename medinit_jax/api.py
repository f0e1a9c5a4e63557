"""The public use of a trained hyper-initializer: load it, initialize a network with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medinit_jax.core.checkpoint import METADATA_FILE, load_params
from medinit_jax.core.errors import UsageError
from medinit_jax.core.provenance import fingerprint
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta, from_config
from medinit_jax.hyper.publish import FOLDER
from medinit_jax.hyper.starts import Transfer, hyper_start
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics


class Initializer(NamedTuple):
    """A trained hyper-initializer.

    Attributes:
        module: The hypernetwork.
        theta: Its parameters, NumPy arrays.
        metadata: Design space, preprocessing, pretext and seed of its training.
        fingerprint: SHA-256 of theta.
    """

    module: HyperInitializer
    theta: Theta
    metadata: dict[str, Any]
    fingerprint: str


def load(path: str | os.PathLike[str]) -> Initializer:
    """Loads a trained hyper-initializer.

    Args:
        path: Its folder, or the workdir of the run that trained it.

    Returns:
        The initializer.

    Raises:
        UsageError: If there is none, or it is damaged.
    """
    folder = Path(path)
    if not (folder / METADATA_FILE).is_file() and (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    theta, metadata = load_params(folder)
    if "hyper" not in metadata:
        raise UsageError(
            f"{folder / METADATA_FILE} does not describe a hypernetwork; check the path."
        )
    return Initializer(from_config(metadata["hyper"]), theta, metadata, fingerprint(theta))


def initialize(
    model: Any,
    example: Any,
    initializer: Initializer,
    *,
    key: jax.Array | None = None,
    head: bool = False,
    depth_fraction: float = 1.0,
    init_noise: float = 0.0,
) -> dict[str, Any]:
    """Initializes a network with predicted parameters.

    Args:
        model: A `models.network.Network`: a network of the design space, or one of `models.zoo`.
        example: A batch of images (B, H, W, C), or its shape and dtype, as for `model.init`.
        initializer: From `load`.
        key: Random key of what is not predicted; `jax.random.key(0)` by default, so that the same
            model and initializer give the same parameters.
        head: Whether the classifier is predicted too; else it keeps the model's own init.
        depth_fraction: Share of the tensors, input first, that take predicted values.
        init_noise: Normal noise on predicted tensors, in units of their standard deviation.

    Returns:
        Exactly the tree of `model.init(key, example)`; batch statistics are mean 0, variance 1.

    Raises:
        UsageError: If the model is not understood, the example does not fit it, an option is out of
            range, or the head has another number of classes than the initializer.
    """
    if not isinstance(model, Network):
        raise UsageError(
            f"initialize does not understand a {type(model).__name__}: give a "
            "medinit_jax.models.network.Network, such as those of medinit_jax.models.zoo (ResNets "
            "and networks of the design space)."
        )
    wanted, found = tuple(model.program.input_shape), tuple(np.shape(example)[1:])
    if len(np.shape(example)) != 4 or found != wanted:
        raise UsageError(
            f"The example has shape {tuple(np.shape(example))}, but the model takes images "
            f"(batch, {', '.join(map(str, wanted))}); give such a batch or build the model anew."
        )
    key = jax.random.key(0) if key is None else key
    transfer = Transfer(head, depth_fraction, init_noise)
    params = hyper_start(initializer.module, initializer.theta, model.program, key, transfer)
    statistics = initial_statistics(model.program)
    return {"params": params, **({"batch_stats": statistics} if statistics else {})}
