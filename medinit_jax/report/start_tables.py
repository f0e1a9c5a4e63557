"""Tables of a study with a line per start, as SWCL's paper prints them: page, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medinit_jax.report.looks import look
from medinit_jax.report.markup import DASH, Html, element, fixed, is_number, percent, spread
from medinit_jax.report.study_tables import Row, beats_random, escaped, latex_figure, run_links
from medinit_jax.report.tables import folded, table

# Task, network and share of labels: what a column is of.
Column = tuple[str, str, float]


def columns(rows: Sequence[Row]) -> dict[Column, dict[str, Row]]:
    """Returns the rows by column and, in it, by start; columns in the order of the rows."""
    found: dict[Column, dict[str, Row]] = {}
    for row in rows:
        key = (row["task"], row["model"], row["fraction"])
        found.setdefault(key, {})[row["start"]] = row
    return found


def start_table(rows: Sequence[Row], starts: Sequence[str], folders: Mapping[str, str]) -> Html:
    """A line per start, a column per task, the paper's figure below ours.

    Args:
        rows: Of `study_tables.with_tests`.
        starts: In the order of the lines.
        folders: {job id: link}.
    """
    held = columns(rows)
    heads = [
        element(
            "span",
            task,
            element("br"),
            next(iter(cells.values()))["metric"],
            element("br"),
            element("span", _network(model, share), class_="more"),
            class_="head",
        )
        for (task, model, share), cells in held.items()
    ]
    lines = [
        [look(start).short, *(_cell(cells.get(start), folders) for cells in held.values())]
        for start in starts
    ]
    caption = (
        "Test figure at the best validation epoch, deviation over seeds, the paper’s figure, and "
        "behind “runs” the mean 95 % interval over test images"
    )
    return table(caption, ["start", *heads], lines)


def _network(model: str, share: float) -> str:
    """A network's name that may break after an underscore, and its share of labels."""
    name = model.replace("_", "_\u200b")
    return name if share == 1 else f"{name}, {percent(share)}"


def _cell(row: Row | None, folders: Mapping[str, str]) -> Any:
    if row is None:
        return DASH
    paper = f"paper {fixed(row['paper'], 4)}" if is_number(row.get("paper")) else None
    below = [element("br"), element("span", paper, class_="more")] if paper else []
    mean, sd = row["best"]["mean"], row["best"]["sd"]
    reason = element("span", row["reason"] or "no figure", class_="reason")
    if not is_number(mean):
        return element("span", reason, below, class_="cell")
    parts: list[Any] = [element("b", fixed(mean, 4)) if beats_random(row) else fixed(mean, 4)]
    if is_number(sd):
        parts += [element("br"), element("span", f"± {fixed(sd, 4)}", class_="more")]
    parts += below
    if row["reason"]:
        parts += [element("br"), reason]
    return element("div", parts, folded("runs", _interval(row), run_links(row, folders)))


def _interval(row: Row) -> Html | None:
    ends = row.get("interval")
    return element("span", f"{fixed(ends[0])} to {fixed(ends[1])}", class_="more") if ends else None


def validation_table(
    rows: Sequence[Row], starts: Sequence[str], folders: Mapping[str, str]
) -> Html:
    """A line per start: our validation figure beside the paper's, then our test figure.

    Args:
        rows: Of `study_tables.with_tests`, of one metric.
        starts: In the order of the lines.
        folders: {job id: link}.
    """
    held = columns(rows)
    metric = rows[0]["metric"] if rows else "figure"
    lines = []
    for (task, model, share), cells in held.items():
        for start in starts:
            row = cells.get(start)
            if row is None:
                continue
            name = [look(start).name]
            if len(held) > 1:
                name += [element("br"), f"{task}, {model}, {percent(share)}"]
            lines.append([element("span", name), *_validation_cells(row, folders)])
    figures = (f"validation {metric}", "paper, validation", f"test {metric}",
               "95 % over test images", "runs")  # fmt: skip
    heads = ("start", *(element("span", name, class_="head") for name in figures))
    caption = (
        "Validation figure of the best epoch, as the paper prints it, and the test figure of the "
        "same epoch: mean ± deviation over seeds"
    )
    return table(caption, heads, lines)


def _validation_cells(row: Row, folders: Mapping[str, str]) -> list[Any]:
    ends = row.get("interval")
    test = spread(row["best"]["mean"], row["best"]["sd"], 4)
    ours: Any = spread(row["validation"]["mean"], row["validation"]["sd"], 4)
    if row["reason"]:
        ours = element("span", ours, element("br"), row["reason"], class_="reason")
    return [
        ours,
        fixed(row.get("paper"), 4),
        element("b", test) if beats_random(row) else test,
        f"{fixed(ends[0])} to {fixed(ends[1])}" if ends else DASH,
        run_links(row, folders),
    ]


def write_start_csv(path: Path, rows: Sequence[Row], starts: Sequence[str]) -> None:
    """Writes mean, deviation and the paper's figure of every column, a line per start."""
    held = columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{task} {model} {100 * share:g}%" for task, model, share in held]
    writer.writerow(["start", *(f"{n} {what}" for n in names for what in ("mean", "sd", "paper"))])
    for start in starts:
        line: list[Any] = [start]
        for cells in held.values():
            row = cells.get(start)
            best = row["best"] if row else {}
            line += [best.get("mean"), best.get("sd"), row.get("paper") if row else None]
        writer.writerow(["" if value is None else value for value in line])
    path.write_text(text.getvalue(), encoding="utf-8")


def write_start_latex(path: Path, rows: Sequence[Row], starts: Sequence[str]) -> None:
    """Writes a booktabs table with a line per start, ours and the paper's figure of each task."""
    held = columns(rows)
    tasks = [
        rf"\multicolumn{{2}}{{c}}{{{escaped(f'{task}, {model}, {100 * share:g}%')}}}"
        for task, model, share in held
    ]
    heads = [["", *tasks], ["start", *["ours", "paper"] * len(held)]]
    body = [
        [
            escaped(look(start).name),
            *(text for cells in held.values() for text in _latex_pair(cells.get(start))),
        ]
        for start in starts
    ]
    _write_booktabs(path, "l" + "rr" * len(held), heads, body)


def write_validation_latex(path: Path, rows: Sequence[Row], starts: Sequence[str]) -> None:
    """Writes a booktabs table with a line per start: validation, the paper's, and test."""
    body = []
    for cells in columns(rows).values():
        for start in starts:
            if start in cells:
                row = cells[start]
                ours = latex_figure(row["validation"]["mean"], row["validation"]["sd"])
                test, paper = _latex_pair(row)
                body.append([escaped(look(start).name), ours, paper, test])
    _write_booktabs(path, "lrrr", [["start", "validation", "paper, validation", "test"]], body)


def _latex_pair(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "--", "--"
    figure = latex_figure(row["best"]["mean"], row["best"]["sd"])
    figure = rf"\textbf{{{figure}}}" if beats_random(row) else figure
    return figure, latex_figure(row.get("paper"), None)


def _write_booktabs(
    path: Path, align: str, heads: Sequence[Sequence[str]], body: Sequence[Sequence[str]]
) -> None:
    lines = [
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        *(" & ".join(line) + r" \\" for line in heads),
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
