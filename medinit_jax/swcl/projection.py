"""Heads on pooled features, as Flax modules whose parameters are named after the authors' keys.

Parameters are {module: {leaf: array}} with dotted module names, as of every network here: the
authors' "projection_network.out.0.weight" is the leaf "kernel" of "projection_network.out.0",
transposed. Encoder and heads hence share one flat tree.

Source: SWCL (arXiv 2108.02122) with its authors' code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from medinit_jax.arch.program import EPSILON, Step
from medinit_jax.core.errors import UsageError
from medinit_jax.losses.vectors import unit, wide
from medinit_jax.models.network import Leaves, Statistics, normalize_moving
from medinit_jax.models.ops import PRIMITIVES, standardized

PROJECTION = "projection_network"
PREDICTOR = "predictor_network"
HEAD_NORMS = ("gn_ws", "bn")
GROUPS = 16
KERNEL_EPSILON = 1e-10


def uniform_by_inputs(inputs: int) -> nn.initializers.Initializer:
    """Returns PyTorch's initializer of linear layers: uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Linear(nn.Module):
    """A linear layer that starts as PyTorch's do, or from a normal distribution without bias.

    Attributes:
        features: Channels of the output.
        standardized: Whether the kernel is brought to mean 0 and variance 1 per output.
        deviation: Standard deviation of the kernel at the start, with biases of 0; 0: PyTorch's.
    """

    features: int
    standardized: bool = False
    deviation: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns (..., features) of (..., channels), in the same dtype."""
        own = uniform_by_inputs(x.shape[-1])
        normal, zeros = nn.initializers.normal(self.deviation), nn.initializers.zeros
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", normal if self.deviation else own, shape)
        bias = self.param("bias", zeros if self.deviation else own, (self.features,))
        if self.standardized:
            kernel = standardized(kernel, KERNEL_EPSILON)
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class MlpHead(nn.Module):
    """Two linear layers and vectors of length 1, for SimCLR, SupCon and SWCL.

    Attributes:
        features: Channels of the output.
        hidden: Channels between the layers; 0: as many as come in.
    """

    features: int = 128
    hidden: int = 0

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Returns vectors of length 1, at least float32 (batch, features).

        Args:
            pooled: Float (batch, channels).
        """
        y = Linear(self.hidden or pooled.shape[-1], name=f"{PROJECTION}.out.0")(pooled)
        return unit(Linear(self.features, name=f"{PROJECTION}.out.2")(nn.relu(y)))


class ByolHead(nn.Module):
    """Linear layer, norm, ReLU and linear layer: the projector and the predictor of BYOL.

    Attributes:
        module: First part of the names: `PROJECTION` or `PREDICTOR`.
        features: Channels of the output.
        hidden: Channels between the layers.
        head_norm: "gn_ws": group norm of 16 groups between standardized layers, as SWCL's code has
            it; "bn": batch norm between plain layers, as BYOL.

    Source: Grill et al., Bootstrap Your Own Latent (arXiv 2006.07733), section 3.2.
    """

    module: str = PROJECTION
    features: int = 256
    hidden: int = 4096
    head_norm: Literal["gn_ws", "bn"] = "gn_ws"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns vectors of any length, at least float32 (batch, features).

        Args:
            x: Float (batch, channels): pooled features, or projections for the predictor.
            train: Whether batch norm uses and updates with this batch's statistics.

        Raises:
            UsageError: There is no such norm, or the hidden channels make no groups.
        """
        if self.head_norm not in HEAD_NORMS:
            raise UsageError(
                f"head_norm is {self.head_norm!r}; set it to one of {', '.join(HEAD_NORMS)}."
            )
        grouped = self.head_norm == "gn_ws"
        if grouped and self.hidden % GROUPS:
            raise UsageError(
                f"the heads have hidden={self.hidden}; set it to a multiple of {GROUPS} for "
                "head_norm=gn_ws."
            )
        y = Linear(self.hidden, standardized=grouped, name=f"{self.module}.out.0")(x)
        norm = f"{self.module}.out.1"
        leaves = Leaves({"scale": (self.hidden,), "bias": (self.hidden,)}, name=norm)()
        if grouped:
            step = Step("group_norm", (0,), groups=GROUPS)
            y = PRIMITIVES["group_norm"](step, leaves, y)
        else:
            moved = Statistics(self.hidden, name=f"{norm}.stats")()
            moving = train and not self.is_initializing()
            y = normalize_moving(y, leaves, moved, moving, EPSILON)
        last = Linear(self.features, standardized=grouped, name=f"{self.module}.out.3")
        y = last(nn.relu(y))
        return wide(y)


class DinoHead(nn.Module):
    """Linear layers to a bottleneck, and logits by cosines with one direction per prototype.

    The last layer is weight-normed with its lengths fixed at 1, so that only directions are
    parameters; exported, the authors' "weight_g" is ones.

    Attributes:
        prototypes: Channels of the output.
        hidden: Channels of the layers before the bottleneck.
        bottleneck: Channels of the vectors that are compared with the prototypes.
        official: Three layers with GELU, as DINO, instead of two with ReLU, as SWCL's code.

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers
    (arXiv 2104.14294), section 3.1 and appendix C.
    """

    prototypes: int = 4096
    hidden: int = 2048
    bottleneck: int = 256
    official: bool = False

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Returns logits, at least float32 (batch, prototypes).

        Args:
            pooled: Float (batch, channels).
        """
        activate = functools.partial(nn.gelu, approximate=False) if self.official else nn.relu
        widths = [self.hidden] * (2 if self.official else 1) + [self.bottleneck]
        y = pooled
        for number, width in enumerate(widths):
            # PyTorch's truncation lies a hundred deviations away.
            layer = Linear(width, deviation=0.02, name=f"{PROJECTION}.out.{2 * number}")
            y = layer(activate(y) if number else y)
        directions = _Directions(self.prototypes, name=f"{PROJECTION}.last_layer")(self.bottleneck)
        y = unit(y).astype(pooled.dtype) @ directions.astype(pooled.dtype)
        return wide(y)


class _Directions(nn.Module):
    """Directions (channels, prototypes) of length 1 in each column."""

    prototypes: int

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        shape = (channels, self.prototypes)
        return unit(self.param("kernel", uniform_by_inputs(channels), shape).T).T


class TaskHeads(nn.Module):
    """One linear layer per task, for cross-entropy on several labels of an image.

    Attributes:
        tasks: {task: number of classes}.
    """

    tasks: Mapping[str, int]

    @nn.compact
    def __call__(self, pooled: jax.Array) -> dict[str, jax.Array]:
        """Returns {task: logits, at least float32 (batch, classes)}.

        Args:
            pooled: Float (batch, channels).
        """
        return {
            task: wide(Linear(classes, name=f"out.{task}.0")(pooled))
            for task, classes in self.tasks.items()
        }
