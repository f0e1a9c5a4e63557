import io
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from medinit_jax.hyper import setup


def test_one_bar_for_each_split_however_often_the_end_is_told(monkeypatch):
    def opened(data, progress):
        for split in ("train", "val"):
            for done in (3, 5, 8, 8, 8):
                progress(split, done, 8)
        return {"train": SimpleNamespace(describe=dict)}

    monkeypatch.setattr(setup, "open_splits", opened)
    out = io.StringIO()
    sources = setup.open_sources(ConfigDict({"data": {"a": 1}}), Console(file=out, width=200))
    assert list(sources) == ["train"]
    train, val = out.getvalue().splitlines()
    assert train.startswith("draw train 8/8 images (100 %)")
    assert val.startswith("draw val 8/8 images (100 %)")


def test_the_bar_ends_with_what_interrupts_it(monkeypatch):
    def opened(data, progress):
        progress("train", 3, 8)
        progress("train", 4, 8)
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "open_splits", opened)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        setup.open_sources(ConfigDict({"data": {}}), Console(file=out, width=200))
    assert out.getvalue().startswith("draw train 4/8 images (50 %)")
