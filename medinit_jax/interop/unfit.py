"""What of a file does not fit a network, told by name with what comes closest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from medinit_jax.interop.layouts import PREFIXES, Tensors

# The least likeness of two names that are told together.
_ALIKE = 0.75


def unfit(tensors: Tensors, wanted: Collection[str]) -> dict[str, str]:
    """Returns {"module/leaf": why} of the tensors of a network that a file does not give.

    Args:
        tensors: What the file holds.
        wanted: Tensors that it should hold, "module/leaf".
    """
    found = {}
    for own in wanted:
        if own in tensors.missing:
            name = tensors.missing[own]
            near = difflib.get_close_matches(name, tensors.unused, n=2, cutoff=_ALIKE)
            closest = f", where {' and '.join(near)} come closest" if near else ""
            found[own] = f"{name} is not in the file{closest}"
        elif own in tensors.misshapen:
            name, there, here = tensors.misshapen[own]
            found[own] = f"{name} is {there} in the file and {here} here"
    return found


def strangers(tensors: Tensors, wanted: Collection[str]) -> list[str]:
    """Returns names in a file that lie beside what a network takes, and have no place in it.

    They belong to another, larger network. Heads and decoders lie elsewhere.

    Args:
        tensors: What the file holds.
        wanted: Tensors that the network takes, "module/leaf".
    """
    taken = [name for name, own in tensors.used.items() if own in wanted]
    below = next((p for p in PREFIXES[1:] if all(name.startswith(p) for name in taken)), "")
    ours = {_part(name, below) for name in taken}
    return [name for name in tensors.unused if _part(name, below) in ours]


def _part(name: str, below: str) -> tuple[str, ...]:
    """Returns the outermost module of a name: "layer1" of "layer1.0.conv1.weight"."""
    parts = re.split(r"[./]", name.removeprefix(below))
    # Names with slashes begin with the network's, or the tree's.
    return tuple(parts[: 2 if "/" in name else 1])
