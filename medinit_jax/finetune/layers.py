"""Which parts of a network learn, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.models.network import is_below

ENCODER = "encoder"
# Leaves that weight decay shrinks; scales, biases and what else has one dimension are left alone.
DECAYED = ("kernel", "embedding")


def head_modules(program: Program) -> tuple[str, ...]:
    """Returns the modules that keep their own start: the head, or the decoder of a segmenter.

    Args:
        program: The network.
    """
    names = tuple(program.parameter_shapes())
    below = tuple(name for name in names if is_below(name, (ENCODER,)))
    return tuple(name for name in names if name not in below) if below else (program.head,)


def frozen_modules(program: Program, freeze: str) -> tuple[str, ...]:
    """Returns the modules that do not learn.

    Args:
        program: The network.
        freeze: `config.train.freeze`: "none", "encoder" (all but the head, or but the decoder of a
            segmentation network), or prefixes of module names, separated by commas.

    Raises:
        UsageError: A prefix matches no module, or nothing would be left to learn.
    """
    names = tuple(program.parameter_shapes())
    if freeze == "none":
        return ()
    if freeze == ENCODER:
        head = head_modules(program)
        return tuple(name for name in names if name not in head)
    prefixes = tuple(part.strip() for part in freeze.split(",") if part.strip())
    for prefix in prefixes:
        if not any(is_below(name, (prefix,)) for name in names):
            first = sorted({name.partition(".")[0] for name in names})
            raise UsageError(
                f"config.train.freeze names {prefix!r}, but no module is called so; the names "
                f"begin with {', '.join(first[:20])}."
            )
    frozen = tuple(name for name in names if is_below(name, prefixes))
    if len(frozen) == len(names):
        raise UsageError("config.train.freeze leaves nothing to learn; name fewer modules.")
    return frozen


def rate_factors(program: Program, frozen: Sequence[str], decay: float) -> dict[str, float]:
    """Returns the factor of every module's learning rate.

    Args:
        program: The network.
        frozen: Modules whose factor is 0.
        decay: Factor per block away from the head, in (0, 1]; the head itself has 1.

    Raises:
        UsageError: The decay is out of range.

    Source: Bao et al., BEiT (arXiv 2106.08254), appendix: layer-wise learning rate decay.
    """
    if not 0 < decay <= 1:
        raise UsageError(f"config.train.layer_decay={decay}; it lies in (0, 1].")
    depth: dict[str, int] = {}
    for index in range(len(program.calls)):
        for name in program.layout(index).parameters:
            depth.setdefault(program.calls[index].module(name), index)
    order = sorted(set(depth.values()), reverse=True)
    return {
        name: 0.0 if name in frozen else decay ** order.index(index)
        for name, index in depth.items()
    }


def scaled(updates: Any, factors: dict[str, float]) -> Any:
    """Multiplies the updates {module: {leaf: array}} by the factors of their modules."""
    return {
        name: jax.tree.map(lambda u, f=factors[name]: u * f, leaves)
        if factors[name] != 1
        else leaves
        for name, leaves in updates.items()
    }


def decay_mask(params: Any) -> Any:
    """Returns which leaves of {module: {leaf: array}} weight decay shrinks.

    Source: SWCL's code leaves the scales of norms and all biases alone.
    """
    return {name: {leaf: leaf in DECAYED for leaf in leaves} for name, leaves in params.items()}
