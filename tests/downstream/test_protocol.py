"""The rules of the comparison: nesting, patients, seeds, learning rates."""

import math

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.protocol import (
    STARTS,
    Cell,
    best_epoch,
    choose_learning_rates,
    fold_seed,
    grid_cells,
    label_subset,
    run_seeds,
    split_patients,
    summarize_seeds,
)


def _cohort(patients=300, seed=0):
    """Patients with one to four images each, a third of them ill in some image."""
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"p{i:04d}" for i in range(patients)], rng.integers(1, 5, patients))
    labels = (rng.random(len(ids)) < 0.2).astype(int)
    shuffle = rng.permutation(len(ids))
    return labels[shuffle], ids[shuffle]


def test_subsets_are_nested_and_never_split_a_patient():
    labels, patients = _cohort()
    for seed in (0, 1):
        previous: set = set()
        for fraction in (0.02, 0.05, 0.1, 0.25, 0.5, 1.0):
            index = label_subset(labels, patients, fraction, seed)
            chosen = set(patients[index])
            assert not chosen & set(np.delete(patients, index))
            assert previous <= chosen
            assert len(index) == pytest.approx(fraction * len(labels), abs=4)
            previous = chosen
        assert len(index) == len(labels)


def test_subsets_keep_the_share_of_ill_patients():
    labels, patients = _cohort(2000)
    ill = {p for p in set(patients) if labels[patients == p].any()}
    index = label_subset(labels, patients, 0.1)
    chosen = set(patients[index])
    images = lambda group: sum((patients == p).sum() for p in group)  # noqa: E731
    share = images(chosen & ill) / images(chosen)
    assert share == pytest.approx(images(ill) / len(patients), abs=0.01)


def test_tiny_fractions_keep_a_patient_of_each_class():
    labels, patients = _cohort(40)
    index = label_subset(labels, patients, 1e-6)
    assert len(set(patients[index])) == 2
    assert set(labels[index]) >= {1}


def test_a_subset_depends_on_the_seed_and_not_on_the_order_or_on_other_patients():
    labels, patients = _cohort()
    first = set(patients[label_subset(labels, patients, 0.1, 3)])
    assert first != set(patients[label_subset(labels, patients, 0.1, 4)])
    shuffle = np.random.default_rng(1).permutation(len(labels))
    moved = patients[shuffle][label_subset(labels[shuffle], patients[shuffle], 0.1, 3)]
    assert first == set(moved)
    grown_labels = np.r_[labels, [0] * 30]
    grown_ids = np.r_[patients, [f"new{i}" for i in range(30)]]
    grown = set(grown_ids[label_subset(grown_labels, grown_ids, 0.1, 3)])
    # One in eleven is new: ranks shift by those alone.
    assert len(first & grown) >= 0.8 * len(first)


def test_label_subset_refuses():
    with pytest.raises(UsageError, match="fraction"):
        label_subset([0, 1], ["a", "b"], 0.0)
    with pytest.raises(UsageError, match="patient"):
        label_subset([0, 1], ["a"], 0.5)


def test_split_covers_all_images_once_by_patient_and_label():
    labels, patients = _cohort(1000)
    sets = split_patients(labels, patients, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=2)
    assert sorted(np.concatenate(list(sets.values()))) == list(range(len(labels)))
    owners = [set(patients[index]) for index in sets.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    for (_, index), share in zip(sets.items(), (0.6, 0.2, 0.2), strict=True):
        assert len(index) == pytest.approx(share * len(labels), abs=6)
        assert labels[index].mean() == pytest.approx(labels.mean(), abs=0.02)


def test_split_refuses():
    with pytest.raises(UsageError, match="sum to 1"):
        split_patients([0, 1], ["a", "b"], {"train": 0.5, "test": 0.4})
    with pytest.raises(UsageError, match="without images"):
        split_patients([0, 0], ["a", "a"], {"train": 0.5, "test": 0.5})


def test_fold_seed_is_the_same_in_every_process():
    """The constant: the first 31 bits of `printf 1/order/2 | sha256sum`."""
    assert fold_seed(1, "order", 2) == 347702363
    streams = {fold_seed(s, name) for s in range(20) for name in ("order", "head", "augment")}
    assert len(streams) == 60 and 0 <= min(streams) and max(streams) < 2**31


def test_grid_and_seeds():
    assert run_seeds(7, 3) == (7, 8, 9)
    cells = grid_cells(["resnet18"], [0.02, 0.1], [0.01, 0.05], run_seeds(0, 3))
    assert len(cells) == len(set(cells)) == 2 * 4 * 2 * 3
    assert cells[0] == Cell("resnet18", 0.02, "hyper", 0.01, 0)
    assert [c.start for c in cells[:24:6]] == list(STARTS)
    with pytest.raises(UsageError, match="imagenet"):
        grid_cells(["a"], [1.0], [0.1], [0], ["imagenet"])


def test_learning_rate_is_chosen_per_start():
    values = {
        Cell("a", 0.1, "hyper", 0.01, 0): 0.8,
        Cell("a", 0.1, "hyper", 0.01, 1): 0.6,
        Cell("a", 0.1, "hyper", 0.05, 0): 0.9,
        Cell("a", 0.1, "hyper", 0.05, 1): 0.55,
        Cell("a", 0.1, "random", 0.05, 0): 0.7,
        Cell("a", 0.1, "random", 0.01, 0): 0.7,
        Cell("a", 0.1, "matched", 0.01, 0): 0.51,
        Cell("a", 0.1, "matched", 0.05, 0): math.nan,
    }
    assert choose_learning_rates(values) == {
        ("a", 0.1, "hyper"): 0.05,  # .725 against .7
        ("a", 0.1, "random"): 0.01,  # equal: the smaller
        ("a", 0.1, "matched"): 0.01,  # the other diverged
    }


def test_learning_rate_refuses_unequal_seeds_and_divergence():
    with pytest.raises(UsageError, match="different seeds"):
        choose_learning_rates(
            {Cell("a", 1.0, "hyper", 0.1, 0): 0.5, Cell("a", 1.0, "hyper", 0.2, 1): 0.5}
        )
    with pytest.raises(UsageError, match="diverged"):
        choose_learning_rates({Cell("a", 1.0, "hyper", 0.1, 0): math.nan})


def test_best_epoch():
    assert best_epoch([0.5, 0.7, 0.7, 0.6]) == 1
    assert best_epoch([math.nan, 0.4, math.nan]) == 1
    assert best_epoch([math.nan]) == 0


def test_summary_of_seeds_by_hand():
    """Best validation epochs 1 and 0 read test figures .7 and .6; the last ones are .6 and .8."""
    entry = summarize_seeds([[0.5, 0.7, 0.6], [0.6, 0.7, 0.8]], [[0.5, 0.9, 0.8], [0.9, 0.8, 0.7]])
    assert entry["mean"] == pytest.approx([0.55, 0.7, 0.7])
    assert entry["sd"] == pytest.approx([0.1 / 2**0.5, 0.0, 0.2 / 2**0.5])
    assert entry["final_mean"] == pytest.approx(0.7)
    assert entry["best_mean"] == pytest.approx(0.65)
    assert entry["best_sd"] == pytest.approx(0.1 / 2**0.5)
    assert entry["seeds"][1] == {"auc_per_epoch": [0.6, 0.7, 0.8], "best_epoch": 0}
    alone = summarize_seeds([[0.5]], [[0.5]])
    assert alone["final_sd"] is None and alone["sd"] == [None]
    with pytest.raises(UsageError, match="as many test"):
        summarize_seeds([[0.5, 0.6]], [[0.5]])
