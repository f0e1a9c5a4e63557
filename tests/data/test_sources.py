import pickle

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.data.npz import NpzSource, npz_keys
from medinit_jax.data.sources import ArraySource, Subset, cached, split_by_patient


def images(count=6, size=8, channels=3, seed=0):
    shape = (count, size, size, channels) if channels else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / "set.npz"
        np.savez(path, **arrays)
        return path

    return write


def test_gray_becomes_three_channels_and_labels_follow(npz):
    gray = images(channels=0)
    path = npz(train_images=gray, train_labels=np.arange(6)[:, None], test_images=gray[:2])
    source = NpzSource(path, labels_key="auto")
    assert source.images_key == "train_images" and len(source) == 6
    np.testing.assert_array_equal(source[2]["image"], np.repeat(gray[2][..., None], 3, -1))
    assert source[2]["label"] == 2 and source[2]["eye"] == 0
    assert "label" not in NpzSource(path)[0]
    assert len(NpzSource(path, images_key="test_images", labels_key="auto")) == 2


def test_eyes_and_patients_beside_the_images_are_taken(npz):
    path = npz(images=images(), eye=np.array([1, -1] * 3), patient=np.arange(6) // 2)
    source = NpzSource(path)
    assert source[3]["eye"] == -1 and source[3]["patient"] == "1"


def test_what_is_not_known_beside_the_images(npz):
    beside = {"labels": np.array([0, 2, np.nan, -1, 1, np.nan])}
    beside |= {"eye": np.array([1.0, np.nan, -1, 0, 1, 1])}
    beside |= {"patient": np.array(["a", "a", "", "nan", "b", ""])}
    source = NpzSource(npz(images=images(), **beside), labels_key="auto")
    examples = [source[i] for i in range(6)]
    assert [one["label"] for one in examples] == [0, 2, -1, -1, 1, -1]
    assert [one["eye"] for one in examples] == [1, 0, -1, 0, 1, 1]
    assert len({one["patient"] for one in examples}) == 5
    assert examples[0]["patient"] == examples[1]["patient"] == "a"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("labels", ["healthy"] * 6, "labels in .* are <U7, as 'healthy'; .* numpy.unique"),
        ("labels", [0, 1, 0.5, 0, 0, 0], r"labels in .* hold 0\.5 at place 2; give whole numbers"),
        ("labels", [0, 1, 0, -3, 0, 0], "hold -3 at place 3"),
        ("labels", [0, 1, 0, 2**40, 0, 0], "hold 1099511627776 at place 3"),
        ("labels", [0, 1, np.inf, 0, 0, 0], "hold inf at place 2"),
        ("eye", ["left"] * 6, "eye in .* as 'left'; give -1 .left., 0 .unknown. and 1"),
        ("eye", [2, 1, 0, 0, 0, 0], "eye in .* hold 2 at place 0"),
    ],
)
def test_labels_and_eyes_that_mean_nothing(name, values, message, npz):
    with pytest.raises(UsageError, match=message):
        NpzSource(
            npz(images=images(), **{name: np.array(values)}),
            labels_key="auto" if name == "labels" else None,
        )


def test_images_are_resized(npz):
    source = NpzSource(npz(images=images(size=28)), size=32)
    assert source[0]["image"].shape == (32, 32, 3)


def test_checksum_is_of_the_stored_images(npz):
    path = npz(images=images())
    small, large = NpzSource(path), NpzSource(path, size=16)
    assert small.describe()["sha256"] == large.describe()["sha256"]
    assert NpzSource(npz(images=images(seed=1))).describe()["sha256"] != small.describe()["sha256"]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"images": images().astype(np.float32)}, {}, "is float32; images are uint8"),
        ({"images": images(channels=4)}, {}, r"has shape \(6, 8, 8, 4\)"),
        ({"images": images()[:, :, 0, 0]}, {}, r"has shape \(6, 8\)"),
        ({"images": images()[:0]}, {}, "is empty"),
        ({"a": images(), "b": images()}, {}, r"not clear which array .* a uint8\[6, 8, 8, 3\]"),
        ({"a": images()}, {"images_key": "b"}, "no array 'b'; set data.images_key"),
        ({"images": images()}, {"labels_key": "y"}, "no array 'y'; set data.labels_key"),
        ({"images": images(), "labels": np.arange(5)}, {"labels_key": "auto"}, "holds 6 images"),
        ({"images": np.array([{}, {}])}, {}, "without object arrays"),
    ],
)
def test_unusable_arrays_are_named(npz, arrays, options, message):
    with pytest.raises(UsageError, match=message):
        NpzSource(npz(**arrays), **options)


def test_unusable_files_are_named(tmp_path, npz):
    with pytest.raises(UsageError, match="does not exist"):
        NpzSource(tmp_path / "none.npz")
    path = npz(images=images())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="cannot be read as an .npz"):
        NpzSource(path)
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="cannot be read as an .npz"):
        npz_keys(path)
    with path.open("wb") as stream:
        np.save(stream, images())
    with pytest.raises(UsageError, match="cannot be read as an .npz"):
        NpzSource(path)


class Slow:
    """A source that is not in memory."""

    def __init__(self, labels=True):
        self.inner = ArraySource(
            images(), np.ones(6), list("aabbcc"), np.arange(6) if labels else None
        )

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.inner[index]

    def describe(self):
        return {"source": "slow", "count": 6, "sha256": "x"}


@pytest.mark.parametrize("labels", [True, False])
def test_cache_holds_the_same_examples(labels):
    source = Slow(labels)
    memory = cached(source)
    assert isinstance(memory, ArraySource) and memory.describe() == source.describe()
    for i in range(6):
        expected, got = source[i], memory[i]
        np.testing.assert_array_equal(got.pop("image"), expected.pop("image"))
        assert got == expected
    assert cached(source, limit_mb=1e-4) is source
    assert cached(memory) is memory


def test_split_keeps_patients_together_and_uses_every_image():
    source = ArraySource(images(60), patients=[str(i // 3) for i in range(60)])
    parts = split_by_patient(source, (0.8, 0.1, 0.1))
    assert [len(p) for p in parts] == [48, 6, 6]
    assert sorted(np.concatenate(parts)) == list(range(60))
    names = [{source.patients[i] for i in part} for part in parts]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    again = split_by_patient(source, (0.8, 0.1, 0.1))
    other = split_by_patient(source, (0.8, 0.1, 0.1), seed=1)
    np.testing.assert_array_equal(parts[0], again[0])
    assert not np.array_equal(parts[0], other[0])


def test_subset_and_pickling():
    source = Subset(ArraySource(images()), np.array([4, 1]), "val")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 2 and copy[0]["patient"] == "4"
    assert copy.describe()["source"] == "memory [val]" and copy.describe()["count"] == 2
