import contextlib
import dataclasses
import multiprocessing
import os
import signal

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.data import pipeline
from medinit_jax.data.augment import Augmentation, hard
from medinit_jax.data.pipeline import Batches, BatchOptions, BatchSource, Ramp, load_examples
from medinit_jax.data.sources import ArraySource

PLAIN = BatchOptions(batch=4, seed=1, augmentation=Augmentation(), mean=(0.0,) * 3, std=(1.0,) * 3)
HARD = dataclasses.replace(PLAIN, augmentation=hard())


def source(count=10, labels=True):
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    eyes = np.where(np.arange(count) % 2, -1, 1)
    return ArraySource(images, eyes, labels=np.arange(count) if labels else None)


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_batch_holds_what_it_says():
    batch = BatchSource(source(), PLAIN)[0]
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (4, 16, 16, 3)
    assert batch["eye"].dtype == np.int32 and batch["index"].dtype == np.int64
    for row, index in enumerate(batch["index"]):
        np.testing.assert_allclose(batch["image"][row] * 255, source().images[index], atol=1e-3)
        assert batch["eye"][row] == source().eyes[index] and batch["label"][row] == index
    assert "label" not in BatchSource(source(labels=False), PLAIN)[0]


def test_every_epoch_shows_every_image_once_in_its_own_order():
    batches = BatchSource(source(10), PLAIN)
    order = np.concatenate([batches[step]["index"] for step in range(5)])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert not np.array_equal(order[:10], order[10:])
    straight = BatchSource(source(10), dataclasses.replace(PLAIN, shuffle=False))
    np.testing.assert_array_equal(straight[2]["index"], [8, 9, 0, 1])


def test_a_batch_is_a_function_of_seed_and_step():
    equal(BatchSource(source(), HARD)[7], BatchSource(source(), HARD)[7])
    other = BatchSource(source(), dataclasses.replace(HARD, seed=2))[7]
    assert not np.array_equal(other["image"], BatchSource(source(), HARD)[7]["image"])


def test_an_image_moves_differently_in_every_epoch_whatever_the_batch():
    batches, large = (BatchSource(source(8), dataclasses.replace(HARD, batch=n)) for n in (4, 8))
    first = np.concatenate([batches[s]["image"] for s in range(4)])
    np.testing.assert_array_equal(first, np.concatenate([large[0]["image"], large[1]["image"]]))
    indices = np.concatenate([batches[s]["index"] for s in range(4)])
    (one, two) = np.flatnonzero(indices == 3)
    assert not np.array_equal(first[one], first[two])


def test_processes_share_the_global_batch():
    whole = BatchSource(source(), HARD)[3]
    parts = [BatchSource(source(), HARD, (i, 2))[3] for i in range(2)]
    equal(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
    with pytest.raises(UsageError, match="4 images cannot be shared by 3 processes"):
        BatchSource(source(), HARD, (0, 3))
    with pytest.raises(UsageError, match="source is empty"):
        BatchSource(source(0), HARD)


def test_difficulty_follows_the_step():
    ramp = Ramp(0.2, 1.0, steps=10)
    assert [ramp(s) for s in (0, 5, 10, 99)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    easy = dataclasses.replace(HARD, difficulty=Ramp(0.0, 1.0, steps=2), shuffle=False)
    batches = BatchSource(source(4), easy)
    np.testing.assert_allclose(batches[0]["image"] * 255, source(4).images, atol=1e-3)
    full = BatchSource(source(4), dataclasses.replace(HARD, shuffle=False))
    np.testing.assert_array_equal(batches[2]["image"], full[2]["image"])


def test_laterality_is_normalized_by_the_eye():
    options = dataclasses.replace(
        PLAIN, shuffle=False, augmentation=Augmentation(normalize_laterality=True)
    )
    batch, plain = (BatchSource(source(4), o)[0] for o in (options, PLAIN))
    plain = BatchSource(source(4), dataclasses.replace(PLAIN, shuffle=False))[0]
    np.testing.assert_array_equal(batch["image"][0], plain["image"][0])
    np.testing.assert_array_equal(batch["image"][1], plain["image"][1][:, ::-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_position_is_saved_and_restored(workers):
    batches = BatchSource(source(), HARD)
    stream = Batches(batches, workers)
    try:
        for step in range(3):
            equal(next(stream), batches[step])
        state = stream.get_state()
        expected = next(stream)
        equal(expected, batches[3])
        # A state is good for a stream with another number of workers.
        resumed = Batches(batches, 0)
        resumed.set_state(state)
        equal(next(resumed), expected)
        resumed.set_state({"step": 1})
        equal(next(resumed), batches[1])
        assert resumed.get_state() == {"step": 2}
        resumed.close()
    finally:
        stream.close()
    assert not multiprocessing.active_children()


def test_stream_can_go_on_after_closing():
    batches = BatchSource(source(), PLAIN)
    stream = Batches(batches, start=5)
    next(stream)
    stream.close()
    equal(next(stream), batches[6])
    stream.close()


class Broken(ArraySource):
    def __getitem__(self, index):
        raise UsageError("this image is gone")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_source_reaches_the_user(workers):
    stream = Batches(BatchSource(Broken(source().images), PLAIN), workers)
    try:
        with pytest.raises(Exception, match="this image is gone") as caught:
            next(stream)
        assert isinstance(caught.value, UsageError)
    finally:
        stream.close()


def put(file, text):
    """Writes a file so that no other process reads a part of it."""
    file.with_suffix(".new").write_text(text)
    os.replace(file.with_suffix(".new"), file)


class Deadly(ArraySource):
    """Ends the process that reads an image, as long as a file says so."""

    def __init__(self, file, *given):
        super().__init__(*given)
        self.file = file

    def __getitem__(self, index):
        # Of several workers one takes the file away, and ends.
        with contextlib.suppress(FileNotFoundError):
            lives = int(self.file.read_text())
            self.file.unlink()
            if lives > 1:
                put(self.file, str(lives - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_workers_that_die_are_started_again_where_they_were(tmp_path, capsys, monkeypatch):
    images = source().images
    stream = Batches(BatchSource(Deadly(tmp_path / "lives", images), PLAIN), 1)
    whole = BatchSource(ArraySource(images), PLAIN)
    try:
        equal(next(stream), whole[0])
        put(tmp_path / "lives", "1")
        # Some batches were made ahead.
        for step in range(1, 12):
            equal(next(stream), whole[step])
        assert stream.restarts == 1 and stream.get_state() == {"step": 12}
        assert capsys.readouterr().err.count("A worker that makes batches died") == 1
        monkeypatch.setattr(pipeline, "_RESTARTS", 1)
        put(tmp_path / "lives", "100")
        with pytest.raises(UsageError, match="died 2 times before step .* config.data.workers"):
            for _ in range(10):
                next(stream)
    finally:
        stream.close()
    assert not multiprocessing.active_children()


def test_evaluation_draws_depend_on_seed_and_image_only():
    all_of_them = load_examples(source(), np.arange(10), HARD)
    some = load_examples(source(), np.array([7, 2]), HARD)
    np.testing.assert_array_equal(some["image"], all_of_them["image"][[7, 2]])
    np.testing.assert_array_equal(some["index"], [7, 2])
    easy = load_examples(source(), np.arange(4), HARD, difficulty=0.0)
    np.testing.assert_allclose(easy["image"] * 255, source().images[:4], atol=1e-3)


def test_working_size():
    options = dataclasses.replace(PLAIN, size=8)
    assert BatchSource(source(), options)[0]["image"].shape == (4, 8, 8, 3)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UsageError, match="config.data.workers=-1 is no number of processes"):
        Batches([], -1)  # pyright: ignore[reportArgumentType]
