"""Self-supervised semi-supervised learning (S4L): labels on some images, identity on all of them.

Every image is seen several times. Labelled ones pay cross-entropy on every view; of all, the views
of one image have to be closer to each other than to those of another one.

Source: Zhai et al., S4L (arXiv 1905.03670), section 4 (S4L-Exemplar); SWCL (arXiv 2108.02122),
section 3.1, with its code.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.pipeline import ENDLESS, epoch_order
from medinit_jax.downstream import heads as predictions
from medinit_jax.downstream.heads import UNKNOWN
from medinit_jax.finetune import recipes
from medinit_jax.finetune.data import TaskImages
from medinit_jax.finetune.examples import Examples
from medinit_jax.finetune.step import Part, Recipe
from medinit_jax.losses.vectors import unit, wide
from medinit_jax.models.features import features
from medinit_jax.swcl.triplet import TRIPLETS

# Names the use of the seed: order of the unlabelled images, and the draws of one view of each.
_LABELLED, _UNLABELLED = 4, 5


@dataclasses.dataclass(frozen=True)
class S4L:
    """Cross-entropy of the labelled views plus a triplet loss of all of them.

    Attributes:
        triplet: Key of `TRIPLETS`.
        margin: Of the triplet loss.
        weight: Of the triplet loss.
        parts: Parts of a batch; triplets never cross them.
    """

    triplet: str = "semi_hard"
    margin: float = 0.5
    weight: float = 1.0
    parts: int = 1

    def __call__(
        self, recipe: Recipe, params: Any, statistics: Any, part: Part
    ) -> tuple[jax.Array, Any]:
        """Returns the cost, float (), and new batch statistics.

        Args:
            recipe: What is trained; its network ends in global pooling and a linear layer.
            params: Parameters of the network.
            statistics: Its batch statistics.
            part: Images float32 (n, views, H, W, C); targets {head: int32 (n,)}, `UNKNOWN` for the
                images without a label.
        """
        count, views = part.images.shape[:2]
        flat = part.images.reshape(count * views, *part.images.shape[2:])
        held = {"params": params, "batch_stats": statistics}
        found = features(recipe.network, held, flat, train=True)
        pooled = wide(found.pooled)
        head = params[recipe.network.program.head]
        logits = pooled @ head["kernel"] + head["bias"]
        targets = {name: jnp.repeat(target, views) for name, target in part.targets.items()}
        totals = {name: total * views for name, total in part.totals.items()}
        value = predictions.loss(recipe.heads, logits, targets, part.weights, totals)
        identities = jnp.repeat(jnp.arange(count, dtype=jnp.int32), views)
        triplet = TRIPLETS[self.triplet](unit(pooled), identities, self.margin)
        return value + self.weight / self.parts * triplet, found.batch_stats


class S4LBatches:
    """Batches of labelled and unlabelled images by step number, several views of each.

    Args:
        config: `train` and `s4l`, see `configs/labeler.py`.
        images: The labelled task.
        unlabelled: Images without a label.

    Attributes:
        process: Which process makes its rows of a batch, and how many share it.

    Raises:
        UsageError: There are fewer images than a batch has, or it cannot be divided.
    """

    process = (0, 1)

    def __init__(
        self, config: ml_collections.ConfigDict, images: TaskImages, unlabelled: Sequence[Examples]
    ):
        self._images, self._seed = images, int(config.seed)
        self._unlabelled = tuple(unlabelled)
        self._ends = np.cumsum([len(part) for part in self._unlabelled])
        self._labelled_batch = int(config.train.batch)
        self._unlabelled_batch = int(config.s4l.unlabelled_batch)
        self._parts, self._views = int(config.train.accumulate), int(config.s4l.views)
        sizes = {
            "train.batch": (self._labelled_batch, len(images.train)),
            "s4l.unlabelled_batch": (self._unlabelled_batch, int(self._ends[-1])),
        }
        for key, (batch, count) in sizes.items():
            if min(batch, self._parts) < 1 or batch % self._parts or batch > count:
                raise UsageError(
                    f"config.{key}={batch} of {count} images does not divide into config.train."
                    f"accumulate={self._parts} parts, or is more than there are; change it."
                )
        if self._views < 2:
            raise UsageError(
                f"config.s4l.views={self._views} make no triplet; set it to 2 or more."
            )
        self.size = images.plan.size
        self.steps_per_epoch = -(-len(images.train) // self._labelled_batch)

    def shared(self, process: tuple[int, int]) -> S4LBatches:
        """Returns these batches, of which one process makes its rows only.

        Args:
            process: Its number, and the number of processes.

        Raises:
            UsageError: They cannot share a batch equally.
        """
        rows = self._labelled_batch + self._unlabelled_batch
        if rows % process[1]:
            raise UsageError(
                f"config.train.batch={self._labelled_batch} and config.s4l.unlabelled_batch="
                f"{self._unlabelled_batch} are {rows} images, which {process[1]} processes cannot "
                f"share; make them a multiple of {process[1]}."
            )
        own = copy.copy(self)
        own.process = process
        return own

    def __len__(self) -> int:
        """Returns a length that no run reaches."""
        return ENDLESS

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns a batch, or this process's rows of it.

        Returns:
            image float32 (B, views, S, S, 3) normalized, in every part labelled images before
            unlabelled ones; targets {head: int32 (B,)}.
        """
        labelled = self._drawn(step, self._labelled_batch, len(self._images.train), _LABELLED)
        others = self._drawn(step, self._unlabelled_batch, int(self._ends[-1]), _UNLABELLED)
        chosen = []
        for part in range(self._parts):
            chosen += [(True, *one) for one in labelled[part :: self._parts]]
            chosen += [(False, *one) for one in others[part :: self._parts]]
        process, processes = self.process
        share = len(chosen) // processes
        train = self._images.train
        pictures, targets = [], {name: [] for name in train.targets}
        for known, number, seed in chosen[process * share : (process + 1) * share]:
            if known:
                pictures.append(self._shown(train, number, seed))
            else:
                which = int(np.searchsorted(self._ends, number, side="right"))
                first = int(self._ends[which - 1]) if which else 0
                pictures.append(self._shown(self._unlabelled[which], number - first, seed))
            for name, target in train.targets.items():
                targets[name].append(target[number] if known else UNKNOWN)
        return {
            "image": recipes.normalized(np.stack(pictures), self._images.plan),
            "targets": {name: np.array(held, np.int32) for name, held in targets.items()},
        }

    def _drawn(
        self, step: int, batch: int, count: int, use: int
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Returns the numbers of the images of a step, and the seeds of their draws."""
        chosen = []
        for place in range(int(step) * batch, (int(step) + 1) * batch):
            epoch, offset = divmod(place, count)
            number = int(epoch_order(self._seed + use, epoch, count)[offset])
            chosen.append((number, (self._seed, use, epoch, number)))
        return chosen

    def _shown(self, examples: Examples, number: int, seed: tuple[int, ...]) -> np.ndarray:
        image, plan = examples.image(number), self._images.plan
        generators = (np.random.default_rng([*seed, view]) for view in range(self._views))
        return np.stack([recipes.drawn_image(image, plan, rng) for rng in generators])
