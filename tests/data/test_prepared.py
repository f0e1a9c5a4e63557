import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data import tasks
from medinit_jax.data.augment import NORMALIZATION
from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.catalog import batch_options, open_splits
from medinit_jax.data.layout import Tree
from medinit_jax.data.prepare import prepare
from medinit_jax.data.prepared import PreparedSource
from medinit_jax.data.sources import ArraySource, patients_of

SPLITS = {"train": range(12), "validation": range(12, 16), "test": range(16, 20)}


class MedinitFake(Builder):
    """Two eyes per patient; the number of the image is its color and its label modulo 3."""

    HOMEPAGE = "https://example.org"
    MARKERS = (("0.png",),)
    MODALITY = "X-ray"
    BUILDER_CONFIGS = [
        Config(name=name, description=name) for name in ("default", "two", "one", "anonymous")
    ]

    def features(self):
        return {
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
            "number": tfds.features.Scalar(dtype=np.int64),
        }

    def items(self, tree: Tree):
        config = self.builder_config.name
        if config == "one":
            wanted = {"train": range(20)}
        else:
            kept = ("train", "test") if config == "two" else SPLITS
            wanted = {split: SPLITS[split] for split in kept}
        return {
            split: [self._item(tree, split, number, config) for number in numbers]
            for split, numbers in wanted.items()
        }

    def _item(self, tree, split, number, config):
        values = {
            "image_id": str(number),
            "patient_id": "" if config == "anonymous" else str(number // 2),
            "eye": ("left", "right")[number % 2],
            "label": -1 if number == 0 else number % 3,
            "number": number,
        }
        return Item(f"{split}/{number}", {"image": tree.file(f"{number}.png")}, values)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("fake")
    for number in range(20):
        array = np.full((40, 30, 3), 10 * number, np.uint8)
        Image.fromarray(array).save(root / f"{number}.png")
    for config in MedinitFake.builder_configs:
        builder = MedinitFake(data_dir=root / "data", config=config)
        prepare(builder, epath.Path(root), workers=0)
    return root / "data"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(BUILDERS, "medinit_fake", MedinitFake)


def config(data_dir, name="medinit_fake/default", **changes):
    data = {
        **{"source": "prepared", "name": name, "path": "", "data_dir": str(data_dir), "size": 16},
        **{"splits": (0.5, 0.25, 0.25), "split_seed": 0, "fit": "pad", "label": ""},
        **{"cache_mb": 0.0, "normalization": "auto", "batch": 4},
        "augment": {"zoom": (1.0, 1.0), "difficulty": {"start": 1.0, "end": 1.0}},
    }
    return ConfigDict({**data, **changes})


def numbers(source):
    return {round(float(source[i]["image"][8, 8, 0]) / 10) for i in range(len(source))}


def test_own_splits_with_eyes_patients_and_labels(data_dir):
    splits = open_splits(config(data_dir))
    for split, own in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert numbers(splits[split]) == set(SPLITS[own])
    for i in range(12):
        example = splits["train"][i]
        number = round(float(example["image"][8, 8, 0]) / 10)
        # 40 rows to 16, 30 columns to 12 and two black columns on either side.
        assert example["image"].shape == (16, 16, 3) and not example["image"][:, :2].any()
        assert example["eye"] == (1 if number % 2 else -1)
        assert example["patient"] == str(number // 2)
        assert example["label"] == (-1 if number == 0 else number % 3)


def test_what_a_set_lacks_is_held_out_from_train_by_patient(data_dir):
    two = open_splits(config(data_dir, "medinit_fake/two"))
    assert numbers(two["test"]) == set(SPLITS["test"])
    # Shares of 0.5 and 0.25: a third of 6 patients.
    assert (len(two["train"]), len(two["val"])) == (8, 4)
    assert numbers(two["train"]) | numbers(two["val"]) == set(SPLITS["train"])
    alone = open_splits(config(data_dir, "medinit_fake/two"), ["train"])
    assert list(alone) == ["train"] and numbers(alone["train"]) == numbers(two["train"])
    one = open_splits(config(data_dir, "medinit_fake/one"))
    assert [len(one[split]) for split in ("train", "val", "test")] == [10, 4, 6]
    for splits in (two, one):
        patients = [{s[i]["patient"] for i in range(len(s))} for s in splits.values()]
        assert sum(map(len, patients)) == len(set.union(*patients))
    other = open_splits(config(data_dir, "medinit_fake/one", split_seed=5))
    assert numbers(other["val"]) != numbers(one["val"])
    with pytest.raises(UsageError, match="too few for a val part"):
        open_splits(config(data_dir, "medinit_fake/two", splits=(0.8, 0.0, 0.2)))


def test_images_without_a_known_patient_stand_alone(data_dir):
    source = open_splits(config(data_dir, "medinit_fake/anonymous"))["train"]
    assert sorted(patients_of(source)) == sorted(f"train/{number}" for number in range(12))
    assert patients_of(source) == [source[i]["patient"] for i in range(12)]


def test_the_label_is_chosen(data_dir, monkeypatch):
    by_number = open_splits(config(data_dir, label="number"))["test"]
    assert {by_number[i]["label"] for i in range(4)} == set(SPLITS["test"])
    task = tasks.TASKS["aptos_dr"]._replace(dataset="medinit_fake/two", labels=("number", "label"))
    monkeypatch.setitem(tasks.TASKS, "fake_task", task)
    by_task = open_splits(config(data_dir, "fake_task"))["test"]
    assert {by_task[i]["label"] for i in range(4)} == set(SPLITS["test"])
    with pytest.raises(UsageError, match="no label 'eye'; set data.label to one of: label, number"):
        open_splits(config(data_dir, label="eye"))


def test_description_changes_with_the_records(data_dir):
    splits = open_splits(config(data_dir))
    found = {split: source.describe() for split, source in splits.items()}
    assert found["val"]["source"] == "prepared:medinit_fake/default/validation"
    assert [found[split]["count"] for split in found] == [12, 4, 4]
    assert len({one["sha256"] for one in found.values()}) == 3
    assert found["train"]["label"] == "label" and len(found["train"]["sha256"]) == 64
    held = open_splits(config(data_dir, "medinit_fake/two"))["val"].describe()
    assert held["source"] == "prepared:medinit_fake/two/train [val]" and held["count"] == 4


def test_small_sets_stay_in_memory_and_sources_travel(data_dir):
    cached = open_splits(config(data_dir, cache_mb=10.0))["train"]
    assert isinstance(cached, ArraySource)
    source = open_splits(config(data_dir))["train"]
    assert isinstance(source, PreparedSource)
    copy = pickle.loads(pickle.dumps(source))
    for i in range(12):
        np.testing.assert_array_equal(copy[i]["image"], cached[i]["image"])
        assert copy[i]["label"] == cached.labels[i] and copy[i]["eye"] == cached.eyes[i]


def test_normalization_follows_the_modality(data_dir):
    mean = batch_options(config(data_dir), 0).mean
    assert mean == NORMALIZATION["gray"][0]
    assert batch_options(config(data_dir, "drive_seg"), 0).mean == NORMALIZATION["fundus"][0]


def test_what_is_not_there_is_explained(data_dir, tmp_path):
    with pytest.raises(UsageError, match=r"is not prepared in .*data_dir"):
        open_splits(config(tmp_path))
    with pytest.raises(UsageError, match="no dataset 'fundus'"):
        open_splits(config(data_dir, "fundus"))
    builder = tasks.make_builder("medinit_fake", data_dir)
    with pytest.raises(UsageError, match="no split 'val'; it has: train, validation, test"):
        PreparedSource(builder, "val", 16)


@pytest.mark.parametrize("keep", [None, 0, 100, -1])
def test_a_shard_that_is_missing_or_cut_short_is_named(tmp_path, keep):
    for number in range(20):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    prepare(MedinitFake(data_dir=tmp_path / "data"), tmp_path, workers=0)
    open_splits(config(tmp_path / "data"))
    (shard,) = (tmp_path / "data").rglob("*test.array_record*")
    content = shard.read_bytes()
    shard.unlink()
    if keep is not None:
        shard.write_bytes(content[:keep])
    assert len(open_splits(config(tmp_path / "data"), ("train",))["train"]) == 12
    with pytest.raises(UsageError, match=f"{shard.name} is missing or cut short; delete the fold"):
        open_splits(config(tmp_path / "data"))
