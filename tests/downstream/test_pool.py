import numpy as np
import pytest
from ml_collections import ConfigDict

from medinit_jax.core.errors import UsageError
from medinit_jax.data.sources import ArraySource
from medinit_jax.downstream.pool import open_pool


def config(label="any", judge="test"):
    data = {"size": 4, "batch": 2, "source": "npz", "name": "", "normalization": "gray"}
    data["augment"] = {"zoom": (1.0, 1.0), "difficulty": {"start": 1.0, "end": 1.0}}
    downstream = {"label": label, "judge": judge, "images": {"train": 0, "val": 0, "test": 0}}
    return ConfigDict({"seed": 0, "data": data, "evaluate": {"downstream": downstream}})


def source(*labels):
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    images[:] = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    patients = [f"patient {number}" for number in range(len(labels))]
    return ArraySource(images, None, patients, np.array(labels))


def test_unlabelled_images_are_no_normal_ones():
    sources = {"train": source(0, -1, 2, 1), "val": source(-1, 1, 0), "test": source(1, 0)}
    pool = open_pool(config(), sources)
    assert pool.train.labels.tolist() == [0, 1, 1] and pool.val.labels.tolist() == [1, 0]
    assert pool.patients == ["patient 0", "patient 2", "patient 3"]
    steps = np.diff(pool.train.images[:, 0, 0, 0])
    np.testing.assert_allclose(steps, np.array([2, 1]) / 255 / 0.25, rtol=1e-5)
    assert open_pool(config("class"), sources).classes == 3


def test_validation_images_judge_where_test_images_may_not():
    """In halves that both have both classes, though the images lie by class as in folders."""
    labels = [0] * 6 + [1] * 4
    sources = {"train": source(0, 1), "val": source(*labels), "test": source(1, 0)}
    pool = open_pool(config(judge="val"), sources)
    for part in (pool.val, pool.test):
        assert sorted(part.labels) == [0, 0, 0, 1, 1]
    shown = [np.rint(p.images[:, 0, 0, 0] * 0.25 * 255 + 127.5) for p in (pool.val, pool.test)]
    assert sorted(np.concatenate(shown)) == list(range(10))
    with pytest.raises(UsageError, match="judge='train'; set it to test or val"):
        open_pool(config(judge="train"), sources)


def test_images_that_lie_by_class_are_spread_and_mixed():
    sources = {name: source(*[0] * 30, *[1] * 30) for name in ("train", "val", "test")}
    given = config()
    given.evaluate.downstream.images.train = 20
    pool = open_pool(given, sources)
    assert sorted(pool.train.labels) == [0] * 10 + [1] * 10
    # A batch of statistics has both classes, and patients go with their images.
    assert 0 < pool.train.labels[:8].sum() < 8
    numbers = np.rint(pool.train.images[:, 0, 0, 0] * 0.25 * 255 + 127.5).astype(int)
    assert pool.patients == [f"patient {number}" for number in numbers]
    assert sorted(numbers) == list(range(0, 60, 3))


def test_without_labels_there_is_no_pool():
    labelled = source(0, 1)
    assert open_pool(config(), {"train": labelled, "val": labelled, "test": source(-1, -1)}) is None
