"""Photographs on their way through a labeler: read ahead, scored, handed on in their order.

Threads read photographs of the next batches while the devices work. A batch is handed to the
devices before the scores of the one before it are fetched, so that they find the next one waiting.

**How the busy time is measured.** A batch counts from the moment when it is handed over until its
scores are there. A thread of its own waits for every batch in turn and notes the time, so the
stream itself never waits for a measurement. Batches overlap; the busy time is that of their union.
In it, the transfer of a batch to an idle device and that of its few scores back count as work.
On a CPU the device is the same cores that read and write, so it is slow rather than idle.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from medinit_jax.swcl import patch_plan
from medinit_jax.swcl.patch_plan import Eye
from medinit_jax.swcl.score_model import Score, rows

# Batches that are being read, and that are with the devices, while another is handed on.
_READING = 2
_RUNNING = 2
Read = Callable[[int], np.ndarray]


class Stream:
    """Scores photographs; what `patch_store.Scored` asks for.

    Args:
        read: Number of a photograph -> uint8 (S, S, 3); called from several threads.
        score: Scores a full batch.
        batch: Photographs in it.
        readers: Threads that read.
        fetcher: One thread that waits for scores.
        check: Called before every batch; what it raises ends the stream.
        clock: The time in seconds.

    Attributes:
        scored: Photographs that were handed on.
    """

    def __init__(
        self,
        read: Read,
        score: Score,
        batch: int,
        readers: Executor,
        fetcher: Executor,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._read, self._score, self._batch = read, score, batch
        self._readers, self._fetcher = readers, fetcher
        self._check, self._clock = check, clock
        self._spans: list[tuple[float, float]] = []
        self._began = clock()
        self.scored = 0

    def __call__(self, eyes: Sequence[Eye]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields photograph uint8 (S, S, 3) and scores float32 (5,) of every eye, in order.

        Batches end where parts end, so that they are the same whichever parts are left.
        """
        self._began = self._clock()
        running: deque[tuple[list[np.ndarray], Future[np.ndarray]]] = deque()
        for images in self._photographs(eyes):
            self._check()
            batch = padded(images, self._batch)
            started = self._clock()
            scores = self._score(batch)[1]
            running.append((images, self._fetcher.submit(self._fetch, started, scores)))
            if len(running) > _RUNNING:
                yield from self._finished(*running.popleft())
        while running:
            yield from self._finished(*running.popleft())

    def _photographs(self, eyes: Sequence[Eye]) -> Iterator[list[np.ndarray]]:
        """Yields the photographs of a batch while others are read."""
        reading: deque[list[Future[np.ndarray]]] = deque()
        for wanted in batches(eyes, self._batch):
            reading.append([self._readers.submit(self._read, eye.index) for eye in wanted])
            if len(reading) > _READING:
                yield [future.result() for future in reading.popleft()]
        while reading:
            yield [future.result() for future in reading.popleft()]

    def _fetch(self, started: float, scores: Any) -> np.ndarray:
        found = rows(scores, 2)
        self._spans.append((started, self._clock()))
        return found

    def _finished(
        self, images: list[np.ndarray], scores: Future[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # The rows of padding come last.
        for image, found in zip(images, scores.result(), strict=False):
            self.scored += 1
            yield image, found

    @property
    def seconds(self) -> float:
        """From the first photograph that was asked for to the last scores."""
        return self._spans[-1][1] - self._began if self._spans else 0.0

    @property
    def busy_share(self) -> float | None:
        """Share of `seconds` in which a batch was with the devices; None if there was none."""
        return union(self._spans) / self.seconds if self._spans else None


def batches(eyes: Sequence[Eye], batch: int) -> Iterator[Sequence[Eye]]:
    """Yields batches of eyes; none reaches from one part of a plan into the next."""
    each = 2 * patch_plan.PART
    for first in range(0, len(eyes), each):
        part = eyes[first : first + each]
        for start in range(0, len(part), batch):
            yield part[start : start + batch]


def padded(images: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """Returns images as one array (batch, ...), filled up with the last one."""
    return np.stack([*images, *[images[-1]] * (batch - len(images))])


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the seconds that are covered by at least one of the spans (start, end).

    Args:
        spans: In the order of their ends.
    """
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
