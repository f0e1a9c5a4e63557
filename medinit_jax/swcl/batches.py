"""Batches of views by step number: of pairs of patches, or of whole images.

Batch `step` follows from seed and step alone, as in `data.pipeline`. Epochs run into each other, so
that every batch is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import normalize
from medinit_jax.data.pipeline import ENDLESS, epoch_order
from medinit_jax.data.readable import Readable
from medinit_jax.data.sources import Source
from medinit_jax.data.views import ViewRecipe, make_views

# Names the use of the seed: the draws of one view.
_DRAW = 3
# A pair is the same patch of the left and the right eye.
EYES = ("left", "right")


class Look(NamedTuple):
    """How images become what a network sees.

    Attributes:
        recipe: Which views are drawn.
        size: Side of the views in pixels, local ones in proportion.
        mean: Of red, green and blue in 0..1.
        std: Their deviations.
    """

    recipe: ViewRecipe
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class ViewBatches:
    """Batches of views by step number.

    Args:
        items: Images, or pairs of patches with a `table` of labels.
        look: How they are shown.
        batch: Images in a batch; a pair counts two.
        seed: Of order and draws.
        process: This process's number and the number of processes, which share each batch.

    Raises:
        UsageError: There are no images, or a batch has more of them, fewer than 2, or half a pair,
            also once it is shared.
    """

    def __init__(
        self, items: Any, look: Look, batch: int, seed: int, process: tuple[int, int] = (0, 1)
    ):
        self.items, self.look, self.batch, self.seed = items, look, batch, seed
        self._process, self._processes = process
        self.paired = hasattr(items, "table")
        self._readable = Readable(items.__getitem__, len(items), "pair" if self.paired else "image")
        if len(items) == 0:
            raise UsageError(
                "There are no images to pretrain on; choose other sets in config.data."
            )
        there = len(items) * (2 if self.paired else 1)
        if batch > there:
            raise UsageError(
                f"config.train.batch={batch}, but there are {there} images; lower it, so that none "
                "is its own negative."
            )
        if self.paired and batch % 2:
            raise UsageError(
                f"config.train.batch={batch} patches are no pairs of eyes; set it to an even one."
            )
        if batch < 2:
            raise UsageError(
                f"config.train.batch={batch} leaves an image nothing that it could differ from; "
                "set it to at least 2."
            )
        unit = 2 if self.paired else 1
        if batch % (unit * self._processes):
            raise UsageError(
                f"config.train.batch={batch} cannot be shared by {self._processes} processes, of "
                f"which each takes whole {'pairs of eyes' if self.paired else 'images'}; make it a "
                f"multiple of {unit * self._processes}."
            )

    def __len__(self) -> int:
        """Returns a length that no run reaches."""
        return ENDLESS

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every image about once, at least 1."""
        return -(-len(self.items) * (2 if self.paired else 1) // self.batch)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns this process's rows of batch `step`, all of it where there is one process.

        Returns:
            "image" float32 (batch, views, S, S, 3), normalized, the two eyes of a pair next to each
            other; "local" float32 (batch, views, s, s, 3), if the recipe has such views; of pairs
            also "index" int32 (batch,), the number of the pair, and "eye" int32 (batch,), 0 left
            and 1 right.
        """
        draws = (self.batch // 2 if self.paired else self.batch) // self._processes
        count = len(self.items)
        images, parts, numbers = [], [], []
        first = (int(step) * self._processes + self._process) * draws
        for place in range(first, first + draws):
            epoch, offset = divmod(place, count)
            number = int(epoch_order(self.seed, epoch, count)[offset])
            number, item = self._readable.find(number)
            for side, name in enumerate(EYES if self.paired else ("image",)):
                rng = np.random.default_rng([self.seed, _DRAW, epoch, number, side])
                whole, local = make_views(item[name], self.look.recipe, rng, self.look.size)
                images.append(whole)
                parts.append(local)
                numbers.append(number)
        shown = {"image": images, **({"local": parts} if self.look.recipe.local else {})}
        batch = {
            name: normalize(np.stack(made), self.look.mean, self.look.std)
            for name, made in shown.items()
        }
        if self.paired:
            batch["index"] = np.array(numbers, np.int32)
            batch["eye"] = np.tile(np.arange(2, dtype=np.int32), draws)
        return batch


class Joined:
    """Several sources, one after another, as one."""

    def __init__(self, sources: Sequence[Source]):
        """Joins sources."""
        self.sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        """Returns the number of images."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[which - 1]) if which else 0
        return self.sources[which][int(index) - first]

    def describe(self) -> dict[str, Any]:
        """Returns the descriptions of all."""
        return {"count": len(self), "parts": [source.describe() for source in self.sources]}
