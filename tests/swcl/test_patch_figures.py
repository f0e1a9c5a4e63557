"""Histogram and panels of patches, and their section in a report."""

import json

import numpy as np
from PIL import Image

from medinit_jax.data.color import viridis
from medinit_jax.report.patches import histogram_figure, patch_section
from medinit_jax.report.plot import NARROW
from medinit_jax.swcl.patch_figures import Panel, draw_panel, score_histogram, write_figures
from medinit_jax.swcl.patch_table import PairTable

TABLE = PairTable(
    names=[("", "")] * 3,
    sources=[""] * 3,
    positions=np.zeros(3, np.int32),
    patients=np.zeros(3, np.int32),
    scores=np.array([[0.0, 0.42], [0.4, 0.99], [1.0, 0.12]]),
    labels=np.array([[0, 1], [-1, -1], [1, -1]], np.int32),
)


def panel(eye="left", label=-1):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (32, 32, 3), np.uint8)
    return Panel(f"mine_1_{eye}", eye, image, rng.uniform(size=(32, 32)), np.arange(5) / 10, label)


def test_the_histogram_by_hand():
    found = score_histogram(TABLE)
    assert len(found["edges"]) == 21 and found["threshold"] == 0.4
    assert {name: group["patches"] for name, group in found["groups"].items()} == {
        "labelled normal": 1,
        "labelled abnormal": 2,
        "unlabelled": 3,
    }
    counts = {name: np.array(group["counts"]) for name, group in found["groups"].items()}
    assert np.flatnonzero(counts["labelled normal"]).tolist() == [0]
    assert np.flatnonzero(counts["labelled abnormal"]).tolist() == [8, 19]
    assert np.flatnonzero(counts["unlabelled"]).tolist() == [2, 8, 19]
    # 0.4 itself counts.
    assert found["groups"]["unlabelled"]["abnormal"] == 2 / 3
    without = score_histogram(TABLE._replace(labels=np.full((3, 2), -1)))
    assert list(without["groups"]) == ["unlabelled"]


def test_a_panel_shows_photograph_map_and_boxes():
    one = panel()
    drawn = draw_panel(one, 16)
    assert drawn.shape == (32, 68, 3) and drawn.dtype == np.uint8
    # Boxes of 16 in 32 pixels touch: the outer border and the central one are white.
    for left in (0, 36):
        half = drawn[:, left : left + 32]
        assert (half[[0, 15, 16, 31]] == 255).all() and (half[:, [0, 15, 16, 31]] == 255).all()
        assert (half[8, 8:24] == 255).all() and (half[8:24, 23] == 255).all()
    np.testing.assert_array_equal(drawn[1:8, 1:15], one.image[1:8, 1:15])
    mixed = 0.5 * one.image + 0.5 * viridis(one.map)
    np.testing.assert_allclose(drawn[1:8, 37:51], mixed[1:8, 1:15], atol=0.5)


def test_a_report_shows_them(tmp_path):
    panels = [panel("left", 1), panel("right")]
    path = write_figures(tmp_path, TABLE, panels, 16)
    content = json.loads(path.read_text())
    assert [one["file"] for one in content["panels"]] == ["panels/00.png", "panels/01.png"]
    # The score 0.1 lies above on the right, where a right eye has its tl.
    assert content["panels"][1]["scores"]["tl"] == 0.1
    stored = np.array(Image.open(tmp_path / "panels" / "01.png"))
    np.testing.assert_array_equal(stored, draw_panel(panels[1], 16))
    page = patch_section(tmp_path)
    assert page.count("<img") == 2 and "mine_1_right, unlabelled: tr 0.00, tl 0.10" in page
    assert "labelled abnormal: 2, 100" in page and "threshold 0.4" in page
    # A panel that is lost takes nothing else with it.
    (tmp_path / "panels" / "00.png").unlink()
    assert patch_section(tmp_path).count("<img") == 1


def test_without_files_the_section_says_so(tmp_path):
    assert "Not run in this workdir" in patch_section(tmp_path)
    (tmp_path / "patches.json").write_text('{"histogram": 3, "panels": [{"file": "x.png"}, 4]}')
    assert "Not run in this workdir" in patch_section(tmp_path)
    assert histogram_figure({"edges": [0, 1], "groups": {"unlabelled": {"counts": []}}}, 1) is None


def test_steps_stand_over_their_bins():
    histogram = {"edges": [0, 0.5, 1], "groups": {"unlabelled": {"counts": [3, 1]}}}
    drawing = histogram_figure(histogram, NARROW)
    assert drawing is not None
    # From 48 to 332 pixels; the highest bin is 1 / 1.05 of 200 pixels high.
    assert "M48.0 230.0L48.0 39.5L190.0 39.5L190.0 166.5L332.0 166.5L332.0 230.0" in drawing
