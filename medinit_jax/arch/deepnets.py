"""Networks of the DeepNets-1M design space: an architecture's description -> its program.

A network is a stem, a row of cells and a head. Cells are small graphs of operations on the outputs
of the two cells before (as in DARTS). Module names are those of the reference implementation, so
that its parameters can be compared one by one.

Source: Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021;
checked against four networks of the authors' code (shared/oracles/ghn.npz).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

from medinit_jax.arch.cell_blocks import (
    add_block,
    concat_block,
    conv_block,
    factorized_reduce,
    head_block,
    imagenet_stem,
    op_block,
    patch_stem,
    simple_stem,
    subsample_block,
)
from medinit_jax.arch.program import Block, Program, ProgramBuilder, Shape, block_layout
from medinit_jax.core.errors import UsageError

Gene = tuple[tuple[str, int], ...]

LARGE_IMAGE = 128


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One network of the design space.

    Attributes:
        normal: Two (operation, state) pairs per step of a normal cell; states 0 and 1 are the
            outputs of the two previous cells, state 2 + i is the sum that step i makes.
        reduce: The same for a reduction cell.
        concat: States that a cell concatenates.
        n_cells: Number of cells.
        ks: Kernel size of the stem.
        C: Channels of the first cell.
        C_mult: Channel multiplier of a reduction cell.
        preproc: Whether a cell maps its two inputs to its own width by 1x1 convolutions.
        glob_avg: Whether the head pools globally, or flattens.
        norm: Whether there is batch normalization.
        stem_type: 0 = one convolution, 1 = three strided ones.
        stem_pool: Whether the stem of type 0 ends in max pooling.
        fc_layers: Dense layers of the head, 1 or 2.
        fc_dim: Width between two dense layers.
        split: Where it was sampled.
        index: Its number in the split.
    """

    normal: Gene
    reduce: Gene
    concat: tuple[int, ...]
    n_cells: int
    ks: int = 3
    C: int = 32
    C_mult: int = 2
    preproc: bool = True
    glob_avg: bool = True
    norm: bool = True
    stem_type: int = 0
    stem_pool: bool = False
    fc_layers: int = 1
    fc_dim: int = 256
    split: str = ""
    index: int = 0

    @property
    def steps(self) -> int:
        """Number of sums in a cell."""
        return len(self.normal) // 2

    @functools.cached_property
    def ops(self) -> frozenset[str]:
        """The operations that occur in its cells."""
        return frozenset(op for op, _ in self.normal + self.reduce)

    @property
    def is_vit(self) -> bool:
        """Whether it attends, and therefore starts from patches and never reduces resolution."""
        return "msa" in self.ops


@dataclasses.dataclass(frozen=True)
class Cell:
    """Widths and strides of one cell.

    Attributes:
        gene: Its operations.
        inputs: Channels of the outputs of the two previous cells.
        width: Channels of its operations.
        stride: Stride of operations on its two inputs.
        halve_first: Whether its first input has twice the resolution of the second.
    """

    gene: Gene
    inputs: tuple[int, int]
    width: int
    stride: int
    halve_first: bool


def cells(arch: Architecture, large: bool) -> Iterator[Cell]:
    """Yields the plan of every cell of an architecture for large or small images."""
    reductions = {arch.n_cells // 3, 2 * arch.n_cells // 3} - {0}
    before = last = _stem_width(arch, large)
    width = arch.C
    halved = arch.stem_type == 1 and not arch.is_vit
    for index in range(arch.n_cells):
        reduction = index in reductions
        width *= arch.C_mult if reduction else 1
        strided = reduction and not arch.is_vit
        gene = arch.reduce if reduction else arch.normal
        yield Cell(gene, (before, last), width, 2 if strided else 1, halved)
        before, last = last, width * len(arch.concat)
        halved = strided


def program(
    arch: Architecture,
    image_size: int = 32,
    num_classes: int = 10,
    channels: int = 3,
    pruned: bool = True,
) -> Program:
    """Returns the program of an architecture.

    Args:
        arch: The architecture.
        image_size: Height and width of the images; from 128 up the stem is that of large images.
        num_classes: Size of the logits.
        channels: Channels of the images.
        pruned: Whether to leave out calls that never reach the logits.

    Raises:
        UsageError: If no path leads from the image to the logits, or the width does not divide.
    """
    if arch.C % 16:
        raise UsageError(
            f"architecture {arch.split}/{arch.index} has C={arch.C}: "
            "give a multiple of 16, so that heads and halves come out even"
        )
    build = ProgramBuilder((image_size, image_size, channels))
    first, second = _stem(build, arch, image_size >= LARGE_IMAGE)
    for index, cell in enumerate(cells(arch, image_size >= LARGE_IMAGE)):
        output = _cell(build, arch, cell, f"cells.{index}", first, second)
        first, second = second, output
    if second is None:
        raise UsageError(
            f"architecture {arch.split}/{arch.index} is disconnected: its `none` operations leave "
            "no path from the image to the logits; check `is_connected` before building it"
        )
    head = head_block(arch.glob_avg, arch.fc_dim if arch.fc_layers > 1 else 0, num_classes)
    build(head, (second,), "classifier")
    return build.build() if pruned else Program(tuple(build.calls), build.input_shape)


def is_connected(arch: Architecture) -> bool:
    """Tells whether the image reaches the logits in spite of `none` operations."""
    if "none" not in arch.ops:
        return True
    first = second = True
    for cell in cells(arch, False):
        alive = [first, second]
        for step in range(arch.steps):
            pair = cell.gene[2 * step : 2 * step + 2]
            alive.append(any(op != "none" and alive[state] for op, state in pair))
        first, second = second, any(alive[state] for state in arch.concat)
    return second


def count_parameters(
    arch: Architecture, image_size: int = 32, num_classes: int = 10, channels: int = 3
) -> int:
    """Counts all parameters of the module, those of dead branches included, as the reference does.

    The design space's limits are in these terms; `program(...).num_parameters` counts what runs.
    """
    large = image_size >= LARGE_IMAGE
    image = (image_size, image_size, channels)
    total = 0
    shape = image
    for block, _ in _stem_blocks(arch, large):
        total += _block_size(block, shape)
        shape = block_layout(block, (shape,)).outputs[-1]
    size = shape[0]
    features = shape[-1]
    for cell in cells(arch, large):
        total += _cell_size(cell, arch.preproc, arch.norm)
        size = -(-size // cell.stride)
        features = cell.width * len(arch.concat)
    head = head_block(arch.glob_avg, arch.fc_dim if arch.fc_layers > 1 else 0, num_classes)
    return total + _block_size(head, (size, size, features))


@functools.lru_cache(maxsize=65536)
def _cell_size(cell: Cell, preproc: bool, norm: bool) -> int:
    total = 0
    if preproc:
        before, last = cell.inputs
        total += _map_size(cell.width, before, cell.halve_first, norm)
        total += _map_size(cell.width, last, False, norm)
    for op, state in cell.gene:
        total += _op_size(op, cell.width, cell.stride if state < 2 else 1, norm)
    return total


@functools.cache
def _map_size(width: int, channels: int, halve: bool, norm: bool) -> int:
    block = (factorized_reduce if halve else conv_block)(width, norm=norm)
    return _block_size(block, (32, 32, channels))


@functools.cache
def _op_size(op: str, width: int, stride: int, norm: bool) -> int:
    if op == "none" or _is_identity(op, stride):
        return 0
    return _block_size(op_block(op, width, stride, norm), (32, 32, width))


@functools.lru_cache(maxsize=65536)
def _block_size(block: Block, shape: Shape) -> int:
    parameters = block_layout(block, (shape,)).parameters
    return sum(math.prod(leaf) for leaves in parameters.values() for leaf in leaves.values())


def _stem_width(arch: Architecture, large: bool) -> int:
    """The simple stem of small images is three times as wide where 1x1 convolutions follow."""
    simple = arch.stem_type == 0 and not arch.is_vit
    return arch.C * (3 if simple and arch.preproc and not large else 1)


def _stem_blocks(arch: Architecture, large: bool) -> tuple[tuple[Block, str], ...]:
    if arch.is_vit:
        return ((patch_stem(arch.C, large), ""),)
    if arch.stem_type == 0:
        width = _stem_width(arch, large)
        return ((simple_stem(width, arch.ks, large, arch.stem_pool, arch.norm), "stem"),)
    first, second = imagenet_stem(arch.C, arch.ks, large, arch.norm)
    return ((first, "stem0"), (second, "stem1"))


def _stem(build: ProgramBuilder, arch: Architecture, large: bool) -> tuple[int, int]:
    values = [0]
    for block, prefix in _stem_blocks(arch, large):
        values.append(build(block, values[-1:], prefix))
    return values[1], values[-1]


def _cell(
    build: ProgramBuilder,
    arch: Architecture,
    cell: Cell,
    prefix: str,
    first: int | None,
    second: int | None,
) -> int | None:
    """Appends a cell; None stands for a value that no path from the image reaches."""
    states = [first, second]
    if arch.preproc:
        halve = factorized_reduce if cell.halve_first else conv_block
        blocks = (halve(cell.width, norm=arch.norm), conv_block(cell.width, norm=arch.norm))
    else:
        blocks = (subsample_block() if cell.halve_first else None, None)
    for i, block in enumerate(blocks):
        value = states[i]
        if block is not None and value is not None:
            states[i] = build(block, (value,), f"{prefix}.preprocess{i}")
    for step in range(arch.steps):
        terms = []
        for i in (2 * step, 2 * step + 1):
            op, state = cell.gene[i]
            value = states[state]
            if op == "none" or value is None:
                continue
            stride = cell.stride if state < 2 else 1
            if not _is_identity(op, stride):
                block = op_block(op, cell.width, stride, arch.norm)
                value = build(block, (value,), f"{prefix}._ops.{i}")
            terms.append(value)
        if len(terms) == 2:
            states.append(build(add_block(), terms))
        else:
            states.append(terms[0] if terms else None)
    outputs = [states[i] for i in arch.concat]
    live = [value for value in outputs if value is not None]
    if not live or len(outputs) == 1:
        return outputs[0]
    return build(concat_block(tuple(value is not None for value in outputs)), live)


def _is_identity(op: str, stride: int) -> bool:
    return op == "skip_connect" and stride == 1
