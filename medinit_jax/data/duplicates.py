"""Photographs that occur twice, found by their bytes or by what they look like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from etils import epath

_SIDE = 16


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Returns 256 bits: whether each cell of a 16 x 17 grid is brighter than its right neighbor.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint64 (4,).

    Source: Krawetz, "Kind of like that", 2013 (dhash).
    """
    # Reduced before it becomes gray: a small picture is quicker to convert.
    small = cv2.resize(image, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.int16)
    return np.packbits(gray[:, :-1] > gray[:, 1:]).view(np.uint64)


def alike(hashes: np.ndarray, distance: int = 2) -> list[list[int]]:
    """Groups what is alike; two belong together if a chain of pairs that are alike links them.

    Args:
        hashes: uint64 (N, 4).
        distance: Number of bits in which two that are alike differ at most.

    Returns:
        Lists of indices, each sorted, in order of their first; all of 0..N-1, most of them alone.
    """
    parent = list(range(len(hashes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, one in enumerate(hashes):
        differing = np.bitwise_count(hashes[index + 1 :] ^ one).sum(axis=1)
        for other in np.flatnonzero(differing <= distance):
            first, second = sorted((root(index), root(index + 1 + int(other))))
            parent[second] = first
    groups: dict[int, list[int]] = {}
    for index in range(len(hashes)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def identical(files: Mapping[str, epath.Path]) -> list[list[str]]:
    """Groups files that are byte for byte the same; only files of equal size are read.

    Args:
        files: {name: file}.

    Returns:
        Lists of two names or more, each sorted, in order of their first.
    """
    by_size: dict[int, list[str]] = {}
    for name in sorted(files):
        by_size.setdefault(files[name].stat().length, []).append(name)
    groups: dict[tuple[int, bytes], list[str]] = {}
    for size, names in by_size.items():
        if len(names) > 1:
            for name in names:
                digest = hashlib.sha256(files[name].read_bytes()).digest()
                groups.setdefault((size, digest), []).append(name)
    return sorted(group for group in groups.values() if len(group) > 1)


def divide_groups(groups: Sequence[Sequence[str]], first: int, seed: int) -> tuple[list[str], ...]:
    """Divides names at random into `first` of them and the rest, both sorted, groups kept whole.

    Groups are taken in the order of `PCG64(seed)`'s permutation, a group that no longer fits is
    passed over; where every group is one name this is `divide`. The first part falls short of
    `first` only if too few names are alone.
    """
    groups = sorted(sorted(group) for group in groups)
    parts: tuple[list[str], list[str]] = ([], [])
    for place in np.random.Generator(np.random.PCG64(seed)).permutation(len(groups)):
        group = groups[place]
        parts[len(parts[0]) + len(group) > first].extend(group)
    return tuple(sorted(part) for part in parts)
