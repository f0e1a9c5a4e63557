import runpy

import numpy as np
import pytest
from conftest import ROOT

from medinit_jax.data.sources import ArraySource
from medinit_jax.downstream.pool import open_pool

GET_CONFIG = runpy.run_path(str(ROOT / "configs" / "hyper.py"))["get_config"]


def source(labels):
    images = np.repeat(np.arange(len(labels), dtype=np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)
    return ArraySource(images * 10, patients=list("abcdef"), labels=np.array(labels))


@pytest.mark.parametrize("label", ["any", "class"])
def test_unlabelled_images_are_left_out(label):
    config = GET_CONFIG("folder")
    config.data.size = 8
    config.evaluate.downstream.label = label
    config.evaluate.downstream.images = {"train": 0, "val": 0, "test": 5}
    sources = {"train": source([-1, 0, 2, -1, 1, 0])}
    sources |= {"val": source([1, 0, 2, 0, 0, 1]), "test": source([-1, 1, 0, 1, 2, -1])}
    pool = open_pool(config, sources)
    assert pool is not None and pool.patients == ["b", "c", "e", "f"]
    expected = [0, 2, 1, 0] if label == "class" else [0, 1, 1, 0]
    assert pool.train.labels.tolist() == expected and pool.train.labels.dtype == np.int32
    assert [len(part.labels) for part in (pool.train, pool.val, pool.test)] == [4, 6, 4]
    assert [len(part.images) for part in (pool.train, pool.val, pool.test)] == [4, 6, 4]
    brightness = pool.train.images.mean(axis=(1, 2, 3))
    assert (np.diff(brightness) > 0).all()
    assert pool.classes == (3 if label == "class" else 2)
    sources["train"] = source([-1] * 6)
    assert open_pool(config, sources) is None
