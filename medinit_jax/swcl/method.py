"""What a way to pretrain is: what it gets of a batch, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax

from medinit_jax.core.parallel import Parallel

Apply = Callable[[str, jax.Array], jax.Array]


class Seen(NamedTuple):
    """What a method gets of a batch.

    Attributes:
        pooled: Float (batch, views, channels), the encoder's features.
        target: The same of the averaged encoder; None without one.
        labels: {name: int32 (batch, ...)}.
        step: int32 (), steps taken before.
        epoch: Float (), the same in epochs.
        memory: What the method's last step left, such as a center.
    """

    pooled: jax.Array
    target: jax.Array | None
    labels: Mapping[str, jax.Array]
    step: jax.Array
    epoch: jax.Array
    memory: Any


class Judged(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        loss: Float32 ().
        figures: Scalars for the log.
        memory: For the next step.
    """

    loss: jax.Array
    figures: dict[str, jax.Array]
    memory: Any


class Method(Protocol):
    """A way to pretrain.

    Attributes:
        images: "pairs" of patches, or "whole" images.
        views: Views of each image.
        local: Whether it takes local views, too.
        averaged: Whether an exponential average of encoder and heads takes part.
    """

    images: ClassVar[Literal["pairs", "whole"]]
    views: ClassVar[int]
    local: ClassVar[bool]
    averaged: ClassVar[bool]

    def heads(self) -> dict[str, nn.Module]:
        """Returns the heads: the first on features, each other one on what the one before gives."""
        ...

    def memory(self, key: jax.Array) -> Any:
        """Returns what the first step finds in `Seen.memory`."""
        ...

    def judge(self, own: Apply, target: Apply, seen: Seen, parallel: Parallel) -> Judged:
        """Returns loss and figures.

        Args:
            own: (head, rows (n, channels)) -> rows, with the heads that learn.
            target: The same with the averaged ones.
            seen: The batch.
            parallel: Devices, over which the batch lies split.
        """
        ...
