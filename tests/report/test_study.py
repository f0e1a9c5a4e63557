"""The page of a study: what it claims, that its numbers lead to runs, and its exports."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.metrics import paired_difference
from medinit_jax.report import study_figures, study_tables
from medinit_jax.report.study import write_study_report
from medinit_jax.report.study_reading import headline

VOID = {"br", "col", "hr", "img", "link", "meta"}


class Balance(HTMLParser):
    """Raises where tags do not close in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def row(start, values, random=None, task="eyepacs_dr", fraction=1.0, **changes):
    """A row as `study.table` makes it."""
    values = np.asarray(values, float)
    spread = {
        "values": values.tolist(),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
    }
    difference = None
    if random is not None:
        found = paired_difference(values, random)._asdict()
        found = {k: None if np.isnan(v) else v for k, v in found.items()}
        difference = {"best": found, "last": found}
    return {
        "experiment": "T2a", "task": task, "model": "resnet18", "start": start,
        "fraction": fraction, "modality": "fundus", "metric": "quadratic weighted kappa",
        "paper": {"random": 0.7433, "hyper": 0.7835}.get(start), "jobs": [f"job-{start}"],
        "seeds": list(range(len(values))), "learning_rate": 0.01, "diverged": 0, "seconds": 3.0,
        "reason": "", "best": spread, "last": spread, "validation": spread, "interval": [0.1, 0.2],
        "curve": [[1, 0.3, 0.01], [2, 0.5, 0.01]], "curves": [], "cam": None,
        "epochs_to_95": [1, None], "difference": difference, **changes,
    }  # fmt: skip


RANDOM = [0.50, 0.52, 0.49, 0.51]
# Better by 0.10 with a deviation of 0.005: t = 40.
BETTER = [0.60, 0.62, 0.59, 0.616]


def write(folder, rows, study="hyper_table2", **changes):
    starts = list(dict.fromkeys(r["start"] for r in rows))
    seeds = max((len(r["seeds"]) for r in rows), default=0)
    summary = {
        "study": study, "size": "mini", "phantom": True, "jobs_done": len(rows), "jobs_failed": 1,
        "jobs_open": 0, "starts": starts, "seeds": list(range(seeds)), "table": rows,
        "provenance": {"code_version": "1 <dirty>"}, "notes": [], **changes,
    }  # fmt: skip
    jobs = [
        {"id": f"job-{s}", "name": f"{s} & co", "status": "done", "reason": "", "needs": []}
        for s in starts
    ]
    jobs.append({"id": "job-x", "name": "x", "status": "failed", "reason": "no <labels>"})
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return write_study_report(folder, folder / "jobs").read_text(encoding="utf-8")


@pytest.mark.parametrize("study", ["hyper_table2", "hyper_fig2", "hyper_fig3", "hyper_fig4"])
def test_the_page_is_whole_and_loads_nothing(tmp_path, study):
    rows = [
        row(start, values, None if start == "random" else RANDOM, fraction=fraction)
        for fraction in (0.1, 1.0)
        for start, values in (("hyper", BETTER), ("random", RANDOM))
    ]
    page = write(tmp_path, rows, study)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r'(src|href)="(https?:|//)', page) and "@import" not in page
    assert "no &lt;labels&gt;" in page and "<labels>" not in page
    assert 'href="jobs/job-hyper"' in page and "0.7835" in page
    assert write(tmp_path, rows, study) == page


def test_bold_is_what_survives_all_comparisons(tmp_path):
    rows = [row("random", RANDOM), row("hyper", BETTER, RANDOM), row("matched", RANDOM, RANDOM)]
    page = write(tmp_path, rows)
    bold = re.findall(r"<b>([\d.]+)", page)
    assert bold == ["0.6065"]
    assert "beats random initialization in 1 of 1 comparisons" in page


def test_p_values_and_their_correction():
    rows = [row("hyper", BETTER, RANDOM), row("matched", [0.50, 0.53, 0.48, 0.52], RANDOM)]
    expected = [stats.ttest_rel(r["best"]["values"], RANDOM).pvalue for r in rows]
    found = study_tables.with_tests(rows)
    np.testing.assert_allclose([r["p"] for r in found], expected, rtol=1e-9)
    # The smaller of two is doubled, the larger stays.
    assert found[0]["p_holm"] == pytest.approx(2 * expected[0])
    assert found[1]["p_holm"] == pytest.approx(expected[1])
    assert study_tables.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert study_tables.p_value(row("hyper", [0.5], [0.4])) is None


def test_one_seed_claims_nothing(tmp_path):
    rows = [row("random", [0.5]), row("hyper", [0.9], [0.5])]
    page = write(tmp_path, rows)
    assert "One seed: nothing can be claimed beyond these networks on these test images." in page
    assert "<b>0.9" not in page


def test_one_seed_can_be_tested_over_images(tmp_path):
    sure = {"mean": 0.4, "low": 0.3, "high": 0.5, "p": 0.001, "images": 90, "patients": 90}
    rows = [
        row("random", [0.5]),
        row("hyper", [0.9], [0.5], on_images=sure),
        row("matched", [0.49], [0.5], on_images={**sure, "mean": -0.01, "p": 0.4}),
    ]
    page = write(tmp_path, rows)
    assert "in 1 of 2 comparisons the difference to random is larger" in page
    assert "in 1 of them upward" in page and "+0.300 to +0.500" in page
    tested = study_tables.with_tests(rows)
    # Two comparisons: the smaller p counts twice.
    assert [row["images_p_holm"] for row in tested] == [None, 0.002, 0.4]


def test_a_loss_is_called_one():
    rows = study_tables.with_tests([row("hyper", RANDOM, BETTER)])
    assert "falls behind in 1" in headline(rows, {"study": "hyper_table2", "seeds": [0, 1, 2, 3]})


def test_a_cell_without_a_run_says_why(tmp_path):
    absent = row("hyper", [0.5], None)
    absent |= {"best": {"values": [], "mean": None, "sd": None}, "reason": "blocked: no images"}
    page = write(tmp_path, [row("random", RANDOM), absent])
    assert "blocked: no images" in page and "1 of 2 cells are incomplete" in page


def test_exports_hold_the_same_figures(tmp_path):
    write(tmp_path, [row("random", RANDOM), row("hyper", BETTER, RANDOM)])
    with open(tmp_path / "tables" / "hyper_table2.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["best_mean"]) == np.mean(BETTER)
    assert rows[1]["jobs"] == "job-hyper" and rows[0]["difference"] == ""
    latex = (tmp_path / "tables" / "hyper_table2.tex").read_text()
    assert r"eyepacs\_dr & resnet18 & 100\% & 0.5050" in latex
    assert r"\textbf{0.6065 $\pm$ 0.0140}" in latex
    assert study_tables.escaped("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"


def test_maps_of_other_images_are_not_set_beside():
    first = {"image": np.zeros((2, 8, 8, 3), np.uint8), "cam_1": np.ones((2, 2, 2), np.float32)}
    other = {**first, "image": np.ones((2, 8, 8, 3), np.uint8)}
    assert study_figures.map_grid({"hyper": first, "random": first}).count("<tr>") == 1 + 4
    assert study_figures.map_grid({"hyper": first, "random": other}).count("<tr>") == 1 + 2
    assert study_figures.map_grid({"hyper": {}}) is None


def test_the_outline_of_a_mask():
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    found = study_figures.outlined(np.zeros((5, 5, 3), np.uint8), mask)[..., 0] == 255
    expected = mask.copy()
    expected[2, 2] = False
    np.testing.assert_array_equal(found, expected)


def test_what_is_missing(tmp_path):
    with pytest.raises(UsageError, match="run the study first"):
        write_study_report(tmp_path, tmp_path)
    write(tmp_path, [row("random", RANDOM)])
    (tmp_path / "jobs.json").unlink()
    page = write_study_report(tmp_path, tmp_path / "jobs").read_text()
    assert "jobs.json is missing" in page
