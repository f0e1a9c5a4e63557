"""Design spaces: architecture number i of a split, drawn when it is asked for.

`deepnets` is DeepNets-1M: its ranges, draws and rejection rules. `mixed` is the same with 30 % of
other families in the splits train, val and test, and with two widths in training. `small` is a
sub-space that two CPU cores train on in minutes, `compact` the same, every second network a narrow
and shallow member of another family. What is drawn depends on (space, split, index) alone, nothing
is stored. Pairs of cells are dealt to the splits by a hash of what they compute: the cells of an
evaluation split are never trained on, whatever the stem, the depth and the widths around them.

Source: Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, and the
generator published with it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Container, Mapping

import numpy as np

from medinit_jax.arch.deepnets import LARGE_IMAGE, Architecture, count_parameters, is_connected
from medinit_jax.arch.deepnets import program as deepnets_program
from medinit_jax.arch.families import COMPACT_FAMILIES, Member, draw_member
from medinit_jax.arch.genotype import LARGE_CONVS, OPERATIONS, draw_cells, is_rejected, part
from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError

EVALUATION_PARAMETERS = 2_500_000

# Which parts of all pairs of cells a split draws from.
OWNED = {
    "train": (2, 3),
    "val": (0,),
    "test": (1,),
    "wide": (1,),
    "deep": (0, 1),
    "dense": (0, 1),
    "bnfree": (0, 1),
    "search": (0, 1),
}

FAMILY_SPLITS = ("train", "val", "test")
# Share of the training networks of other families that take grayscale images.
GRAYSCALE = 0.25
Widening = Callable[["Space", Architecture, int, np.random.Generator], Architecture]


@dataclasses.dataclass(frozen=True)
class Split:
    """The ranges of one split.

    Attributes:
        size: Number of architectures.
        n_cells: Fewest and most cells.
        deep: Thresholds above which a network counts as deep; one is drawn each time.
        steps: Fewest sums in a cell, most in a deep network's, most in another's.
        max_parameters: Limit at C=32 and 10 classes, dead branches included.
        norm: "bn", "none", or "mixed" = half of the shallow networks do without.
        preproc: Probability that cells map their inputs where nothing forces them to, in networks
            without attention.
    """

    size: int
    n_cells: tuple[int, int] = (4, 18)
    deep: tuple[int, ...] = (7, 8, 9, 10)
    steps: tuple[int, int, int] = (1, 2, 4)
    max_parameters: int = 10**7
    norm: str = "mixed"
    preproc: float = 1.0


def deepnets_widths(
    space: Space, arch: Architecture, parameters: int, rng: np.random.Generator
) -> Architecture:
    """Sets the widths as the reference does.

    In training large networks stay at C=32, smaller ones are drawn wider. In evaluation C is the
    least multiple of 16 that makes 2.5 million parameters (every network of the published results
    has at least so many), times 4 (large images: 2) in `wide`.
    """
    if arch.split != "train":
        width = _least_width(arch, EVALUATION_PARAMETERS)
        factor = (2 if space.image_size >= LARGE_IMAGE else 4) if arch.split == "wide" else 1
        return dataclasses.replace(arch, C=width * factor)
    u, v = rng.random(2).tolist()
    large_convs = not arch.ops.isdisjoint(LARGE_CONVS)
    if parameters > 800_000 or not arch.glob_avg or large_convs or arch.n_cells > 12:
        choices = 1
    elif parameters > 400_000 or arch.n_cells > 10:
        choices = 2
    elif parameters > 200_000 or arch.n_cells > 8:
        choices = 3
    else:
        choices = 7
    width = 32 + 16 * int(u * choices)
    hidden = 8 if choices == 7 and width <= 64 else 4
    return dataclasses.replace(arch, C=width, fc_dim=64 + 64 * int(v * hidden))


def few_widths(
    space: Space, arch: Architecture, parameters: int, rng: np.random.Generator
) -> Architecture:
    """Sets the widths as the reference does; training rounds to C=32, 64 and heads of 128, 256.

    A third as many operations have to be compiled as for all widths.
    """
    drawn = deepnets_widths(space, arch, parameters, rng)
    if arch.split != "train":
        return drawn
    return dataclasses.replace(
        drawn, C=64 if drawn.C >= 64 else 32, fc_dim=256 if drawn.fc_dim >= 256 else 128
    )


def _least_width(arch: Architecture, parameters: int) -> int:
    """Returns the least C, a multiple of 16 from 32 up, that makes so many parameters."""
    # The count is exactly quadratic in C, so that three values tell all.
    values = [count_parameters(dataclasses.replace(arch, C=width)) for width in (32, 48, 64)]
    slope, curve = values[1] - values[0], values[2] - 2 * values[1] + values[0]
    steps = 0
    while values[0] + steps * slope + steps * (steps - 1) // 2 * curve < parameters:
        steps += 1
    return 32 + 16 * steps


def small_widths(
    space: Space, arch: Architecture, parameters: int, rng: np.random.Generator
) -> Architecture:
    """Sets C to 16, to 32 in `wide`: one width keeps the operations to compile few."""
    del space, parameters, rng
    return dataclasses.replace(arch, C=32 if arch.split == "wide" else 16)


@dataclasses.dataclass(frozen=True)
class Space:
    """A design space.

    Attributes:
        name: Its name, part of every random stream.
        splits: Ranges of each split.
        operations: What a cell may hold; `OPERATIONS` or a part of it in the same order.
        image_size: Height and width of the images; it moves the widths of `wide`.
        stem_kernels: Kernel sizes of the stem.
        stem_types: Kinds of stem: 0 simple, 1 ImageNet-style.
        multipliers: Channel multipliers of reduction cells.
        fc_layers: Depths of the head.
        stem_pool: Probability that the simple stem pools.
        fc_dim: Width between the two dense layers, where `widen` does not draw it.
        families: Share of the networks of `FAMILY_SPLITS` that are drawn from well-known families
            instead, see `arch.families`.
        compact: Whether every second network of `FAMILY_SPLITS` is of those families that have no
            node type beyond DeepNets-1M's, in turn, and narrow and shallow.
        widen: Sets C and fc_dim: a function of the space, the architecture at C=32, its number of
            parameters and a random generator.
    """

    name: str
    splits: Mapping[str, Split]
    operations: tuple[str, ...] = OPERATIONS
    image_size: int = 32
    stem_kernels: tuple[int, ...] = (3, 5, 7)
    stem_types: tuple[int, ...] = (0, 1)
    multipliers: tuple[int, ...] = (1, 2)
    fc_layers: tuple[int, ...] = (1, 2)
    stem_pool: float = 0.5
    fc_dim: int = 256
    families: float = 0.0
    compact: bool = False
    widen: Widening = deepnets_widths

    def size(self, split: str) -> int:
        """Returns the number of architectures in a split."""
        return self._split(split).size

    def program(self, split: str, index: int, num_classes: int) -> Program:
        """Returns the program of architecture `index` of a split."""
        return self.build(self.sample(split, index), num_classes)

    def build(self, drawn: Architecture | Member, num_classes: int) -> Program:
        """Returns the program of what `sample` drew."""
        if isinstance(drawn, Member):
            return drawn.program(self.image_size, num_classes)
        return deepnets_program(drawn, self.image_size, num_classes)

    def sample(self, split: str, index: int, epoch: int = 0) -> Architecture | Member:
        """Returns architecture `index` of a split.

        Args:
            split: A key of `splits`.
            index: 0 to `size(split) - 1`.
            epoch: Training widths are drawn anew in every epoch, over the same cells.

        Raises:
            UsageError: If there is no such split or index.
        """
        ranges = self._split(split)
        if not 0 <= index < ranges.size:
            raise UsageError(
                f"split {split!r} of space {self.name!r} has no architecture {index}: "
                f"give an index from 0 to {ranges.size - 1}"
            )
        # `wide` holds the networks of `test`, wider, where those are all of cells.
        rng = _stream(self.name, "test" if split == "wide" else split, index)
        if self.compact and split in FAMILY_SPLITS and index % 2:
            # In turn: curricula that begin with few networks, and small samples, have all of them.
            name = COMPACT_FAMILIES[index // 2 % len(COMPACT_FAMILIES)]
            member = draw_member(rng, self.image_size, OWNED[split], compact=True, names=(name,))
            return dataclasses.replace(member, split=split, index=index)
        if self.families and split in FAMILY_SPLITS and rng.random() < self.families:
            member = draw_member(rng, self.image_size, OWNED[split])
            # Held-out networks have three channels: none is drawn in gray either.
            channels = 1 if split == "train" and rng.random() < GRAYSCALE else 3
            return dataclasses.replace(member, split=split, index=index, channels=channels)
        while True:
            arch = self._draw(rng, ranges, OWNED[split])
            if arch is None:
                continue
            small, large = count_parameters(arch, 32), count_parameters(arch, 224)
            if max(small, large) <= ranges.max_parameters and is_connected(arch):
                break
        arch = dataclasses.replace(arch, split=split, index=index)
        count = large if self.image_size >= LARGE_IMAGE else small
        return self.widen(self, arch, count, _stream(self.name, split, index, 1 + epoch))

    def _split(self, split: str) -> Split:
        if split not in self.splits:
            raise UsageError(
                f"space {self.name!r} has no split {split!r}: choose from {', '.join(self.splits)}"
            )
        return self.splits[split]

    def _draw(
        self, rng: np.random.Generator, ranges: Split, parts: Container[int]
    ) -> Architecture | None:
        """Draws one architecture at C=32, or None if its cells are rejected or another split's."""
        u = iter(rng.random(32).tolist())

        def choose(options):
            return options[int(next(u) * len(options))]

        def chance(p: float) -> bool:
            return next(u) < p

        n_cells = choose(range(ranges.n_cells[0], ranges.n_cells[1] + 1))
        deep = choose(ranges.deep)
        least, medium, most = ranges.steps
        steps = choose(range(least, (most if n_cells <= deep else medium) + 1))
        only_pool, drop = chance(0.5), chance(0.5)
        normal, reduce = draw_cells(rng, self.operations, steps, only_pool)
        concat = tuple(i for i in range(2, steps + 2) if i == steps + 1 or not drop or chance(0.5))
        if is_rejected(normal, reduce) or part(normal, reduce, concat) not in parts:
            return None
        is_vit = any(op == "msa" for op, _ in normal + reduce)
        ks, multiplier, stem_type = (
            choose(options) for options in (self.stem_kernels, self.multipliers, self.stem_types)
        )
        preproc = steps > 1 or multiplier > 1 or chance(0.2 if is_vit else ranges.preproc)
        glob_avg = is_vit or n_cells > deep or chance(0.9)
        shallow = n_cells <= ranges.n_cells[0] + 1 and steps <= medium
        without_norm = shallow and chance(0.5) if ranges.norm == "mixed" else ranges.norm == "none"
        stem_pool = stem_type == 0 and chance(self.stem_pool)
        return Architecture(
            normal=normal,
            reduce=reduce,
            concat=concat,
            n_cells=n_cells,
            ks=ks,
            C_mult=multiplier,
            preproc=preproc,
            glob_avg=glob_avg,
            norm=not without_norm,
            stem_type=stem_type,
            stem_pool=stem_pool,
            fc_layers=choose(self.fc_layers),
            fc_dim=self.fc_dim,
        )


def get_space(name: str, image_size: int = 32) -> Space:
    """Returns a design space for images of a size.

    Raises:
        UsageError: If there is no space of that name.
    """
    if name not in SPACES:
        raise UsageError(f"no design space {name!r}: set config.space to {' or '.join(SPACES)}")
    return dataclasses.replace(SPACES[name], image_size=image_size)


def _stream(*key: str | int) -> np.random.Generator:
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng(words)


_DEEPNETS = Split(size=100)
_SMALL = Split(size=100, n_cells=(3, 5), steps=(1, 2, 2), norm="bn")
SPACES: dict[str, Space] = {
    "deepnets": Space(
        name="deepnets",
        splits={
            "train": dataclasses.replace(_DEEPNETS, size=10**6),
            "val": dataclasses.replace(_DEEPNETS, size=500),
            "test": dataclasses.replace(_DEEPNETS, size=500),
            "wide": _DEEPNETS,
            "deep": Split(100, n_cells=(10, 36), deep=(18,), max_parameters=10**8),
            "dense": Split(100, steps=(2, 6, 10), max_parameters=10**8),
            "bnfree": dataclasses.replace(_DEEPNETS, norm="none"),
            "search": Split(
                10**5, n_cells=(6, 20), deep=(10,), steps=(1, 3, 6), norm="bn", preproc=0.8
            ),
        },
    ),
    "small": Space(
        name="small",
        splits={
            "train": dataclasses.replace(_SMALL, size=10**6),
            "val": dataclasses.replace(_SMALL, size=500),
            "test": dataclasses.replace(_SMALL, size=500),
            "wide": _SMALL,
            "deep": dataclasses.replace(_SMALL, n_cells=(6, 10)),
            "dense": dataclasses.replace(_SMALL, steps=(3, 4, 4)),
            "bnfree": dataclasses.replace(_SMALL, norm="none"),
        },
        # Attention and 7x7 windows cost as much as all the rest together at these sizes.
        operations=tuple(op for op in OPERATIONS if op not in ("msa", "conv_7x7")),
        stem_kernels=(3,),
        stem_pool=1.0,
        multipliers=(2,),
        fc_layers=(1,),
        widen=small_widths,
    ),
}
SPACES["mixed"] = dataclasses.replace(
    SPACES["deepnets"], name="mixed", families=0.3, widen=few_widths
)
SPACES["compact"] = dataclasses.replace(SPACES["small"], name="compact", compact=True)
