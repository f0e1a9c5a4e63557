"""Segmentation of whole images by windows of the size that a network takes.

Windows of several images fill the same batches, and the network works on one batch while the host
adds up the one before.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np


class _Piece(NamedTuple):
    """A window: the image's number, its rows and columns, and whether it is the image's last."""

    image: int
    top: int
    left: int
    last: bool
    shape: tuple[int, int]


def starts(size: int, window: int) -> list[int]:
    """Returns where windows begin along one side, the last one flush with the end.

    Args:
        size: Length of the side, at least the window's.
        window: Length of a window.

    Source: SWCL's code; the stride is the length over the least number of windows, rounded down.
    """
    stride = size // -(-size // window)
    return [*range(0, size - window, stride), size - window]


def predict_images(
    run: Callable[[np.ndarray], Any], images: Iterable[np.ndarray], window: int, batch: int
) -> Iterator[np.ndarray]:
    """Runs a network over all windows of images and adds up logits where windows overlap.

    An image smaller than the window is padded with zeros below and to the right, which the result
    does not show.

    Args:
        run: Float32 (batch, window, window, channels) -> logits (batch, window, window, classes).
        images: Float32 (H, W, channels) each, normalized.
        window: Side of the windows.
        batch: Windows at a time; the last batch is filled up with its last window.

    Yields:
        Logits float32 (H, W, classes) of each image, in order.
    """
    canvases: dict[int, np.ndarray] = {}
    waiting: collections.deque[tuple[list[_Piece], Any]] = collections.deque()

    def add(pieces: list[_Piece], answer: Any) -> Iterator[np.ndarray]:
        logits = np.asarray(jax.device_get(answer), np.float32)
        for piece, values in zip(pieces, logits, strict=False):
            height, width = (max(side, window) for side in piece.shape)
            if piece.image not in canvases:
                canvases[piece.image] = np.zeros((height, width, values.shape[-1]), np.float32)
            rows = slice(piece.top, piece.top + window)
            canvases[piece.image][rows, piece.left : piece.left + window] += values
            if piece.last:
                yield canvases.pop(piece.image)[: piece.shape[0], : piece.shape[1]]

    for pieces, pixels in _batches(images, window, batch):
        waiting.append((pieces, run(pixels)))
        # The device computes this batch while the host adds up the one before.
        if len(waiting) > 1:
            yield from add(*waiting.popleft())
    while waiting:
        yield from add(*waiting.popleft())


def _batches(
    images: Iterable[np.ndarray], window: int, batch: int
) -> Iterator[tuple[list[_Piece], np.ndarray]]:
    """Yields full batches of windows and what they are."""
    held = _windows(images, window)
    while chunk := list(itertools.islice(held, batch)):
        pixels = [values for _, values in chunk]
        pixels += pixels[-1:] * (batch - len(chunk))
        yield [piece for piece, _ in chunk], np.stack(pixels)


def _windows(images: Iterable[np.ndarray], window: int) -> Iterator[tuple[_Piece, np.ndarray]]:
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        missing = [(0, max(0, window - side)) for side in (height, width)]
        padded = np.pad(image, [*missing, (0, 0)]) if any(sum(missing, ())) else image
        places = list(itertools.product(*(starts(side, window) for side in padded.shape[:2])))
        for place in places:
            top, left = place
            piece = _Piece(number, top, left, place == places[-1], (height, width))
            yield piece, padded[top : top + window, left : left + window]
