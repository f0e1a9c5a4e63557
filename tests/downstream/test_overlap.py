"""Agreement of masks by hand and against the reference."""

import numpy as np
from oracles import swcl

from medinit_jax.downstream import overlap

A = np.array([[1, 1, 0], [0, 0, 0]], bool)
B = np.array([[1, 0, 0], [1, 1, 0]], bool)


def test_by_hand():
    counts = overlap.counts(A, B)
    assert counts.tolist() == [1, 2, 3]
    assert overlap.dice(counts) == 2 / 5
    assert overlap.jaccard(counts) == 1 / 4


def test_only_the_field_of_view_counts():
    field = np.array([[1, 1, 1], [0, 0, 1]], bool)
    assert overlap.counts(A, B, field).tolist() == [1, 2, 1]


def test_two_empty_masks_agree_and_are_counted():
    table = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1]])
    assert overlap.dice(table).tolist() == [1, 0, 1]
    assert overlap.jaccard(table).tolist() == [1, 0, 1]
    assert overlap.both_empty(table) == 1


def test_figures_equal_the_references():
    held = swcl()
    pairs = list(zip(held["met_seg_pred"], held["met_seg_gt"], strict=True))
    for value in (0, 1):
        table = np.stack([overlap.counts(p == value, t == value) for p, t in pairs])
        np.testing.assert_allclose(
            overlap.dice(table).mean(), held["met_seg_f1_perimage"][value], 1e-5
        )
        np.testing.assert_allclose(
            overlap.jaccard(table).mean(), held["met_seg_iou_perimage"][value], 1e-5
        )
    np.testing.assert_allclose(overlap.dice(table.sum(0)), held["met_seg_f1_pooled"], 1e-5)
