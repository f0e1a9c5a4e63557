import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.catalog import batch_options, open_splits
from medinit_jax.data.pipeline import BatchSource
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
    assert told == [("train", 8, 8), ("val", 4, 4), ("test", 4, 4)]
    assert all(isinstance(s, ArraySource) for s in splits.values())
    assert splits["train"][0]["image"].shape == (16, 16, 3)
    names = [{s[i]["patient"] for i in range(len(s))} for s in splits.values()]
    assert len(set.union(*names)) == sum(len(n) for n in names)
    told.clear()
    open_splits(data, ("val",), progress=lambda *report: told.append(report))
    assert not told
    batch = BatchSource(splits["train"], batch_options(data, seed=0))[0]
    assert batch["image"].shape == (4, 16, 16, 3) and set(batch["label"]) <= {0, 1}


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
        ({"name": "mri"}, "set data.name to one of"),
    ],
)
def test_unknown_values_are_named(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        open_splits(config(data_dir=tmp_path, **changes))


def test_options_are_read_from_the_configuration():
    options = batch_options(config(), seed=3)
    assert (options.batch, options.seed, options.augmentation.translate) == (4, 3, 0.2)
    assert options.mean[0] == 0.3219
    assert batch_options(config(source="npz"), 0).mean == (0.5, 0.5, 0.5)
    assert batch_options(config(normalization="gray"), 0).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UsageError, match="data.normalization is 'ct'"):
        batch_options(config(normalization="ct"), 0)
