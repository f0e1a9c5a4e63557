"""What the figures compute before they draw."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from medinit_jax.report import parameters, pictures, training
from medinit_jax.report.plot import NARROW, WIDE
from medinit_jax.report.starts import difference_figure
from medinit_jax.report.verdict import compare_all
from medinit_jax.report.workdir import read_workdir


def test_smoothing_keeps_the_mean_and_the_ends():
    steps, values = np.arange(1, 1001), np.arange(1000.0)
    x, y = training.smoothed(steps, values, 100)
    assert len(x) == len(y) == 100
    assert y.mean() == pytest.approx(values.mean())
    assert (x[0], y[0]) == (5.5, 4.5)
    assert len(training.smoothed(steps[:7], values[:7], 100)[0]) == 7


def test_png_holds_the_image():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    code = pictures.data_uri(image).removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))), image)


def test_only_weight_tensors_are_drawn():
    tensors = [
        {"name": "a", "shape": [3, 3, 1, 8], "hyper": {"std": 0.1}},
        {"name": "b", "shape": [8], "hyper": {"std": 0.1}},
        {"name": "c", "shape": [1, 1, 1, 8], "hyper": {"std": 0.1}},
        {"name": "d", "shape": [8, 2], "random": {"std": 0.2}, "hyper": {"std": float("nan")}},
        "no tensor",
    ]
    assert [t["name"] for t in parameters.kernels(tensors)] == ["a", "d"]
    drawing = parameters.parameter_figure("net", tensors, NARROW)
    assert drawing is not None and "d, random (He): 0.2000" in drawing
    assert parameters.parameter_figure("net", tensors[1:2], NARROW) is None


def test_split_order_and_bars(made_up):
    rotation = {"custom": {"mean": 0.5}, "test": {"mean": 0.4}, "val": {"mean": 0.6}, "ridge": 0.4}
    assert training.split_names(rotation) == ["val", "test", "custom"]
    drawing = training.split_figure(rotation, WIDE)
    assert drawing is not None
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="9"', drawing)]
    assert widths[0] / widths[1] == pytest.approx(0.6 / 0.4, rel=1e-3)
    assert training.split_figure({"ridge": 0.4}, WIDE) is None


def test_networks_as_numbers_or_records():
    split = {"per_network": [0.5, {"name": "a", "accuracy": 0.6}, None, "x"]}
    assert training.network_figures(split) == [0.5, 0.6]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_figures_stay_inside_their_canvas(workdir, made_up, width):
    """No text begins left of the drawing or, at a rough letter width, ends right of it."""
    record = read_workdir(workdir)
    found = compare_all(record.summary["finetune"])
    drawings = [
        training.training_figure(record.metrics, record.summary, width),
        training.split_figure(record.summary["rotation_accuracy"], width),
        difference_figure(found, width),
    ]
    for drawing in drawings:
        assert drawing is not None
        pattern = r'<text x="([\d.-]+)" y="[\d.-]+" text-anchor="(\w+)"[^>]*>([^<]*)<'
        for x, anchor, content in re.findall(pattern, drawing):
            length = 6.2 * len(content)
            left = float(x) - {"start": 0, "middle": 0.5, "end": 1}[anchor] * length
            assert left > -4 and left + length < width + 4, content


def test_metrics_of_a_resumed_run_count_once(workdir):
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4200, "train/loss": 0.125, "train/accuracy": null}\n')
    steps, values = read_workdir(workdir).metrics["train/loss"]
    assert (steps[-1], values[-1]) == (4200, 0.125)
    assert len(np.unique(steps)) == len(steps) and (np.diff(steps) > 0).all()
