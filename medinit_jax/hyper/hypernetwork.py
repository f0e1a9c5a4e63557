"""The hypernetwork as a Flax module: embedding, message passing, decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import lax

from medinit_jax.arch.vocabulary import DEEPNETS_TYPES
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.decoder import Decoder
from medinit_jax.hyper.embedding import NodeEmbedding, ShapeTables, shape_tables
from medinit_jax.hyper.gated_gnn import GatedGNN
from medinit_jax.hyper.tiles import TILINGS

Theta = Mapping[str, Any]


def layer_norm(parameters: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Normalizes each row to mean 0 and variance 1, then scales and shifts.

    Args:
        parameters: {"scale", "bias"}, (d,).
        x: (..., d).

    Returns:
        (..., d).
    """
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered * centered).mean(-1, keepdims=True)
    return centered * lax.rsqrt(variance + 1e-5) * parameters["scale"] + parameters["bias"]


class HyperInitializer(nn.Module):
    """Graph hypernetwork that predicts the parameters of any architecture.

    Its methods are used through `apply(theta, ..., method=HyperInitializer.decode_1d)` and compute
    in the dtype of theta. Defaults are those of GHN-2, except for `num_classes`.

    Attributes:
        hidden: Width d of node features, divisible by 4.
        max_shape: (out, in, height, width) of the whole tile; larger parameters are copies of it.
        num_classes: Classes of the pretext task.
        node_types: How many of `vocabulary.NODE_TYPES` it knows; 15 are those of DeepNets-1M.
        activations: Whether graphs hold activations as nodes.
        mode: "sequential" (GHN-2) or "sync" (the paper's Eq. 2).
        layers: Layers K of the synchronous mode.
        rounds: Forward and backward sweeps T of the sequential mode.
        direction: "incoming", "alternating" or "both"; synchronous mode only.
        virtual_edges: Whether nodes further away send messages, divided by their distance.
        include_1hop_in_virtual: Whether direct neighbors send those too; None = as the source of
            the mode does: yes in GHN-2, no in Eq. 2.
        max_distance: Longest path that carries a message.
        mlp_activation: What follows a message network: "relu" (GHN-2), "gelu", "silu" or "none".
        layer_norm: Whether features are normalized before they are decoded.
        shape_encoding: Whether the shape of a parameter is part of a node's features.
        tables: Known sizes of the shape encoding; None = those of `shape_tables`.
        encode_own_classes: Whether `predict` without the head gives the head's size as
            `num_classes` to the network, which knows no other.
        normalize: Whether `predict` normalizes parameters.
        tiling: What kernels larger than `max_shape` are made of: equal copies of their tile,
            "repeat" (GHN-2), or copies that differ, "shift", see `tiles.shift`.
        init_scheme: Initial embeddings: "ghn2" (standard normal) or "ghn3" (truncated, d^-1/2).
        crop: Part of the whole tile a smaller kernel is: "corner" (GHN-2) or "center" (GHN-3).
        decoder_scale: Factor on the initial weights of the decoder's last layers, 1/5 in GHN-3;
            unless it is 1, their biases start at 0.
        decoder_centered: Whether the decoder starts without the blur that a common mean of its
            inputs makes, see `Decoder`.
        decoder_rank: Rank of the channel matrices of predicted kernels, written as products of two
            factors, so that wide layers fit into `max_shape` at few parameters, see `Decoder`; 0 =
            written whole.

    Source: GHN-2 (Knyazev et al. 2021), GHN-3 (2023) and the hyper-initializer paper (arXiv
    2206.03661); checked against `ghn.npz`.
    """

    hidden: int = 32
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    num_classes: int = 4
    node_types: int = DEEPNETS_TYPES
    activations: bool = False
    mode: str = "sequential"
    layers: int = 8
    rounds: int = 1
    direction: str = "incoming"
    virtual_edges: bool = True
    include_1hop_in_virtual: bool | None = None
    max_distance: int = 50
    mlp_activation: str = "relu"
    layer_norm: bool = True
    shape_encoding: bool = True
    tables: ShapeTables | None = None
    encode_own_classes: bool = True
    normalize: bool = True
    tiling: str = "repeat"
    init_scheme: str = "ghn2"
    crop: str = "corner"
    decoder_scale: float = 1.0
    decoder_centered: bool = False
    decoder_rank: int = 0

    @property
    def known_sizes(self) -> ShapeTables:
        """The tables of the shape encoding, to be stored with theta."""
        return self.tables or shape_tables(self.num_classes, self.max_shape)

    def setup(self) -> None:
        """Creates the parts."""
        if self.init_scheme not in ("ghn2", "ghn3"):
            raise UsageError(f"init_scheme must be 'ghn2' or 'ghn3', not {self.init_scheme!r}")
        if self.tiling not in TILINGS:
            raise UsageError(f"tiling must be 'repeat' or 'shift', not {self.tiling!r}")
        self.embedding = NodeEmbedding(
            features=self.hidden,
            node_types=self.node_types,
            tables=self.known_sizes,
            shape_encoding=self.shape_encoding,
            deviation=None if self.init_scheme == "ghn2" else self.hidden**-0.5,
        )
        self.gnn = GatedGNN(
            features=self.hidden,
            mode=self.mode,
            layers=self.layers,
            rounds=self.rounds,
            direction=self.direction,
            virtual_edges=self.virtual_edges,
            include_1hop=self.include_1hop_in_virtual,
            max_distance=self.max_distance,
            activation=self.mlp_activation,
        )
        if self.layer_norm:
            self.norm = self.param("norm", self._init_norm)
        self.decoder = Decoder(
            features=self.hidden,
            max_shape=self.max_shape,
            num_classes=self.num_classes,
            crop=self.crop,
            scale=self.decoder_scale,
            centered=self.decoder_centered,
            rank=self.decoder_rank,
        )

    def _init_norm(self, key: jax.Array) -> dict[str, jax.Array]:
        return {"scale": jnp.ones(self.hidden), "bias": jnp.zeros(self.hidden)}

    def __call__(self, graph: jraph.GraphsTuple) -> jax.Array:
        """Computes node features as `features` does and touches every parameter, for `init`."""
        x = self.features(graph)
        self.decode_head_kernel(x[:1])
        return x

    def embed(self, graph: jraph.GraphsTuple) -> jax.Array:
        """Computes features of single nodes, before message passing; padding is 0.

        Args:
            graph: m architectures padded to n nodes each, see `arch.batching.to_jraph`.

        Returns:
            (m*n, d).
        """
        x = self.embedding(jnp.asarray(graph.nodes["type"]), jnp.asarray(graph.nodes["shape"]))
        return jnp.where(jnp.asarray(graph.nodes["mask"])[:, None], x, jnp.zeros((), x.dtype))

    def features(self, graph: jraph.GraphsTuple) -> jax.Array:
        """Computes node features after message passing and normalization.

        Args:
            graph: m architectures padded to n nodes each, see `arch.batching.to_jraph`.

        Returns:
            (m*n, d); node j of architecture i is row i*n + j; rows of padding mean nothing.
        """
        x = self.gnn(self.embed(graph), graph)
        return layer_norm(self.norm, x) if self.layer_norm else x

    def decode_kernel(
        self, x: jax.Array, kernel: tuple[int, int], out_channels: int, in_channels: int
    ) -> jax.Array:
        """Decodes raw kernels, see `Decoder.decode_kernel`.

        Args:
            x: (n, d), rows of `features`.
            kernel: Height and width.
            out_channels: Output channels O' of the tile.
            in_channels: Input channels I' of the tile.

        Returns:
            (n, height, width, I', O').
        """
        return self.decoder.decode_kernel(x, kernel, out_channels, in_channels)

    def decode_1d(self, x: jax.Array) -> jax.Array:
        """Decodes raw scales (row 0) and biases (row 1): (n, d) -> (n, 2, max_shape[0])."""
        return self.decoder.decode_1d(x)

    def decode_head_kernel(self, x: jax.Array) -> jax.Array:
        """Decodes raw classifier weights: (n, d) -> (n, max_shape[1], num_classes)."""
        return self.decoder.decode_head_kernel(x)

    def decode_head_bias(self, x: jax.Array) -> jax.Array:
        """Decodes raw classifier biases: (n, d) -> (n, num_classes)."""
        return self.decoder.decode_head_bias(x)


def from_config(options: Mapping[str, Any]) -> HyperInitializer:
    """Makes the module from `config.hyper`, whose keys are its attributes.

    Args:
        options: Attributes by name; lists are accepted for tuples, as JSON knows no tuples.

    Returns:
        The module.

    Raises:
        UsageError: If a key is no attribute.
    """
    values = dict(options)
    known = {field.name for field in dataclasses.fields(HyperInitializer)} - {"parent", "name"}
    if unknown := sorted(values.keys() - known):
        raise UsageError(f"config.hyper has no key {unknown[0]!r}; it knows {sorted(known)}")
    if "max_shape" in values:
        values["max_shape"] = tuple(values["max_shape"])
        if len(values["max_shape"]) != 4:
            raise UsageError(
                f"config.hyper.max_shape={values['max_shape']} must be (out, in, height, width)."
            )
    if values.get("tables") is not None:
        values["tables"] = ShapeTables(*(tuple(sizes) for sizes in values["tables"]))
    return HyperInitializer(**values)


# What shapes of parameters do not tell, and yet decides on what is written.
_SILENT = ("mode", "direction", "virtual_edges", "max_distance", "normalize", "crop", "tiling")


def check_alike(held: HyperInitializer, asked: HyperInitializer, what: str) -> None:
    """Raises UsageError if an initializer was trained to write in another way than is asked for.

    Args:
        held: The initializer's.
        asked: The one of `config.hyper`.
        what: The key that names the initializer, and its value.
    """
    differing = [name for name in _SILENT if getattr(held, name) != getattr(asked, name)]
    if differing:
        was = ", ".join(f"config.hyper.{name}={getattr(held, name)}" for name in differing)
        raise UsageError(f"The initializer of {what} was trained with {was}; set that here, too.")


def init_theta(module: HyperInitializer, key: jax.Array) -> Theta:
    """Draws the hypernetwork's variables.

    Args:
        module: The hyper-initializer.
        key: Random key.

    Returns:
        {"params": ...}, float32.
    """
    nodes = {"type": np.zeros(1, np.int32), "shape": np.ones((1, 4), np.int32)}
    none = np.zeros(1, np.int32)
    graph = jraph.GraphsTuple(
        nodes={**nodes, "mask": np.ones(1, bool)},
        edges={"distance": none},
        senders=none,
        receivers=none,
        n_node=np.ones(1, np.int32),
        n_edge=np.ones(1, np.int32),
        globals=None,
    )
    return jax.jit(module.init)(key, graph)
