"""Two starts on the same test images."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from medinit_jax.core.errors import UsageError
from medinit_jax.study.paired_images import compare_on_images

KAPPA = "quadratic weighted kappa"


def leave(folder, label, predicted, ids=None, patients=None):
    """Writes what a classification leaves of its test images."""
    folder.mkdir()
    count = len(label)
    ids = [f"image{i}" for i in range(count)] if ids is None else ids
    np.savez(
        folder / "predictions.npz",
        id=np.array(ids),
        patient=np.array(ids if patients is None else patients),
        **{"dr/label": np.asarray(label), "dr/probability": np.eye(4, dtype="f4")[predicted]},
    )
    return folder


@pytest.fixture
def label():
    return np.random.default_rng(0).integers(0, 4, 300)


def noisy(label, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(label)) < share, rng.integers(0, 4, len(label)), label)


def test_the_difference_is_that_of_the_means_over_seeds(tmp_path, label):
    good = [noisy(label, 0.2, seed) for seed in (1, 2)]
    poor = [noisy(label, 0.6, seed) for seed in (3, 4)]
    folders = [leave(tmp_path / str(i), label, p) for i, p in enumerate([*good, *poor])]
    found = compare_on_images([[f] for f in folders[:2]], [[f] for f in folders[2:]], KAPPA)
    kappas = [cohen_kappa_score(label, p, weights="quadratic") for p in (*good, *poor)]
    assert found["mean"] == pytest.approx(np.mean(kappas[:2]) - np.mean(kappas[2:]))
    assert 0 < found["low"] < found["mean"] < found["high"] and found["p"] < 0.01
    assert found["images"] == found["patients"] == 300


def test_equal_answers_differ_nowhere(tmp_path, label):
    folders = [leave(tmp_path / str(i), label, noisy(label, 0.3, 1)) for i in range(2)]
    found = compare_on_images([folders[:1]], [folders[1:]], KAPPA)
    assert found["mean"] == found["low"] == found["high"] == 0 and found["p"] == 1


def test_images_of_one_patient_are_drawn_together(tmp_path, label):
    patients = [f"p{i // 30}" for i in range(300)]
    folders = [
        leave(tmp_path / f"{name}{i}", label, noisy(label, share, i), patients=group)
        for name, group in (("single", None), ("whole", patients))
        for i, share in ((1, 0.3), (2, 0.4))
    ]
    whole = compare_on_images([folders[2:3]], [folders[3:]], KAPPA)
    assert whole["patients"] == 10 and whole["images"] == 300
    assert whole["mean"] == compare_on_images([folders[:1]], [folders[1:2]], KAPPA)["mean"]


def test_what_has_no_label_does_not_count(tmp_path, label):
    own, other = noisy(label, 0.2, 1), noisy(label, 0.5, 2)
    partly = np.where(np.arange(300) < 100, -1, label)
    folders = [leave(tmp_path / f"a{i}", partly, p) for i, p in enumerate((own, other))]
    kept = [leave(tmp_path / f"b{i}", label[100:], p[100:]) for i, p in enumerate((own, other))]
    assert compare_on_images([folders[:1]], [folders[1:]], KAPPA)["mean"] == pytest.approx(
        compare_on_images([kept[:1]], [kept[1:]], KAPPA)["mean"]
    )


def test_masks_are_compared_by_dice(tmp_path):
    def masks(name, both):
        folder = tmp_path / name
        folder.mkdir()
        counts = np.stack([both, np.full(4, 10), np.full(4, 10)], -1)
        ids = np.array(list("abcd"))
        np.savez(folder / "predictions.npz", id=ids, patient=ids, **{"cup/counts": counts})
        return folder

    own, other = masks("own", np.array([9, 8, 9, 8])), masks("other", np.array([5, 5, 6, 6]))
    found = compare_on_images([[own]], [[other]], "Dice")
    # Dice = both / 10: 0.85 against 0.55.
    assert found["mean"] == pytest.approx(0.3) and found["low"] > 0.2


def test_folds_of_a_seed_are_taken_together(tmp_path, label):
    own, other = noisy(label, 0.2, 1), noisy(label, 0.5, 2)
    names = [f"image{i}" for i in range(300)]
    whole = [leave(tmp_path / f"w{i}", label, p) for i, p in enumerate((own, other))]
    parts = [
        [
            leave(tmp_path / f"f{i}{k}", label[cut], p[cut], ids=names[cut])
            for k, cut in enumerate((slice(0, 100), slice(100, 300)))
        ]
        for i, p in enumerate((own, other))
    ]
    found = compare_on_images([parts[0]], [parts[1]], KAPPA)
    assert found == compare_on_images([whole[:1]], [whole[1:]], KAPPA)


def test_other_images_are_refused(tmp_path, label):
    one = leave(tmp_path / "one", label, label)
    two = leave(tmp_path / "two", label, label, ids=[f"other{i}" for i in range(300)])
    with pytest.raises(UsageError, match="judged on other images"):
        compare_on_images([[one]], [[two]], KAPPA)


def test_without_answers_nothing_is_said(tmp_path, label):
    one = leave(tmp_path / "one", label, label)
    assert compare_on_images([[one]], [[tmp_path / "none"]], KAPPA) is None
    constant = leave(tmp_path / "constant", np.zeros(300, int), np.zeros(300, int))
    # An area needs both classes.
    assert compare_on_images([[constant]], [[constant]], "AUC") is None
