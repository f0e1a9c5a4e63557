"""Weak labels: learn what the user already knows of the images.

Source: Knyazev et al., Parameter Prediction for Unseen Deep Architectures (arXiv 2110.13100): a
hypernetwork trained on labels, as GHN-2 was.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from medinit_jax.hyper.pretexts import perceptron
from medinit_jax.hyper.pretexts.task import Facts, Seen


@dataclasses.dataclass(frozen=True)
class WeakLabels:
    """Tells the label of an image, where it has one.

    Images without label (-1) count nothing. Chance is given as ln(number of classes), which labels
    of unequal frequency lie below.

    Attributes:
        label: "any" tells labels above 0 from 0, "class" takes them as they are.
        num_classes: Number of classes.
        answer: "learned": a head of two layers on pooled features; "predicted": the classifier that
            the hypernetwork writes, as GHN-2.
        hidden: Channels of the learned head.
    """

    label: Literal["any", "class"] = "any"
    num_classes: int = 2
    answer: Literal["learned", "predicted"] = "learned"
    hidden: int = 128
    copies: int = 1
    needs: tuple[str, ...] = ("label",)

    @property
    def classes(self) -> int:
        """Number of classes of the predicted classifier, if that answers."""
        return self.num_classes if self.answer == "predicted" else 0

    def check(self, group: int) -> str:
        """Returns what is wrong with the options; "" if nothing is."""
        if self.label not in ("any", "class"):
            return f"config.pretext.weak_labels.label={self.label!r} is neither any nor class"
        if self.answer not in ("learned", "predicted"):
            return (
                f"config.pretext.weak_labels.answer={self.answer!r} is neither learned nor "
                "predicted"
            )
        if self.num_classes < 2 or (self.label == "any" and self.num_classes != 2):
            return (
                f"config.pretext.weak_labels.num_classes={self.num_classes} does not fit label="
                f"{self.label}; any has 2 classes, class has 2 or more"
            )
        return ""

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and accuracy of guessing among classes of equal frequency."""
        return math.log(self.num_classes), 1 / self.num_classes

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the images as they are, and labels int32 (B,), -1 where there is none."""
        label = facts["label"]
        if self.label == "any":
            label = jnp.minimum(label, 1)
        return images, jnp.where(label < self.num_classes, label, -1)

    def head(self, key: jax.Array, width: int) -> dict:
        """Draws the classifier; none if the predicted one answers."""
        if self.answer == "predicted":
            return {}
        return perceptron.draw(key, width, self.hidden, self.num_classes)

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropy and accuracy of the labeled images, the mean over groups."""
        logits = seen.logits
        if self.answer == "learned":
            logits = perceptron.apply(seen.head, seen.features)
        known = (seen.targets >= 0).astype(logits.dtype)
        losses, right = perceptron.classified(logits, jnp.maximum(seen.targets, 0))
        count = jnp.maximum(known.reshape(-1, seen.group).sum(1), 1)
        losses, right = ((x * known).reshape(-1, seen.group).sum(1) for x in (losses, right))
        return (losses / count).mean(), (right / count).mean()
