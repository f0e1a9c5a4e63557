import io
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.heads import Head
from medinit_jax.finetune.examples import Layer
from medinit_jax.finetune.labels import Column
from medinit_jax.finetune.parts import Pool, divide, fold_numbers, read_pool

HEAD = Head("grade", ("none", "some", "much"))
COLUMNS = [Column(HEAD, "grade")]


def _config(**protocol):
    rules = {"validation": 0.2, "split_seed": 0, "fold": -1, "folds": "made", "fraction": 1.0}
    return ConfigDict(
        {"task": "mine", "seed": 3, "data": {"target": "label"}, "protocol": rules | protocol}
    )


def _pool(split, count, seed=0, classes=3, **folds):
    target = np.random.default_rng(seed).integers(classes, size=count).astype(np.int32)
    return Pool(
        SimpleNamespace(name="set/config", split=split),  # pyright: ignore[reportArgumentType]
        np.arange(count),
        {"grade": target},
        [f"{split} {i // 2}" for i in range(count)],
        [str(i) for i in range(count)],
        {name: np.arange(count) // 2 % 5 for name in folds},
    )


def _divided(config, **pools):
    return divide(config, (HEAD,), COLUMNS, pools)


def test_the_sets_own_parts_are_used():
    pools = {"train": _pool("train", 40), "validation": _pool("validation", 10)}
    parts = _divided(_config(), **pools, test=_pool("test", 12))
    assert {name: (split, len(index)) for name, (split, index) in parts.items()} == {
        "train": ("train", 40),
        "validation": ("validation", 10),
        "test": ("test", 12),
    }


def test_validation_is_held_out_by_patient_and_class():
    pool = _pool("train", 200)
    parts = _divided(_config(), train=pool, test=_pool("test", 12))
    train, held = parts["train"][1], parts["validation"][1]
    assert parts["validation"][0] == "train"
    assert sorted([*train, *held]) == list(range(200))
    assert 36 <= len(held) <= 44
    assert not {pool.patients[i] for i in train} & {pool.patients[i] for i in held}
    worst = np.maximum.reduceat(pool.targets["grade"], np.arange(0, 200, 2))
    shares = np.bincount(worst[np.unique(held // 2)], minlength=3) / np.bincount(worst)
    assert np.abs(shares - 0.2).max() < 0.05
    other = _divided(_config(split_seed=1), train=pool, test=_pool("test", 12))
    assert set(other["validation"][1]) != set(held)


def test_the_folds_test_every_image_once():
    pool = _pool("train", 100)
    tested = []
    for fold in range(5):
        parts = _divided(_config(fold=fold), train=pool, test=_pool("test", 12))
        indices = [set(parts[name][1].tolist()) for name in ("train", "validation", "test")]
        assert {split for split, _ in parts.values()} == {"train"}
        assert sum(map(len, indices)) == len(set.union(*indices)) == 100
        assert 12 <= len(indices[1]) <= 20
        tested += indices[2]
    assert sorted(tested) == list(range(100))


def test_folds_of_the_set_are_taken_as_they_are():
    pool = _pool("train", 100, fold_swcl=True)
    parts = _divided(_config(fold=2, folds="authors"), train=pool)
    np.testing.assert_array_equal(parts["test"][1], np.flatnonzero(np.arange(100) // 2 % 5 == 2))
    made = fold_numbers(pool, _config(fold=0, folds="grouped"))
    assert (made != pool.folds["fold_swcl"]).any()


def test_fractions_are_nested_and_leave_validation_alone():
    pools = {"train": _pool("train", 200), "test": _pool("test", 12)}
    parts = {share: _divided(_config(fraction=share), **pools) for share in (0.1, 0.5, 1.0)}
    seen = {share: set(part["train"][1].tolist()) for share, part in parts.items()}
    assert seen[0.1] < seen[0.5] < seen[1.0]
    assert abs(len(seen[0.1]) - 0.1 * len(seen[1.0])) <= 4
    for part in parts.values():
        np.testing.assert_array_equal(part["validation"][1], parts[1.0]["validation"][1])


@pytest.mark.parametrize(
    ("protocol", "pools", "message"),
    [
        ({}, {"train": _pool("train", 40)}, "no test images; set config.protocol.fold"),
        ({"fold": 7}, {"train": _pool("train", 40)}, "no fold 7"),
        ({"fold": 0, "folds": "authors"}, {"train": _pool("train", 40)}, "folds=made"),
        ({"fold": 0, "folds": "other"}, {"train": _pool("train", 40)}, "config.protocol.folds"),
        ({"fraction": 0.0}, {"train": _pool("train", 40)}, "config.protocol.fraction"),
        ({"fold": 0, "validation": 1.0}, {"train": _pool("train", 40)}, "protocol.validation"),
        ({}, {"test": _pool("test", 4)}, "no train images"),
        (
            {},
            {"train": _pool("train", 40), "test": _pool("test", 0)},
            "No test image of mine has a label",
        ),
        (
            {},
            {"train": _pool("train", 40), "test": _pool("test", 9, classes=1)},
            r"test part of mine has fewer than two classes of grade \(none 9, some 0, much 0\)",
        ),
    ],
)
def test_unusable_parts_are_refused(protocol, pools, message):
    with pytest.raises(UsageError, match=message):
        _divided(_config(**protocol), **pools)


def test_a_class_that_training_lost_is_named():
    pool = _pool("train", 100)
    # Parts are stratified by the first head; of the second, one patient has the second class.
    pool.targets["edema"] = np.array([0] * 98 + [1] * 2, np.int32)
    test = _pool("test", 12)
    test.targets["edema"] = np.arange(12, dtype=np.int32) % 2
    heads = (HEAD, Head("edema", ("no", "yes")))
    pools = {"train": pool, "validation": test, "test": test}
    lost = 0
    for seed in range(10):
        config = _config(fraction=0.1)
        config.seed = seed
        try:
            train = divide(config, heads, COLUMNS, pools)["train"][1]
        except UsageError as error:
            assert "The train part of mine has no image of edema yes (no " in str(error)
            lost += 1
        else:
            assert 99 in train
    assert lost >= 6


class _Records:
    """Rows of a set without images."""

    split, name = "train", "set/config"

    def __init__(self, rows, masks=()):
        self.rows, self.masks = rows, masks

    def has(self, feature):
        return feature in self.rows[0]

    def read(self, index, feature):
        assert feature == "mask"
        return self.masks[index]

    def columns(self, features):
        return [{name: row[name] for name in features} for row in self.rows]


def test_images_without_label_are_left_out_and_counted():
    rows = [
        {
            "image_id": f"i{i}".encode(),
            "patient_id": b"" if i == 2 else b"p",
            "group": b"g" if i == 3 else b"",
            "grade": -1 if i == 1 else i % 3,
            "found": np.array([0, -1 if i else 1]),
        }
        for i in range(4)
    ]
    findings = Column(Head("found", ("a", "b"), "sigmoid"), "found")
    console = Console(record=True, file=io.StringIO())
    pool = read_pool(_Records(rows), [*COLUMNS, findings], (), console)  # pyright: ignore
    assert "1 of 4 train images have no label" in console.export_text()
    np.testing.assert_array_equal(pool.indices, [0, 2, 3])
    np.testing.assert_array_equal(pool.targets["grade"], [0, 2, 0])
    np.testing.assert_array_equal(pool.targets["found"], [[0, 1], [0, -1], [0, -1]])
    assert pool.ids == ["i0", "i2", "i3"]
    assert pool.patients == ["p", "train/i2", "g"]


def test_masks_that_nobody_drew_are_left_out():
    def row(name, ratio):
        return {"image_id": name, "patient_id": b"", "vcdr": np.float32(ratio)}

    masks = [None, np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)]
    records = _Records([row(b"drawn", 0.4), row(b"no disc", -1), row(b"none", -1)], masks)
    console = Console(file=io.StringIO())
    pool = read_pool(records, (), (Layer("disc", 1, 2),), console)  # pyright: ignore
    assert pool.ids == ["drawn", "no disc"] and not pool.targets
    np.testing.assert_array_equal(pool.strata, [0, 0])
