"""The page of a pretraining: its figures, curves, warnings, and what it does without files."""

import json
import re
from html.parser import HTMLParser

import ml_collections
import numpy as np
import pytest

from medinit_jax import swcl
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import write_json
from medinit_jax.report.plot import NARROW
from medinit_jax.report.pretrain_figures import SCALARS, scalar_panel, scalar_panels
from medinit_jax.report.pretrain_page import write_pretrain_report
from medinit_jax.report.workdir import images_of

VOID = {"br", "col", "hr", "img", "link", "meta"}
LAST = {
    "swcl": {"loss": 2.913, "alignment": 0.174, "uniformity": -2.008, "positives": 2.758,
             "collapse_distance": 2.02, "spread": 0.868, "grad_norm": 3.1},
    "byol": {"loss": 0.402, "spread": 0.012, "grad_norm": 1.4},
    "dino": {"loss": 7.304, "teacher_entropy": 5.815, "grad_norm": 0.98},
    "multitask": {"loss": 0.812, "accuracy_abnormality": 0.71, "accuracy_position": 0.55,
                  "grad_norm": 2.2},
}  # fmt: skip
COLLAPSE = "The features of different images hardly differ (spread 0.012 of 1)"


class Page(HTMLParser):
    """Raises where tags do not close in order; keeps the text outside the style sheet."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f"{data}|"


def summary_of(method: str, **changes) -> dict:
    return {
        "method": method, "model": "resnet18", "parameters": 702096, "steps": 980, "epochs": 8.0,
        "start": {"name": "random"}, "seed": 42, "last": LAST[method], "skipped_steps": 0,
        "seconds": 310.0, "images": 13680, "notes": ["a <trial>"],
        "data": {"source": "prepared:retinal_swap/x", "count": 6840, "sha256": "ab" * 32},
        "provenance": {"code_version": "1 (abc)", "date": "2031-05-04", "device": "1 x cpu"},
        **changes,
    }  # fmt: skip


def config_of(method: str) -> dict:
    return {
        "note": "a <trial>",
        "data": {"patches": "runs/patches", "sets": "some_set", "views": "contrastive", "size": 32},
        "loss": {"threshold": 0.4, "temperature": 0.1, "prototypes": 4096, "scheme": "all"},
        "train": {"batch": 128, "epochs": 8, "ema": 0.996},
        "optim": {"name": "adamw", "learning_rate": 0.001},
        "method": method,
    }


def leave(folder, method: str, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary_of(method, **changes)))
    (folder / "config.json").write_text(json.dumps({"config": config_of(method)}))
    lines = [
        {"step": step, **{f"train/{k}": v + 20 / step for k, v in LAST[method].items()}}
        for step in range(20, 1000, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("method", LAST)
def test_the_page_is_whole_and_shows_what_was_logged(tmp_path, method):
    path = write_pretrain_report(leave(tmp_path / "run", method))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r'(src|href)="(https?:|//)', text) and "@import" not in text
    titles = [SCALARS[name].title for name in LAST[method]]
    assert text.count("<svg") == len(titles)
    for title in titles:
        assert f"{title[0].upper()}{title[1:]}|" in page.text
    assert f"{LAST[method]['loss']:.3f}|loss at the end" in page.text
    assert "5\u00a0min 10\u00a0s|of training" in page.text
    assert "a <trial>" in page.text and 'class="alarm"' not in text
    assert "prepared:retinal_swap/x|6\u202f840|abababababababab|" in page.text
    settings = page.text.partition("Settings|")[2].partition("Images|")[0]
    paired = method in ("swcl", "multitask")
    assert ("data.patches|runs/patches|" in settings) == paired
    assert ("data.sets|some_set|" in settings) != paired
    assert ("loss.temperature|0.1|" in settings) == (method == "swcl")
    assert ("loss.prototypes|4096|" in settings) == (method == "dino")
    assert ("train.ema|0.996|" in settings) == (method in ("byol", "dino"))
    before = path.read_bytes()
    assert write_pretrain_report(tmp_path / "run").read_bytes() == before


def test_a_collapse_stands_above_all_figures(tmp_path):
    folder = leave(tmp_path, "byol", notes=["a <trial>", COLLAPSE], skipped_steps=3)
    text = write_pretrain_report(folder).read_text()
    alarms = re.findall(r'<p class="alarm" role="alert">(.*?)</p>', text)
    assert alarms == [COLLAPSE]
    assert text.index(COLLAPSE) < text.index("0.402")
    assert "3 steps were skipped as not finite" in text


def test_without_files_the_page_says_so(tmp_path):
    folder = leave(tmp_path, "dino")
    (folder / "metrics.jsonl").unlink()
    (folder / "config.json").unlink()
    text = write_pretrain_report(folder).read_text()
    page = Page(text)
    assert "<svg" not in text and "Curves|Not run in this workdir.|" in page.text
    (folder / "summary.json").unlink()
    with pytest.raises(UsageError, match="summary.json is missing"):
        write_pretrain_report(folder)


def test_a_curve_lies_in_its_panel():
    steps, values = np.arange(20, 1000, 20), np.linspace(5, 3, 49)
    drawing = scalar_panel({"train/loss": (steps, values)}, "loss", "loss")
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", drawing)
    xs, ys = (np.array([float(point[i]) for point in points]) for i in (0, 1))
    assert 0 < xs.min() < xs.max() <= NARROW
    # A loss that falls goes down the page.
    assert (np.diff(xs) >= 0).sum() == len(xs) - 2 and 26 <= ys.min() < ys.max() <= 190
    assert scalar_panel({}, "loss", "loss") is None and scalar_panels({}) is None
    single = scalar_panel({"train/loss": (np.array([5]), np.array([2.0]))}, "loss", "loss")
    assert "<circle" in single


def test_images_of_every_route():
    part = {"source": "a", "count": 2, "sha256": "x"}
    assert images_of({"data": {"train": part, "test": {**part, "source": "b"}}}) == [
        ("a (train)", 2, "x"),
        ("b (test)", 2, "x"),
    ]
    assert images_of({"data": {"count": 2, "parts": [part]}}) == [("a", 2, "x")]
    assert images_of({"data": part}) == [("a", 2, "x")]
    assert images_of({"sets": [{**part, "role": "labelled"}]}) == [("a (labelled)", 2, "x")]
    assert images_of({}) == [] == images_of({"data": {"train": {"count": 3}}})


def test_the_route_leaves_its_page(tmp_path, monkeypatch):
    class Pretraining:
        def __init__(self, config, workdir, console):
            self.workdir = workdir

        def run(self):
            write_json(self.workdir / "summary.json", summary_of("swcl"))
            return summary_of("swcl")

    monkeypatch.setattr("medinit_jax.swcl.pretrain.Pretraining", Pretraining)
    config = ml_collections.ConfigDict({"route": "swcl", "note": ""})
    swcl.run(config, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    assert "SWCL: a pretrained resnet18" in page.read_text()
    # A finished run without its page gets it when it is called again.
    page.unlink()
    swcl.run(config, tmp_path / "run")
    assert page.is_file()
