"""Photographs that are read, scored and handed on side by side."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl import patch_plan, score_stream
from medinit_jax.swcl.patch_plan import Eye
from medinit_jax.swcl.score_stream import Stream


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Makes parts of three patients."""
    monkeypatch.setattr(patch_plan, "PART", 3)


def eyes(count):
    return [Eye("made", str(i // 2), ("left", "right")[i % 2], i) for i in range(count)]


def streamed(count, batch, score_batch, read=None, **options):
    """Runs a stream over made photographs; returns what it yields and the stream."""
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as fetcher:
        read = read or (lambda number: np.full((2, 2, 3), number, np.uint8))
        stream = Stream(read, score_batch, batch, readers, fetcher, **options)
        return list(stream(eyes(count))), stream


def test_the_stream_keeps_the_order_and_fills_batches():
    shapes = []

    def score_batch(images):
        shapes.append(images.shape)
        return None, np.repeat(images[:, 0, 0, :1], 5, 1).astype(np.float32)

    found, stream = streamed(9, 4, score_batch)
    assert [int(image[0, 0, 0]) for image, _ in found] == list(range(9))
    assert [scores.tolist() for _, scores in found] == [[i] * 5 for i in range(9)]
    # Parts of six: batches of 4, 2, and 3, each filled up.
    assert shapes == [(4, 2, 2, 3)] * 3 and stream.scored == 9


def test_the_next_batch_waits_for_nothing():
    """While scores are fetched, later batches are with the devices and others are being read."""
    handed, read = [], []
    gate = threading.Event()

    class Late:
        """Scores that come when the gate opens."""

        def __array__(self, dtype=None, copy=None):
            assert gate.wait(20)
            return np.zeros((2, 5), np.float32)

    def score_batch(images):
        handed.append(images)
        return None, Late()

    def read_one(number):
        read.append(number)
        return np.zeros((2, 2, 3), np.uint8)

    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as fetcher:
        stream = Stream(read_one, score_batch, 2, readers, fetcher)(eyes(20))
        first = threading.Thread(target=lambda: next(stream))
        first.start()
        deadline = time.monotonic() + 20
        while (len(handed) < 3 or len(read) < 10) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(handed) == 3 and len(read) == 10
        gate.set()
        first.join(20)
        stream.close()


def test_a_photograph_that_cannot_be_read_ends_the_stream():
    def broken(number):
        if number == 5:
            raise UsageError("photograph 5 cannot be read")
        return np.zeros((2, 2, 3), np.uint8)

    with pytest.raises(UsageError, match="photograph 5"):
        streamed(9, 4, lambda images: (None, np.zeros((4, 5))), broken)


def test_busy_time_is_that_of_the_union():
    # Two that overlap, one inside another, a pause of 2 seconds.
    assert score_stream.union([(0, 3), (1, 5), (2, 5), (7, 8)]) == 6
    assert score_stream.union([]) == 0


def test_the_busy_share_by_hand():
    """Reading takes two seconds on this clock, which an idle device waits for."""
    now = [0.0]

    def score_batch(images):
        now[0] += 3.0
        return None, np.zeros((4, 5), np.float32)

    def read_one(number):
        if number == 0:
            now[0] += 2.0
        return np.zeros((2, 2, 3), np.uint8)

    _, stream = streamed(4, 4, score_batch, read_one, clock=lambda: now[0])
    assert stream.seconds == 5 and stream.busy_share == 0.6
    assert Stream(read_one, score_batch, 4, None, None).busy_share is None
