"""The cells of the design space: how they are drawn, which are rejected, who owns which.

Source: Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, and the
generator published with it; after DARTS (Liu et al., ICLR 2019).
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from medinit_jax.arch.deepnets import Gene

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
POOLING = OPERATIONS[:4]
LARGE_CONVS = ("conv_5x5", "conv_7x7")
PARTS = 4


def draw_cells(
    rng: np.random.Generator, operations: tuple[str, ...], steps: int, only_pool: bool
) -> tuple[Gene, Gene]:
    """Draws a normal and a reduction cell from nearly uniform random weights.

    Args:
        rng: Source of randomness.
        operations: `OPERATIONS` or a part of it in the same order, "none" first.
        steps: Sums in a cell; "none" is kept out of cells with one.
        only_pool: Whether the reduction cell is confined to `POOLING`.
    """
    edges = steps * (steps + 3) // 2
    logits = 1e-3 * rng.standard_normal((2, edges, len(operations)))
    if only_pool:
        logits[1][:, [op not in POOLING for op in operations]] = -1000
    weights = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    first = 0 if steps > 1 else 1
    weights = weights[..., first:]
    names = [[operations[first + i] for i in row] for row in weights.argmax(-1).tolist()]
    heaviest = weights.max(-1).tolist()
    return _gene(names[0], heaviest[0]), _gene(names[1], heaviest[1])


def _gene(names: list[str], weights: list[float]) -> Gene:
    """Keeps for each step the two inputs whose best operation weighs most, heaviest first."""
    gene = []
    start = 0
    for states in range(2, 2 + (math.isqrt(9 + 8 * len(names)) - 3) // 2):
        edges = range(start, start + states)
        for edge in sorted(edges, key=lambda edge: -weights[edge])[:2]:
            gene.append((names[edge], edge - start))
        start += states
    return tuple(gene)


def is_rejected(normal: Gene, reduce: Gene) -> bool:
    """The reference's rules on cells: they keep out networks that diverge or need much memory."""
    ops = {op for op, _ in normal + reduce}
    has_conv = any("conv" in op for op in ops)
    if "cse" in ops and not has_conv:
        return True
    for gene in (normal, reduce):
        names = [op for op, _ in gene]
        if names.count("cse") > 1 or sum(map(names.count, LARGE_CONVS)) > 1:
            return True
    return not (has_conv or "msa" in ops)


def part(normal: Gene, reduce: Gene, concat: tuple[int, ...]) -> int:
    """Returns which of 4 equal parts a pair of cells falls into, by what the cells compute.

    The order of two operations that are added does not count, nor does a dead branch.
    """
    names = (_output_names(normal, concat), _output_names(reduce, concat))
    return zlib.crc32(repr(names).encode()) % PARTS


def _output_names(gene: Gene, concat: tuple[int, ...]) -> tuple[int, ...]:
    """Names every state by a hash of what is added there, 0 where nothing is."""
    states = [1, 2]
    for step in range(len(gene) // 2):
        terms = sorted(
            (op, states[state])
            for op, state in gene[2 * step : 2 * step + 2]
            if op != "none" and states[state]
        )
        states.append(zlib.crc32(repr(terms).encode()) if terms else 0)
    return tuple(states[i] for i in concat)
