"""The figures that a fine-tuning reports, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics as oracle

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.downstream import scores
from medinit_jax.downstream.heads import Head, probabilities

RNG = np.random.default_rng(0)
DR = Head("dr", ("0", "1", "2", "3", "4"))
DME = Head("dme", ("no", "low", "high"))
BOTH = (DR, DME)
LABELS = {"dr": RNG.integers(0, 5, 200), "dme": RNG.integers(0, 3, 200)}
ANSWERS = probabilities(BOTH, RNG.normal(size=(200, 8)))
PATIENTS = [str(i // 2) for i in range(200)]


def test_every_task_has_its_metric():
    for task in TASKS.values():
        kind = "segmentation" if task.kind == "segmentation" else "classification"
        scores.check_metric(task.metric, kind)
    with pytest.raises(UsageError, match="no metric 'kappa' for classification"):
        scores.check_metric("kappa", "classification")


def test_kappa_of_the_first_head():
    found = scores.value_of("quadratic weighted kappa", BOTH, LABELS, ANSWERS)
    expected = oracle.cohen_kappa_score(LABELS["dr"], ANSWERS["dr"].argmax(1), weights="quadratic")
    assert found == pytest.approx(expected, abs=1e-12)


def test_joint_accuracy_wants_all_heads_right():
    found = scores.value_of("joint accuracy", BOTH, LABELS, ANSWERS)
    right = [ANSWERS[n].argmax(1) == LABELS[n] for n in ("dr", "dme")]
    assert found == pytest.approx((right[0] & right[1]).mean())
    assert 0 < found < right[0].mean()


@pytest.mark.parametrize("metric", ["AUC", "macro AUC"])
def test_areas(metric):
    found = scores.value_of(metric, (DR,), LABELS, ANSWERS)
    expected = oracle.roc_auc_score(LABELS["dr"], ANSWERS["dr"], multi_class="ovr")
    assert found == pytest.approx(expected, abs=1e-12)
    two = Head("sick", ("no", "yes"))
    truth = {"sick": (LABELS["dr"] > 1).astype(int)}
    answer = probabilities((two,), RNG.normal(size=(200, 2)))
    assert scores.value_of(metric, (two,), truth, answer) == pytest.approx(
        oracle.roc_auc_score(truth["sick"], answer["sick"][:, 1])
    )


def test_balanced_accuracy():
    found = scores.value_of("balanced accuracy", BOTH, LABELS, ANSWERS)
    expected = oracle.balanced_accuracy_score(LABELS["dr"], ANSWERS["dr"].argmax(1))
    assert found == pytest.approx(expected)


def test_findings_on_their_own():
    head = Head("signs", ("a", "b", "c"), "sigmoid")
    truth = {"signs": RNG.integers(0, 2, (80, 3))}
    answer = probabilities((head,), RNG.normal(size=(80, 3)))
    found = scores.classification_scores((head,), truth, answer, "macro AUC", resamples=50)
    assert found["metric"] == pytest.approx(
        oracle.roc_auc_score(truth["signs"], answer["signs"], average="macro")
    )
    assert found["heads"]["signs"]["auprc"] == pytest.approx(
        oracle.average_precision_score(truth["signs"], answer["signs"], average="macro")
    )


def test_all_figures_of_a_classification():
    found = scores.classification_scores(
        BOTH, LABELS, ANSWERS, "quadratic weighted kappa", PATIENTS, resamples=200
    )
    assert found["low"] < found["metric"] < found["high"]
    assert found["images"] == 200
    head = found["heads"]["dr"]
    predicted = ANSWERS["dr"].argmax(1)
    assert head["accuracy"] == pytest.approx((predicted == LABELS["dr"]).mean())
    assert head["macro"]["f1"] == pytest.approx(
        oracle.f1_score(LABELS["dr"], predicted, average="macro")
    )
    assert head["classes"]["3"]["recall"] == pytest.approx(
        oracle.recall_score(LABELS["dr"], predicted, labels=[3], average="macro")
    )
    assert head["absent"] == []
    json.dumps(found, allow_nan=False)


def test_unknown_labels_do_not_count():
    labels = {name: values.copy() for name, values in LABELS.items()}
    labels["dme"][:50] = -1
    found = scores.value_of("joint accuracy", BOTH, labels, ANSWERS)
    rest = {n: v[50:] for n, v in LABELS.items()}
    expected = scores.value_of(
        "joint accuracy", BOTH, rest, {n: p[50:] for n, p in ANSWERS.items()}
    )
    assert found == expected
    with pytest.raises(UsageError, match="No image has known labels"):
        scores.value_of("accuracy", (DR,), {"dr": np.full(200, -1)}, ANSWERS)


def test_an_absent_class_is_named():
    labels = {"dr": np.minimum(LABELS["dr"], 3)}
    found = scores.classification_scores((DR,), labels, ANSWERS, "accuracy", resamples=20)
    assert found["heads"]["dr"]["absent"] == ["4"]


def test_an_area_of_one_class_is_not_a_number():
    two = Head("sick", ("no", "yes"))
    answer = probabilities((two,), RNG.normal(size=(5, 2)))
    assert np.isnan(scores.value_of("AUC", (two,), {"sick": np.ones(5, int)}, answer))


def test_masks_of_two_structures():
    heads = (Head("disc", ("background", "disc")), Head("cup", ("background", "cup")))
    counts = {
        "disc": np.array([[5, 10, 10], [10, 10, 10]]),
        "cup": np.array([[0, 5, 5], [0, 0, 0]]),
    }
    metric = "F1, mean of disc and cup"
    # Disc 0.5 and 1, cup 0 and (both empty) 1.
    assert scores.value_of_counts(metric, heads, counts) == (0.75 + 0.5) / 2
    found = scores.segmentation_scores(heads, counts, metric, ["a", "b"], resamples=50)
    assert found["metric"] == 0.625
    assert found["heads"]["cup"]["both_empty"] == 1
    assert found["heads"]["disc"]["dice_pooled"] == 30 / 40
    assert found["heads"]["disc"]["jaccard"] == pytest.approx((5 / 15 + 1) / 2)
    json.dumps(found, allow_nan=False)
