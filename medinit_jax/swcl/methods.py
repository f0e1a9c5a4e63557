"""Ways to pretrain an encoder: which images they see, which heads they learn, what they minimize.

A method is a frozen dataclass, so that a compiled step can depend on it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from medinit_jax.core.parallel import Parallel
from medinit_jax.losses.supcon import collapse, contrastive_figures, gathered_supcon
from medinit_jax.losses.vectors import unit
from medinit_jax.swcl import distillation
from medinit_jax.swcl.method import Apply, Judged, Seen
from medinit_jax.swcl.patch_geometry import POSITIONS
from medinit_jax.swcl.projection import (
    PREDICTOR,
    PROJECTION,
    ByolHead,
    DinoHead,
    MlpHead,
    TaskHeads,
)

# Images of a batch that figures are computed of.
_FIGURED = 512


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Pulls views of equal labels together, and pushes all others apart.

    Without labels it is SimCLR (Chen et al. 2020) with two views of whole images; with those of
    patches it is SWCL (arXiv 2108.02122).

    Attributes:
        labelled: Whether the labels of patches count.
        width: Of the projection.
        temperature: See `supcon`.
        base_temperature: See `supcon`; 0 takes that of the loss.
        match: See `supcon`.
        reduction: See `supcon`.
        chunk: See `supcon`.
    """

    labelled: bool
    width: int = 128
    temperature: float = 0.1
    base_temperature: float = 0.0
    match: str = "all"
    reduction: str = "mean"
    chunk: int = 512
    views: ClassVar[int] = 2
    local: ClassVar[bool] = False
    averaged: ClassVar[bool] = False

    @property
    def images(self) -> Literal["pairs", "whole"]:
        """Patches where they are labelled."""
        return "pairs" if self.labelled else "whole"

    def heads(self) -> dict[str, nn.Module]:
        """Returns the projection."""
        return {"projection": MlpHead(self.width)}

    def memory(self, key: jax.Array) -> Any:
        """Returns nothing."""
        del key
        return ()

    def judge(self, own: Apply, target: Apply, seen: Seen, parallel: Parallel) -> Judged:
        """Returns the loss and its distance from that of a collapse.

        Positives per anchor, alignment, uniformity and spread are those of the first 512 images.
        """
        del target
        z = _per_view(own, "projection", seen.pooled)
        labels = seen.labels["columns"] if self.labelled else None

        def loss(z, labels):
            return gathered_supcon(
                z,
                labels,
                temperature=self.temperature,
                base_temperature=self.base_temperature or None,
                match=self.match,
                reduction=self.reduction,
                chunk=self.chunk,
            )

        if labels is None:
            # Numbers of the images over all devices: an image's positives are its own views.
            labels = jnp.arange(z.shape[0], dtype=jnp.int32)
        value = parallel.sharded(loss)(z, labels)
        rows = z.shape[0] * z.shape[1]
        mean = value / rows if self.reduction == "sum" else value
        mean *= (self.base_temperature or self.temperature) / self.temperature
        # Unlike the loss, they hold the matrix of all pairs.
        held = jax.lax.stop_gradient(z[:_FIGURED])
        figures = {
            **contrastive_figures(held, labels[:_FIGURED], self.match),
            "collapse_distance": collapse(mean, rows),
            "spread": _spread(held.reshape(-1, held.shape[-1])),
        }
        return Judged(value, figures, ())


@dataclasses.dataclass(frozen=True)
class Byol:
    """Predicts what the averaged network says about the other view (Grill et al. 2020).

    Attributes:
        hidden: Width of the hidden layers.
        width: Of the projection.
        head_norm: "gn_ws" as in SWCL's code, or "bn" as in BYOL.
    """

    hidden: int = 4096
    width: int = 256
    head_norm: Literal["gn_ws", "bn"] = "gn_ws"
    images: ClassVar[Literal["pairs", "whole"]] = "whole"
    views: ClassVar[int] = 2
    local: ClassVar[bool] = False
    averaged: ClassVar[bool] = True

    def heads(self) -> dict[str, nn.Module]:
        """Returns projector and predictor."""
        return {
            "projection": ByolHead(PROJECTION, self.width, self.hidden, self.head_norm),
            "predictor": ByolHead(PREDICTOR, self.width, self.hidden, self.head_norm),
        }

    def memory(self, key: jax.Array) -> Any:
        """Returns nothing."""
        del key
        return ()

    def judge(self, own: Apply, target: Apply, seen: Seen, parallel: Parallel) -> Judged:
        """Returns the loss and the spread of the projections."""
        del parallel
        projected = _per_view(own, "projection", seen.pooled)
        predicted = _per_view(own, "predictor", projected)
        aims = jax.lax.stop_gradient(_per_view(target, "projection", seen.target))
        loss = distillation.byol_loss(_by_view(predicted), _by_view(aims))
        rows = jax.lax.stop_gradient(projected).reshape(-1, projected.shape[-1])
        return Judged(loss, {"spread": _spread(unit(rows))}, ())


@dataclasses.dataclass(frozen=True)
class Dino:
    """Says of each view what the averaged network says of the other (Caron et al. 2021).

    Attributes:
        prototypes: Classes of the last layer.
        official: The head and the first center of the official code; else those of SWCL's code.
    """

    prototypes: int = 4096
    official: bool = False
    images: ClassVar[Literal["pairs", "whole"]] = "whole"
    views: ClassVar[int] = 2
    local: ClassVar[bool] = True
    averaged: ClassVar[bool] = True

    def heads(self) -> dict[str, nn.Module]:
        """Returns the projection with its prototypes."""
        return {"projection": DinoHead(self.prototypes, official=self.official)}

    def memory(self, key: jax.Array) -> Any:
        """Returns the first center (prototypes,): of zeros, or as SWCL's code draws it."""
        if self.official:
            return jnp.zeros(self.prototypes)
        return jax.random.uniform(key, (self.prototypes,))

    def judge(self, own: Apply, target: Apply, seen: Seen, parallel: Parallel) -> Judged:
        """Returns the loss and the teacher's entropy and information.

        The information is the entropy of what it says on average, less that of what it says of a
        view: 0 after a collapse, whether it then names all prototypes or always the same one.
        """
        del parallel
        student = _per_view(own, "projection", seen.pooled)
        teacher = jax.lax.stop_gradient(_per_view(target, "projection", seen.target))
        warmth = distillation.teacher_temperature(jnp.floor(seen.epoch)).astype(seen.memory.dtype)
        loss = distillation.dino_loss(_by_view(student), _by_view(teacher), seen.memory, warmth)
        center = distillation.dino_center(seen.memory, _by_view(teacher))
        said = jax.nn.softmax((teacher - seen.memory) / warmth)
        entropy = _entropy(said).mean()
        figures = {
            "teacher_entropy": entropy,
            "teacher_information": _entropy(said.mean((0, 1))) - entropy,
        }
        return Judged(loss, figures, center)


@dataclasses.dataclass(frozen=True)
class Multitask:
    """Names abnormality and position of a patch (the paper's CE-multitask).

    Attributes:
        position_weight: Of the cross-entropy of the position.
    """

    position_weight: float = 0.1
    images: ClassVar[Literal["pairs", "whole"]] = "pairs"
    views: ClassVar[int] = 1
    local: ClassVar[bool] = False
    averaged: ClassVar[bool] = False

    def heads(self) -> dict[str, nn.Module]:
        """Returns a linear layer for each task."""
        return {"out": TaskHeads({"normal-abnormal": 2, "position": len(POSITIONS)})}

    def memory(self, key: jax.Array) -> Any:
        """Returns nothing."""
        del key
        return ()

    def judge(self, own: Apply, target: Apply, seen: Seen, parallel: Parallel) -> Judged:
        """Returns the weighted sum of both cross-entropies, and both accuracies."""
        del target, parallel
        logits = own("out", seen.pooled[:, 0])
        loss, figures = jnp.zeros(()), {}
        for name, key, weight in (
            ("normal-abnormal", "abnormality", 1.0),
            ("position", "position", self.position_weight),
        ):
            wanted = seen.labels[key]
            each = optax.softmax_cross_entropy_with_integer_labels(logits[name], wanted)
            loss += weight * each.mean()
            right = logits[name].argmax(-1).astype(wanted.dtype) == wanted
            figures[f"accuracy_{key}"] = right.astype(jnp.float32).mean()
        return Judged(loss, figures, ())


METHODS: dict[str, Any] = {
    "swcl": Contrastive,
    "swcl_image": Contrastive,
    "simclr": Contrastive,
    "byol": Byol,
    "dino": Dino,
    "multitask": Multitask,
}


def _per_view(apply: Apply, head: str, pooled: Any) -> jax.Array:
    """Runs a head over (batch, views, channels)."""
    rows = apply(head, pooled.reshape(-1, pooled.shape[-1]))
    return rows.reshape(*pooled.shape[:2], -1)


def _by_view(rows: jax.Array) -> list[jax.Array]:
    """Divides (batch, views, D) into its views."""
    return [rows[:, view] for view in range(rows.shape[1])]


def _entropy(shares: jax.Array) -> jax.Array:
    """Returns the entropy in nats of distributions (..., K)."""
    return -(shares * jnp.log(jnp.maximum(shares, 1e-30))).sum(-1)


def _spread(rows: jax.Array) -> jax.Array:
    """Deviation of unit rows (n, D) over the batch times sqrt(D): 1 if uniform, 0 if collapsed."""
    return rows.std(0).mean() * rows.shape[-1] ** 0.5
