"""The metrics that classifications are judged by, each as a function of how often images count.

What does not depend on that, such as the order of the scores, is worked out once, so that a
bootstrap of thousands of resamples takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream import metrics, ranking
from medinit_jax.downstream.heads import UNKNOWN, Head

Arrays = Mapping[str, np.ndarray]
# Weights float64 (n,) of images -> figure; NaN where a class that all images hold has no weight.
Weighed = Callable[[np.ndarray], float]


def _kappa(heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> Weighed:
    head = heads[0]
    label, predicted = labels[head.name], probabilities[head.name].argmax(1)
    return lambda weights: metrics.quadratic_kappa(label, predicted, len(head.classes), weights)


def _joint_accuracy(heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> Weighed:
    right = np.all([probabilities[h.name].argmax(1) == labels[h.name] for h in heads], axis=0)
    return lambda weights: float(np.average(right, weights=weights))


def _balanced_accuracy(heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> Weighed:
    head = heads[0]
    label, predicted = labels[head.name], probabilities[head.name].argmax(1)
    present = np.unique(label)

    def figure(weights: np.ndarray) -> float:
        table = metrics.confusion(label, predicted, len(head.classes), weights)[present]
        support = table.sum(1)
        if not support.all():
            return float("nan")
        return float(np.mean(table[np.arange(len(present)), present] / support))

    return figure


def _auc(heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> Weighed:
    """Of class 1 of two; the mean over classes of one against the rest, and over sigmoids."""
    areas = []
    for known, truth, scores in one_against_rest(heads[0], labels, probabilities):
        # The figure is of the classes that are both present and absent, in every resample.
        if len(np.unique(truth)) == 2:
            area = ranking.ranked_roc_auc(truth, scores)
            areas.append((slice(None) if known.all() else known, area))
    if not areas:
        return lambda weights: float("nan")
    return lambda weights: float(np.mean([area(weights[known]) for known, area in areas]))


def one_against_rest(
    head: Head, labels: Arrays, probabilities: Arrays
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Divides a head into binary questions.

    Args:
        head: One head.
        labels: {head: int (n,)}, or (n, classes) for a sigmoid.
        probabilities: {head: float (n, classes)}.

    Returns:
        (images whose answer is known bool (n,), their answers int (m,), their scores float (m,)) of
        class 1 of two, or of every class.
    """
    truth, scores = labels[head.name], probabilities[head.name]
    if head.kind == "sigmoid":
        columns = list(zip(truth.T, scores.T, strict=True))
    elif len(head.classes) == 2:
        columns = [(truth, scores[:, 1])]
    else:
        columns = [
            (np.where(truth == UNKNOWN, UNKNOWN, truth == k), scores[:, k])
            for k in range(len(head.classes))
        ]
    return [((known := answers != UNKNOWN), answers[known], s[known]) for answers, s in columns]


CLASSIFICATION: dict[str, Callable[[Sequence[Head], Arrays, Arrays], Weighed]] = {
    "quadratic weighted kappa": _kappa,
    "AUC": _auc,
    "macro AUC": _auc,
    "joint accuracy": _joint_accuracy,
    "joint accuracy, 5 folds": _joint_accuracy,
    "accuracy": _joint_accuracy,
    "balanced accuracy": _balanced_accuracy,
}
# All are the mean over structures of the mean over images of Dice.
SEGMENTATION = (
    "Dice, mean of disc and cup",
    "Dice (= F1) of vessels",
    "F1 of vessels",
    "F1, mean of disc and cup",
    "Dice",
)


def check_metric(metric: str, kind: str, heads: Sequence[Head] = ()) -> None:
    """Raises UsageError unless there is such a metric of such heads.

    Args:
        metric: Its name.
        kind: "classification" or "segmentation".
        heads: What is predicted.
    """
    if CLASSIFICATION.get(metric, _auc) is not _auc and any(h.kind == "sigmoid" for h in heads):
        raise UsageError(
            f"The metric {metric!r} is of classes, of which one holds, but findings are predicted; "
            "set config.metric=macro AUC."
        )
    known = tuple(CLASSIFICATION) if kind == "classification" else SEGMENTATION
    if metric not in known:
        raise UsageError(
            f"There is no metric {metric!r} for {kind}; set config.metric to one of: "
            f"{', '.join(known)}."
        )


def known_images(head: Head, labels: Arrays) -> np.ndarray:
    """Returns which images have a known label, bool (n,); of a sigmoid, any known finding."""
    known = np.asarray(labels[head.name]) != UNKNOWN
    return known if known.ndim == 1 else known.any(1)


def weighed(
    metric: str, heads: Sequence[Head], labels: Arrays, probabilities: Arrays
) -> tuple[Weighed, np.ndarray]:
    """Prepares a metric for many weights of the same images.

    Args:
        metric: A key of `CLASSIFICATION`.
        heads: What is predicted.
        labels: {head: int (n,)}, or (n, classes) for a sigmoid; `UNKNOWN` does not count.
        probabilities: {head: float (n, classes)}.

    Returns:
        Weights float64 (m,) of the images that count -> figure, and which these are, bool (n,):
        those that are labeled in all heads for a joint accuracy, in the first head for the others.
        The figure is NaN where it is not defined, and where a class has no weight though one of the
        m images holds it.

    Raises:
        UsageError: There is no such metric, or no image has known labels.
    """
    check_metric(metric, "classification", heads)
    judge = CLASSIFICATION[metric]
    judged = heads if judge is _joint_accuracy else heads[:1]
    counted = np.all([known_images(head, labels) for head in judged], axis=0)
    if not counted.any():
        raise UsageError("No image has known labels, so nothing can be scored; check the split.")
    here = [
        {h.name: np.asarray(x[h.name])[counted] for h in judged} for x in (labels, probabilities)
    ]
    return judge(judged, *here), counted
