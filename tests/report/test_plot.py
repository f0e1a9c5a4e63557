"""Scales, ticks and label spacing by hand and by their laws."""

import math
import re

import numpy as np
import pytest

from medinit_jax.report.plot import (
    Frame,
    curve,
    decades,
    end_labels,
    padded,
    spaced,
    tick_texts,
    ticks,
    whole_ticks,
)

FRAME = Frame(10, 20, 110, 220, (0.0, 50.0), (0.0, 1.0))


def test_frame_maps_corners():
    assert (FRAME.at(0), FRAME.at(50), FRAME.at(25)) == (10, 110, 60)
    assert (FRAME.row(0), FRAME.row(1), FRAME.row(0.25)) == (220, 20, 170)
    # Values outside stay within a fiftieth of the area.
    assert FRAME.row(9) == pytest.approx(16)
    log = FRAME._replace(y=(0.01, 1.0), log=True)
    assert log.row(0.1) == pytest.approx(120)


def test_ticks_by_hand():
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.52, 0.83, 4) == [0.6, 0.7, 0.8]
    assert ticks(-0.012, 0.09, 5) == [0.0, 0.025, 0.05, 0.075]
    assert whole_ticks(1, 3, 6) == [1, 2, 3]
    assert decades(0.004, 0.2) == pytest.approx([0.01, 0.03, 0.1])


def test_tick_texts_have_equal_digits():
    assert tick_texts([-0.025, 0, 0.05]) == ["−0.025", "0.000", "0.050"]
    assert tick_texts([0, 2000, 4000]) == ["0", "2\u202f000", "4\u202f000"]
    assert tick_texts([1, 2]) == ["1", "2"]
    assert tick_texts([]) == []


def test_padded_ignores_what_is_not_finite():
    assert padded([1.0, math.nan, 2.0], 0.1) == pytest.approx((0.9, 2.1))
    low, high = padded([0.5, 0.5], 0.06, 0.02)
    assert low < 0.5 < high
    assert padded([]) == pytest.approx((-0.06, 1.06))


def test_curve_breaks_at_gaps():
    path = curve(FRAME, [0, 1, 2, 3], [0.1, math.nan, 0.3, 0.4], "line")
    assert re.findall("[ML]", path) == ["M", "M", "L"]


def test_spaced_keeps_distance_order_and_sum():
    free = np.array([10.0, 40.0, 90.0])
    np.testing.assert_allclose(spaced(free, 15, 0, 100), free)
    # Two at 50: moved apart evenly.
    np.testing.assert_allclose(spaced(np.array([50.0, 50.0]), 15, 0, 100), [42.5, 57.5])
    np.testing.assert_allclose(spaced(np.array([98.0, 99.0]), 15, 0, 100), [85.0, 100.0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = np.sort(rng.uniform(20, 180, 4))
        rows = spaced(wanted, 15, 0, 200)
        assert (np.diff(rows) >= 15 - 1e-9).all()
        assert rows.min() >= -1e-9 and rows.max() <= 200 + 1e-9
    assert len(spaced(np.array([]), 15, 0, 1)) == 0


def test_end_labels_name_every_line_once():
    labels = end_labels(FRAME, [(0.5, "a", "x"), (0.5, "b", "x"), (0.9, "c", "x")])
    rows = [float(m) for m in re.findall(r'<text x="[\d.]+" y="([\d.]+)"', "".join(labels))]
    assert len(rows) == 3 and min(np.diff(sorted(rows))) >= 15 - 1e-6
