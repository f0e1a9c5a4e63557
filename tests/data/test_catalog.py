import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from ml_collections import ConfigDict
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data import shards
from medinit_jax.data.builders.phantom_pretrain import FIRST_SEED
from medinit_jax.data.catalog import batch_options, open_splits
from medinit_jax.data.phantoms import PHANTOMS, fundus
from medinit_jax.data.pipeline import BatchSource
from medinit_jax.data.prepared import PreparedSource
from medinit_jax.data.sources import ArraySource


def config(**changes):
    data = ConfigDict(
        {
            "source": "phantom",
            "name": "fundus",
            "path": "",
            "data_dir": "",
            "size": 16,
            "render_size": 32,
            "patients": {"train": 4, "val": 2, "test": 2},
            "splits": (0.8, 0.1, 0.1),
            "split_seed": 0,
            "fit": "crop",
            "check": "decode",
            "labels": "none",
            "images_key": "auto",
            "labels_key": "auto",
            "label": "",
            "cache_mb": 64.0,
            "normalization": "auto",
            "batch": 4,
            "workers": 0,
            "augment": {
                "zoom": (1.0, 1.0),
                "translate": 0.2,
                "tilt": 10.0,
                "rotate": 0.0,
                "mirror": 0.5,
                "flip": 0.0,
                "border": "zero",
                "normalize_laterality": False,
                "difficulty": {"start": 1.0, "end": 1.0, "steps": 0},
            },
        }
    )
    data.update({key: str(v) if key in ("path", "data_dir") else v for key, v in changes.items()})
    return data.lock()


def test_phantoms_are_drawn_once_and_kept_in_memory(tmp_path):
    data, told = config(data_dir=tmp_path), []
    splits = open_splits(data, progress=lambda *report: told.append(report))
    assert {name: len(s) for name, s in splits.items()} == {"train": 8, "val": 4, "test": 4}
    counts = [
        (s, n, total)
        for s, total in (("train", 8), ("val", 4), ("test", 4))
        for n in range(total + 1)
    ]
    assert told == counts
    assert all(isinstance(s, ArraySource) for s in splits.values())
    assert splits["train"][0]["image"].shape == (16, 16, 3)
    names = [{s[i]["patient"] for i in range(len(s))} for s in splits.values()]
    assert len(set.union(*names)) == sum(len(n) for n in names)
    told.clear()
    open_splits(data, ("val",), progress=lambda *report: told.append(report))
    assert not told
    # Another number of patients of one split leaves the others as they are.
    data.patients.val = 1
    assert len(open_splits(data, progress=lambda *report: told.append(report))["val"]) == 2
    assert {report[0] for report in told} == {"val"}
    batch = BatchSource(splits["train"], batch_options(data, seed=0))[0]
    assert batch["image"].shape == (4, 16, 16, 3) and set(batch["label"]) <= {0, 1}


def test_phantoms_are_those_of_their_seeds_reduced_with_any_label(tmp_path):
    source = open_splits(config(data_dir=tmp_path, label="grade", cache_mb=0.0), ("val",))["val"]
    copy = pickle.loads(pickle.dumps(source))
    assert isinstance(source, PreparedSource) and len(source) == 4
    seen = set()
    for i in range(4):
        example = copy[i]
        seed = int(example["patient"].removeprefix("fundus-"))
        drawn = fundus.render(seed, example["eye"], 32)
        assert example["label"] == drawn["labels"]["grade"]
        mean = drawn["image"].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
        assert np.abs(example["image"] - mean).max() <= 1
        seen.add((seed, example["eye"]))
    first = FIRST_SEED["val"]
    assert seen == {(seed, eye) for seed in (first, first + 1) for eye in (1, -1)}
    described = source.describe()
    assert described["source"] == "prepared:medinit_phantom_pretrain/fundus_32px_val_2/val"
    assert described["count"] == 4 and len(described["sha256"]) == 64


def test_interrupted_drawing_goes_on_with_the_missing_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_EXAMPLES", 3)
    # Drawn in this process, where drawings can be counted.
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    drawn, render = [], fundus.render

    def interrupted(seed, *options):
        drawn.append(seed)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return render(seed, *options)

    phantom = PHANTOMS["fundus"]._replace(render=interrupted)
    monkeypatch.setitem(PHANTOMS, "fundus", phantom)
    with pytest.raises(KeyboardInterrupt):
        open_splits(config(data_dir=tmp_path / "part"), ("train",))
    assert not list((tmp_path / "part").rglob("prepared.json"))
    told = []
    resumed = open_splits(
        config(data_dir=tmp_path / "part"), ("train",), lambda *report: told.append(report)
    )
    # Eight images in three shards, the first of two images.
    assert told[0] == ("train", 2, 8) and len(drawn) == 5 + 6
    whole = open_splits(config(data_dir=tmp_path / "whole"), ("train",))
    assert resumed["train"].describe() == whole["train"].describe()


def test_phantoms_cut_short_are_noticed_and_drawn_anew_once_deleted(tmp_path):
    data = config(data_dir=tmp_path)
    before = open_splits(data, ("train",))["train"].describe()
    (shard,) = tmp_path.rglob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match="cut short; delete the folder"):
        open_splits(data, ("train",))
    shutil.rmtree(shard.parent)
    assert open_splits(data, ("train",))["train"].describe() == before


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        for eye in ("left", "right"):
            Image.fromarray(np.full((12, 16, 3), 5 * i, np.uint8)).save(tmp_path / f"{i}_{eye}.png")
    return tmp_path


def test_folder_is_divided_by_patient(folder):
    splits = open_splits(config(source="folder", path=folder))
    assert [len(s) for s in splits.values()] == [32, 4, 4]
    names = [{s[i]["patient"] for i in range(len(s))} for s in splits.values()]
    assert not names[0] & names[1] and not names[1] & names[2] and not names[0] & names[2]
    assert splits["val"].describe()["count"] == 4


def test_folder_with_too_few_images_for_a_part(folder):
    for place in sorted(folder.iterdir())[6:]:
        place.unlink()
    with pytest.raises(UsageError, match="holds 6 images, too few for a val part"):
        open_splits(config(source="folder", path=folder))


def test_npz_brings_its_own_splits(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "set.npz"
    arrays = {
        f"{split}_images": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for split, n in (("train", 9), ("val", 4), ("test", 5))
    }
    np.savez(
        path, **arrays, train_labels=np.zeros(9), val_labels=np.ones(4), test_labels=np.ones(5)
    )
    splits = open_splits(config(source="npz", path=path))
    assert [len(s) for s in splits.values()] == [9, 4, 5]
    assert splits["val"][0]["label"] == 1 and splits["train"][0]["label"] == 0
    one = config(source="npz", path=path, images_key="train_images", splits=(0.5, 0.25, 0.25))
    assert [len(s) for s in open_splits(one).values()] == [4, 2, 3]
    del arrays["val_images"]
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match="has no array 'val_images'; add it, or set"):
        open_splits(config(source="npz", path=path))
    assert set(open_splits(config(source="npz", path=path), ("train", "test"))) == {"train", "test"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "web"}, "data.source is 'web'; set it to one of: phantom, folder, npz"),
        ({"source": "folder"}, "data.path is empty"),
        ({"name": "mri"}, "no phantom 'mri'; set data.name to one of: ct, fundus, xray"),
        ({"patients": {"test": 0}}, "0 patients in data.patients.test make no set"),
        ({"render_size": 8}, "from 16 to 4096 pixels, not 8; change data.render_size"),
        ({"render_size": 4097}, "not 4097; change data.render_size"),
        ({"label": "sex"}, "has no label 'sex'; set data.label to one of: grade, any_dr"),
    ],
)
def test_unknown_values_are_named(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        open_splits(config(data_dir=tmp_path, **changes))
    # It is told before anything is drawn.
    assert not list(tmp_path.iterdir())


def test_options_are_read_from_the_configuration():
    options = batch_options(config(), seed=3)
    assert (options.batch, options.seed, options.augmentation.translate) == (4, 3, 0.2)
    assert options.mean[0] == 0.3219
    assert batch_options(config(source="npz"), 0).mean == (0.5, 0.5, 0.5)
    assert batch_options(config(normalization="gray"), 0).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UsageError, match="data.normalization is 'ct'"):
        batch_options(config(normalization="ct"), 0)


def test_sets_are_only_known_where_they_are_read():
    """Importing tensorflow-datasets takes about as long as the whole package."""
    code = "import sys, medinit_jax.data.catalog; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
