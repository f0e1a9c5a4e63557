"""The figures that a fine-tuning reports, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics as oracle

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.downstream import figures, scores
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


def test_a_label_unknown_in_one_head_counts_in_the_other():
    labels = {"dr": LABELS["dr"], "dme": np.where(np.arange(200) < 120, -1, LABELS["dme"])}
    for metric in ("quadratic weighted kappa", "AUC", "balanced accuracy"):
        assert scores.value_of(metric, BOTH, labels, ANSWERS) == scores.value_of(
            metric, BOTH, LABELS, ANSWERS
        )
    found = scores.classification_scores(
        BOTH, labels, ANSWERS, "quadratic weighted kappa", PATIENTS, resamples=20
    )
    whole = scores.classification_scores(
        BOTH, LABELS, ANSWERS, "quadratic weighted kappa", PATIENTS, resamples=20
    )
    assert found["images"] == 200
    assert [found["heads"][name]["images"] for name in ("dr", "dme")] == [200, 80]
    assert found["heads"]["dr"] == whole["heads"]["dr"]
    assert (found["low"], found["high"]) == (whole["low"], whole["high"])
    right = ANSWERS["dme"].argmax(1) == LABELS["dme"]
    assert found["heads"]["dme"]["accuracy"] == pytest.approx(right[120:].mean())
    joint = right & (ANSWERS["dr"].argmax(1) == LABELS["dr"])
    assert found["joint_accuracy"] == pytest.approx(joint[120:].mean())
    labels["dme"] = np.full(200, -1)
    found = scores.classification_scores(BOTH, labels, ANSWERS, "AUC", resamples=20)
    assert found["joint_accuracy"] is None
    assert found["heads"]["dme"] == {"images": 0, "reason": "no image has a known label"}
    json.dumps(found, allow_nan=False)


def test_a_finding_unknown_in_an_image_leaves_the_others_of_it():
    head = Head("signs", ("a", "b"), "sigmoid")
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (80, 2))
    truth[:50, 1] = -1
    answer = probabilities((head,), rng.normal(size=(80, 2)))
    found = scores.classification_scores(
        (head,), {"signs": truth}, answer, "macro AUC", resamples=50
    )
    expected = [
        oracle.roc_auc_score(truth[first:, k], answer["signs"][first:, k])
        for k, first in ((0, 0), (1, 50))
    ]
    assert found["metric"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert found["heads"]["signs"]["auc"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert found["images"] == 80 and found["low"] < found["metric"] < found["high"]
    hits = ((answer["signs"] >= 0.5) == truth)[truth != -1]
    assert found["heads"]["signs"]["accuracy"] == pytest.approx(hits.mean())


@pytest.mark.parametrize("metric", sorted(figures.CLASSIFICATION))
def test_a_resample_has_the_figure_of_its_images_repeated(metric):
    figure, counted = figures.weighed(metric, BOTH, LABELS, ANSWERS)
    assert counted.all()
    rng = np.random.default_rng(2)
    for _ in range(5):
        times = np.bincount(rng.integers(0, 200, 200), minlength=200)
        labels, answers = (
            {name: np.repeat(values, times, axis=0) for name, values in given.items()}
            for given in (LABELS, ANSWERS)
        )
        plain = scores.value_of(metric, BOTH, labels, answers)
        found = figure(times.astype(float))
        # Areas add up whole numbers; averages and kappa round in another order.
        assert found == plain if "AUC" in metric else found == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("metric", ["macro AUC", "balanced accuracy"])
def test_resamples_without_a_class_of_the_metric_are_counted_out(metric):
    labels = {"dr": np.arange(60) % 4}
    labels["dr"][59] = 4
    answers = {"dr": ANSWERS["dr"][:60]}
    found = scores.classification_scores((DR,), labels, answers, metric, resamples=400)
    # The image of class 4 is drawn with probability 1 - (59 / 60) ** 60 = 0.635.
    assert 0.55 < found["valid_resamples"] / found["resamples"] < 0.72
    figure, _ = figures.weighed(metric, (DR,), labels, answers)
    assert np.isnan(figure(np.r_[np.ones(59), 0]))


def test_too_few_valid_resamples_are_a_reason():
    labels = {"dr": np.r_[np.zeros(57, int), 1, 2, 3]}
    answers = {"dr": ANSWERS["dr"][:60]}
    found = scores.classification_scores((DR,), labels, answers, "macro AUC", resamples=200)
    assert found["low"] is None and found["high"] is None and found["metric"] is not None
    assert found["valid_resamples"] < 100
    assert found["reason"] == (
        f"only {found['valid_resamples']} of 200 resamples hold every class, too few for an "
        "interval"
    )
    json.dumps(found, allow_nan=False)


def test_an_unknown_metric_is_a_sentence():
    for judge in (scores.value_of, scores.classification_scores):
        arguments = ("kappa", BOTH, LABELS, ANSWERS)
        if judge is scores.classification_scores:
            arguments = (BOTH, LABELS, ANSWERS, "kappa")
        with pytest.raises(UsageError, match="no metric 'kappa' .* one of: quadratic weighted"):
            judge(*arguments)


def test_an_absent_class_is_named():
    labels = {"dr": np.minimum(LABELS["dr"], 3)}
    found = scores.classification_scores((DR,), labels, ANSWERS, "accuracy", resamples=20)
    head = found["heads"]["dr"]
    assert head["absent"] == ["4"]
    assert head["classes"]["4"]["recall"] is None and head["classes"]["4"]["support"] == 0
    assert head["classes"]["4"]["reason"] == "no image has this class"
    assert "reason" not in head["classes"]["3"]
    json.dumps(found, allow_nan=False)


def test_a_class_that_is_never_predicted_has_no_precision():
    labels = {"dme": np.array([0, 0, 1, 1])}
    answers = {"dme": np.eye(3)[[0, 0, 0, 0]]}
    rows = scores.classification_scores((DME,), labels, answers, "accuracy", resamples=5)
    found = rows["heads"]["dme"]["classes"]
    assert found["low"]["precision"] is None and found["low"]["recall"] == 0
    assert found["low"]["reason"] == "no image was taken for this class"
    assert found["high"]["f1"] is None
    assert found["high"]["reason"] == ("no image has this class; no image was taken for this class")
    labels["dme"][:] = 0
    rows = scores.classification_scores((DME,), labels, answers, "AUC", resamples=5)
    assert rows["heads"]["dme"]["classes"]["no"]["reason"] == "every image has this class"
    assert rows["metric"] is None and "too few classes" in rows["reason"]
    json.dumps(rows, allow_nan=False)


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
