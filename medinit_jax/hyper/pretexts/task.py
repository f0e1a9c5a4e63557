"""What a pretext is: views and targets of images, perhaps a learned head, and a loss.

A network has one classifier whose parameters are predicted. Pretexts that ask something else read
the pooled features before it through a head of their own, which is learned beside the
hypernetwork, the same for all architectures, and not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

Facts = Mapping[str, jax.Array]
# What images may come with, and which configuration gives it.
FACTS = {
    "label": "images with labels (config.data.labels)",
    "patient": "images whose patients are known",
}


class Seen(NamedTuple):
    """What a pretext gets of its views.

    Attributes:
        features: Float (n, width), pooled features, standardized over each group; see
            `hyper.objective.standardized`.
        logits: Float (n, classes) of the predicted classifier.
        targets: What `views` returned for these views.
        head: Parameters of its learned head.
        group: Views that share batch statistics; they alone are compared with each other.
    """

    features: jax.Array
    logits: jax.Array
    targets: Any
    head: Any
    group: int


class Pretext(Protocol):
    """A self-supervised task, a frozen dataclass."""

    @property
    def copies(self) -> int:
        """Number of views made of each image; they follow each other."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes it asks the predicted classifier for; 0: it does not read it."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of `FACTS` without which it cannot be asked."""
        ...

    def check(self, group: int) -> str:
        """Returns what keeps it from groups of so many views, "" if nothing does."""
        ...

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss in nats and score of features that say nothing."""
        ...

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, Any]:
        """Makes views (copies * B, S, S, C) of images (B, S, S, C), and targets, (copies * B, ...).

        Args:
            images: float (B, S, S, C).
            key: Random key.
            facts: What `needs` names, int32 (B,) each; -1 where unknown.
            group: Views that share batch statistics.
        """
        ...

    def head(self, key: jax.Array, width: int) -> Any:
        """Draws the parameters of its head on features of `width` channels; {} without one."""
        ...

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns loss and score, the mean over groups of equal weight, float ()."""
        ...


def divided(group: int, copies: int, least: int) -> str:
    """Says why groups cannot be made of whole images, at least `least`; "" if they can."""
    if group % copies or group // copies < least:
        return (
            f"it makes {copies} views of an image and needs groups of at least {least} whole "
            f"images; make config.train.bn_group={group} a multiple of {copies} and at least "
            f"{copies * least}"
        )
    return ""
