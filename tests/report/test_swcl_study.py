"""Pages and exports of SWCL's studies, from rows and jobs that are made up."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from medinit_jax.core.config import read_command_line
from medinit_jax.data.tasks import TASKS
from medinit_jax.downstream.metrics import paired_difference
from medinit_jax.report import start_tables, study_figures, study_tables
from medinit_jax.report.looks import LOOKS, legend, look
from medinit_jax.report.plot import NARROW
from medinit_jax.report.study import write_study_report
from medinit_jax.report.study_kinds import KINDS, MANY
from medinit_jax.report.style import CSS
from medinit_jax.study import swcl_starts
from medinit_jax.study.studies import STUDIES

ROOT = Path(__file__).resolve().parents[2]
SWCL = ("swcl_table2", "swcl_table3", "swcl_compare", "swcl_chain")
VOID = {"br", "col", "hr", "img", "link", "meta"}
MISSING = ("bit_s", "imagenet")


class Page(HTMLParser):
    """Raises where tags do not close in order; keeps the cells of all tables by caption."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tables, self.text = [], {}, ""
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        held = dict(attrs)
        if held.get("role") == "region":
            self.rows = self.tables.setdefault(held["aria-label"], [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self, beginning: str) -> list[list[str]]:
        """The cells of the table whose caption begins so, its head first."""
        return next(rows for caption, rows in self.tables.items() if caption.startswith(beginning))


def spread(values):
    values = [float(value) for value in values]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"values": values, "mean": float(np.mean(values)) if values else None, "sd": sd}


def rows_of(study: str, *overrides: str, seeds: int = 3, noise: float = 5e-4) -> list[dict]:
    """Rows of all cells of a study: no figures from `MISSING`, with a reason."""
    config = read_command_line(
        ["main", f"--config={ROOT}/configs/study.py:{study}", *overrides]
    ).config
    rng = np.random.default_rng(3)
    rows, random = [], {}
    for cell in STUDIES[study].cells(config):
        task = TASKS[cell.task]
        lift = 0.05 if cell.start == "swcl" else 0.0
        absent = cell.start in MISSING
        values = [] if absent else 0.7 + lift + noise * rng.standard_normal(seeds)
        # Seeds share what is easy about their images.
        values = np.asarray(values) + (0 if absent else 0.02 * np.arange(seeds))
        key = (cell.task, cell.model, cell.fraction)
        if cell.start == "random":
            random[key] = values
        rows.append(
            {
                **cell._asdict(), "modality": task.modality, "metric": task.metric,
                "jobs": [] if absent else [f"{cell.name.replace(' ', '-')}-{s}"
                                           for s in range(seeds)],
                "seeds": [] if absent else list(range(42, 42 + seeds)), "folds": 1,
                "learning_rate": 0.03, "diverged": 0, "seconds": 3.0,
                "reason": "no file was given with config.<it>" if absent else "",
                "best": spread(values), "last": spread(values),
                "validation": spread(values + 0.1), "epochs_best": [],
                "interval": None if absent else [0.61, 0.83],
                "curve": [] if absent else [[e, 0.8 - 0.4 / e + lift, 0.02] for e in (1, 2, 4, 8)],
                "curves": [], "cam": None, "epochs_to_95": None, "difference": None,
                "on_images": None,
            }
        )  # fmt: skip
    for row in rows:
        other = random[row["task"], row["model"], row["fraction"]]
        if row["start"] != "random" and row["jobs"]:
            found = paired_difference(row["best"]["values"], other)._asdict()
            found = {k: None if np.isnan(v) else v for k, v in found.items()}
            row["difference"] = {"best": found, "last": found}
    return rows


LAST = {
    "swcl": {"loss": 2.913, "alignment": 0.174, "uniformity": -2.008, "positives": 2.758,
             "collapse_distance": 2.02, "spread": 0.868, "grad_norm": 3.1},
    "dino": {"loss": 7.304, "teacher_entropy": 5.815, "grad_norm": 0.98},
}  # fmt: skip
COLLAPSE = "The teacher says the same of all images (entropy 0.000 of 8.318)"


def leave(folder: Path, summary: dict, metrics: list[dict] | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))


def pretrained(method: str, note: str = "") -> tuple[dict, list[dict]]:
    """What a pretraining leaves."""
    last = LAST[method]
    metrics = [
        {"step": step, **{f"train/{k}": v + 20 / step for k, v in last.items()}, "skipped": 0}
        for step in range(20, 1000, 20)
    ]
    summary = {
        "method": method, "model": "resnet18", "parameters": 702096, "steps": 980, "epochs": 8.0,
        "start": {"name": "random"}, "seed": 42, "last": last, "skipped_steps": 0,
        "seconds": 310.0, "images": 13680, "notes": [note] if note else [],
        "data": {"source": f"patches:{method}", "count": 6840, "sha256": "ab" * 32},
        "provenance": {"code_version": "1", "date": "2031-05-04"},
    }  # fmt: skip
    return summary, metrics


def write(folder: Path, study: str, rows: list[dict], **changes) -> Page:
    """Writes a study with its jobs and its page."""
    folder.mkdir(exist_ok=True)
    jobs_dir = folder / "jobs"
    starts = list(dict.fromkeys(row["start"] for row in rows))
    seeds = max(len(row["seeds"]) for row in rows)
    names = {
        "labeler": "labeler", "patches": "patches", "swcl resnet18": "swcl",
        "dino resnet18": "swcl", "odir resnet18": "finetune",
    }  # fmt: skip
    jobs = [
        {"id": f"{name.replace(' ', '-')}-0", "kind": kind, "name": name, "needs": [],
         "role": "pretraining", "start": name.split()[0], "status": "done", "reason": ""}
        for name, kind in names.items()
    ]  # fmt: skip
    jobs[-1] |= {"status": "failed", "reason": "no <images>"}
    jobs += [
        {"id": job, "kind": "finetune", "name": job, "needs": [], "role": "run",
         "start": row["start"], "status": "done", "reason": ""}
        for row in rows
        for job in row["jobs"]
    ]  # fmt: skip
    if not jobs_dir.is_dir():
        test = {"metric": 0.8284, "low": 0.7612, "high": 0.8929}
        leave(jobs_dir / "labeler-0", {
            "best": {"validation": 0.8011, "test": test}, "seconds": 337.5, "notes": [],
            "data": {"train": {"source": "prepared:odir/train", "count": 694, "sha256": "cd" * 32}},
        })  # fmt: skip
        leave(jobs_dir / "swcl-resnet18-0", *pretrained("swcl"))
        leave(jobs_dir / "dino-resnet18-0", *pretrained("dino", COLLAPSE))
        leave(jobs_dir / "patches-0", {
            "patients": 1368, "patches": 13680, "share_abnormal": 0.80321, "threshold": 0.4,
            "seconds": 11.6, "notes": [],
            "sets": [{"source": "prepared:odir", "role": "labelled", "count": 96, "sha256": "ef"}],
        })  # fmt: skip
        edges, counts = np.linspace(0, 1, 5).tolist(), [1, 2, 3, 4]
        groups = {"unlabelled": {"counts": counts, "patches": 10, "abnormal": 0.7}}
        histogram = {"edges": edges, "threshold": 0.4, "groups": groups}
        (jobs_dir / "patches-0" / "patches.json").write_text(json.dumps({"histogram": histogram}))
        (jobs_dir / "patches-0" / "report.html").write_text("its page")
    summary = {
        "study": study, "size": "mini", "phantom": True, "jobs_done": len(jobs) - 1,
        "jobs_failed": 1, "jobs_open": 0, "starts": starts, "seeds": list(range(42, 42 + seeds)),
        "table": rows, "provenance": {"code_version": "1"}, "notes": [], **changes,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return Page(write_study_report(folder, jobs_dir).read_text(encoding="utf-8"))


def test_every_study_and_every_start_has_an_entry():
    assert set(KINDS) == set(STUDIES)
    assert set(swcl_starts.RULES) <= set(LOOKS)
    names = [one.name for one in LOOKS.values()]
    assert len(set(names)) == len(names)
    # Each has a color of its own, or that of its group.
    rules = " ".join(re.findall(r"([^{}]*)\{ --c:", CSS))
    colored = re.findall(r"\.s-(\w+)", rules)
    groups = re.findall(r'\[class\*="s-(\w+)"\]', rules)
    for start in LOOKS:
        assert start in colored or any(start.startswith(group) for group in groups), start


def test_an_unknown_start_goes_by_its_own_name(tmp_path):
    assert look("mine").name == look("mine").short == "mine"
    assert "mine" in legend(["mine"])
    for study in SWCL:
        rows = rows_of(study)
        for row in rows:
            row["start"] = {"swcl": "mine"}.get(row["start"], row["start"])
        page = write(tmp_path / study, study, rows)
        assert "mine" in page.text


@pytest.mark.parametrize("study", SWCL)
def test_the_page_is_whole_and_loads_nothing(tmp_path, study):
    rows = rows_of(study)
    page = write(tmp_path, study, rows)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(https?:|//)', text) and "@import" not in text
    assert "hyper" not in page.text and "SWCL beats random initialization in" in page.text
    missing = sum(row["start"] in MISSING for row in rows)
    assert ("no file was given with config.<it>" in page.text) == bool(missing)
    assert (f"{missing} of {len(rows)} cells are incomplete" in page.text) == bool(missing)
    # Each figure leads to its runs.
    assert all(f'href="jobs/{job}"' in text for row in rows for job in row["jobs"])
    convergence = "Convergence on validation images" in page.text
    assert convergence == (study in ("swcl_compare", "swcl_chain"))
    assert ("Differences to random initialization, paired" in page.text) and (
        convergence or "Bars are 95 % intervals" in page.text
    )


def test_table_two_lies_as_the_paper_prints_it(tmp_path):
    rows = rows_of("swcl_table2")
    table = write(tmp_path, "swcl_table2", rows).table("Test figure")
    assert [len(line) for line in table] == [8] * 12
    assert table[0][3] == "refuge_cls AUC resnet18"
    assert [line[0] for line in table[1:]] == [look(r["start"]).short for r in rows[:11]]
    for line in table[1:]:
        for cell, row in zip(line[1:], [r for r in rows if look(r["start"]).short == line[0]],
                             strict=True):  # fmt: skip
            if row["best"]["mean"] is None:
                assert cell.startswith("no file was given with config.<it>")
            else:
                wanted = f"{row['best']['mean']:.4f} ± {row['best']['sd']:.4f}"
                assert cell.startswith(f"{wanted} paper {row['paper']:.4f}"), cell
                assert "0.610 to 0.830" in cell


def test_few_starts_keep_a_line_per_task(tmp_path):
    starts = "('random', 'swcl', 'simclr', 'byol', 'dino')"
    rows = rows_of("swcl_table2", f"--config.starts={starts}")
    assert len({row["start"] for row in rows}) < MANY
    table = write(tmp_path, "swcl_table2", rows).table("Test figure")
    assert len(table) == 8 and table[1][1] == "messidor joint accuracy, 5 folds"
    assert not (tmp_path / "tables" / "swcl_table2_by_start.csv").exists()


@pytest.mark.parametrize("few", [False, True])
def test_table_three_sets_validation_beside_validation(tmp_path, few):
    chosen = ("--config.starts=('random', 'swcl')",) if few else ()
    rows = rows_of("swcl_table3", *chosen)
    table = write(tmp_path, "swcl_table3", rows).table("Validation figure")
    assert table[0][1:4] == ["validation AUC", "paper, validation", "test AUC"]
    assert len(table) == 1 + len(rows)
    for line, row in zip(table[1:], rows, strict=True):
        figures = [row[which] for which in ("validation", "best")]
        ours, test = (
            "–" if one["mean"] is None else f"{one['mean']:.4f}\u00a0±\u00a0{one['sd']:.4f}"
            for one in figures
        )
        ours += f" {row['reason']}" if row["reason"] else ""
        assert line[:4] == [look(row["start"]).name, ours, f"{row['paper']:.4f}", test]
    latex = (tmp_path / "tables" / "swcl_table3.tex").read_text().splitlines()
    assert latex[2] == r"start & validation & paper, validation & test \\"
    swcl = next(row for row in rows if row["start"] == "swcl")
    wanted = [rf"{swcl[w]['mean']:.4f} $\pm$ {swcl[w]['sd']:.4f}" for w in ("validation", "best")]
    line = next(line for line in latex if line.startswith("SWCL & "))
    assert line == rf"SWCL & {wanted[0]} & 0.9652 & \textbf{{{wanted[1]}}} \\"


@pytest.mark.parametrize("study", SWCL)
def test_csv_holds_the_rows(tmp_path, study):
    rows = rows_of(study)
    write(tmp_path, study, rows)
    with open(tmp_path / "tables" / f"{study}.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (line["task"], line["start"]) == (row["task"], row["start"])
        for which in ("best", "validation"):
            held = line[f"{which}_mean"]
            assert (float(held) if held else None) == row[which]["mean"]
        judged = "validation" if study == "swcl_table3" else "test"
        assert line["paper_is_of"] == ("" if row["paper"] is None else judged)
        assert line["reason"] == row["reason"]


def test_exports_by_start_hold_the_rows(tmp_path):
    rows = rows_of("swcl_table2")
    write(tmp_path, "swcl_table2", rows)
    with open(tmp_path / "tables" / "swcl_table2_by_start.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["start"] for line in lines] == [row["start"] for row in rows[:11]]
    by_start = {line["start"]: line for line in lines}
    for row in rows:
        name = f"{row['task']} {row['model']} 100%"
        held = by_start[row["start"]]
        for what, value in (("mean", row["best"]["mean"]), ("sd", row["best"]["sd"]),
                            ("paper", row["paper"])):  # fmt: skip
            found = held[f"{name} {what}"]
            assert (float(found) if found else None) == value
    latex = (tmp_path / "tables" / "swcl_table2.tex").read_text()
    assert latex.startswith("\\begin{tabular}{l" + "rr" * 7 + "}")
    assert r"\multicolumn{2}{c}{refuge\_cls, resnet18, 100\%}" in latex
    for line in latex.splitlines():
        if " & " in line:
            assert line.count(" & ") == (7 if "multicolumn" in line else 14), line
    random = rows[0]
    assert rf"{random['best']['mean']:.4f} $\pm$ {random['best']['sd']:.4f} & " in latex
    absent = next(row for row in rows if row["start"] == "bit_s")
    assert rf"BiT-S & -- & {absent['paper']:.4f} & " in latex


def test_differences_are_drawn_where_they_lie():
    rows = study_tables.with_tests(rows_of("swcl_table3"))
    drawing = study_figures.difference_panel(rows, "t", NARROW)
    found = [row["difference"]["best"] for row in rows if row["difference"]]
    assert drawing.count('class="interval') == len(found) == 9
    marks = re.findall(r'class="zero"|<(?:circle|rect|polygon)', drawing)
    assert marks.count('class="zero"') == 1 and len(marks) == 10
    assert "no abnormality" in drawing and "difference in AUC" in drawing
    # Two seeds: the interval leaves the panel, and has no stroke at its end.
    two = study_tables.with_tests(rows_of("swcl_table3", seeds=2, noise=0.01))
    wide = study_figures.difference_panel(two, "t", NARROW)
    assert wide.count('class="cap') < 2 * wide.count('class="interval')
    inside = [float(x) for x in re.findall(r'x[12]="([\d.-]+)"', wide)]
    assert min(inside) >= 0 and max(inside) <= NARROW
    one = study_tables.with_tests(rows_of("swcl_table3", seeds=1))
    alone = study_figures.difference_panel(one, "t", NARROW)
    assert 'class="interval' not in alone and "SWCL" in alone
    assert study_figures.difference_panel([rows[0]], "t", NARROW) is None


def test_what_pretraining_left(tmp_path):
    page = write(tmp_path, "swcl_compare", rows_of("swcl_compare"))
    text = (tmp_path / "report.html").read_text()
    encoders = page.table("Encoders")
    figures = ["loss", "alignment", "uniformity", "positives per anchor", "distance from collapse"]
    assert encoders[0][2:9] == ["steps", *figures, "spread"]
    assert encoders[1][2:9] == ["980", "2.913", "0.174", "−2.008", "2.758", "2.020", "0.868"]
    assert (
        encoders[2][3] == "7.304" and encoders[2][encoders[0].index("teacher entropy")] == "5.815"
    )
    assert encoders[2][4] == "–" and encoders[1][-1] == "5\u00a0min 10\u00a0s"
    labelled = page.table("Normal against abnormal")
    assert labelled[1][2:5] == ["0.8284", "0.761 to 0.893", "0.8011"]
    assert labelled[2][1] == "failed no <images>" and labelled[2][2] == "–"
    assert page.table("Patches scored")[1][2:6] == [
        "1\u202f368", "13\u202f680", "80.3\u00a0%", "0.40",
    ]  # fmt: skip
    assert 'href="jobs/patches-0/report.html"' in text and "threshold 0.4" in text
    assert f"dino-resnet18-0: {COLLAPSE}" in page.text
    assert "swcl resnet18: loss" in text and "dino resnet18: loss" in text
    # The images of every route are named with their checksum.
    for source, sha256 in (("patches:swcl", "ab" * 32), ("prepared:odir (labelled)", "ef"),
                           ("prepared:odir/train (train)", "cd" * 32)):  # fmt: skip
        assert source in page.text and sha256 in page.text


def test_without_pretraining_there_is_no_section(tmp_path):
    write(tmp_path, "swcl_chain", rows_of("swcl_chain"))
    jobs = json.loads((tmp_path / "jobs.json").read_text())
    (tmp_path / "jobs.json").write_text(json.dumps([j for j in jobs if j["role"] == "run"]))
    page = Page(write_study_report(tmp_path, tmp_path / "jobs").read_text())
    assert "Pretraining" not in page.text and "Patches and their scores" not in page.text


def test_columns_keep_shares_apart():
    rows = rows_of("swcl_compare", "--config.sizes.mini.fractions=(0.1, 1.0)")
    held = start_tables.columns(rows)
    assert [key[2] for key in held] == [0.1, 1.0, 0.1, 1.0]
    assert study_figures.panels(
        rows, study_figures.convergence_panel, apart=("fraction",)
    ).count("<svg") == 4  # fmt: skip
