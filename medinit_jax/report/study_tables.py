"""The tables of a study: in the page, as CSV, and as LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.special import stdtr

from medinit_jax.report.looks import look
from medinit_jax.report.markup import DASH, Html, element, fixed, is_number, percent, signed, spread
from medinit_jax.report.tables import table

Row = Mapping[str, Any]
# A difference counts where its p value, corrected for the number of comparisons, is below this.
LEVEL = 0.05
_LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)  # fmt: skip
COLUMNS = (
    "experiment", "task", "model", "fraction", "start", "metric", "best_mean", "best_sd",
    "last_mean", "last_sd", "validation_mean", "validation_sd", "seeds", "low", "high",
    "difference", "difference_low", "difference_high", "p_holm", "images_low", "images_high",
    "images_p_holm", "paper", "paper_is_of", "jobs", "reason",
)  # fmt: skip


def p_value(row: Row, which: str = "best") -> float | None:
    """Returns the two-sided p value of a row's paired difference to random; None with one seed.

    Source: Student, Biometrika 6 (1908).
    """
    found = (row.get("difference") or {}).get(which)
    if not found or found["count"] < 2 or not is_number(found["sd"]):
        return None
    if found["sd"] == 0:
        # Equal differences of figures that take few values show no certainty.
        return None if found["mean"] else 1.0
    t = abs(found["mean"]) * math.sqrt(found["count"]) / found["sd"]
    return float(2 * stdtr(found["count"] - 1, -t))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Returns p values corrected for their number.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i])  # pyright: ignore
    found: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, values[index] * (len(order) - rank)))  # pyright: ignore
        found[index] = highest
    return found


def with_tests(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows with `p` and, corrected over all rows, `p_holm` of the best epoch.

    `images_p_holm` is that of the test over images, corrected likewise.
    """
    values = [p_value(row) for row in rows]
    on_images = holm([(row.get("on_images") or {}).get("p") for row in rows])
    return [
        {**row, "p": p, "p_holm": corrected, "images_p_holm": by_image}
        for row, p, corrected, by_image in zip(rows, values, holm(values), on_images, strict=True)
    ]


def beats_random(row: Row) -> bool:
    """Tells whether a start beats random beyond the number of comparisons made."""
    found = (row.get("difference") or {}).get("best")
    if row["diverged"]:
        return False
    return bool(found and found["mean"] > 0 and is_number(row["p_holm"]) and row["p_holm"] < LEVEL)


def comparison_table(
    rows: Sequence[Row], starts: Sequence[str], folders: Mapping[str, str]
) -> Html:
    """A line per task, network and share of labels; a column per start, the paper's beside them.

    Args:
        rows: Of `with_tests`.
        starts: In the order of the columns.
        folders: {job id: link}.
    """
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["experiment"], row["task"], row["model"], row["fraction"])
        lines.setdefault(key, {})[row["start"]] = row
    several = len({key[3] for key in lines}) > 1
    heads = ["", "task, metric", "network", *(["labels"] if several else [])]
    heads += [look(start).name for start in starts]
    papers = [s for s in starts if any(is_number(row.get("paper")) for row in rows
                                       if row["start"] == s)]  # fmt: skip
    heads += [f"paper: {look(start).name}" for start in papers]
    body = []
    for (experiment, task, model, fraction), cells in lines.items():
        first = next(iter(cells.values()))
        metric = element("span", first["metric"], class_="head")
        line: list[Any] = [experiment, element("span", task, element("br"), metric), model]
        line += [percent(fraction)] if several else []
        line += [_cell(cells.get(start), folders) for start in starts]
        line += [fixed((cells.get(start) or {}).get("paper"), 4) for start in papers]
        body.append(line)
    return table(
        "Test figure at the best validation epoch: mean ± deviation over seeds, below it the mean "
        "95 % interval over test images",
        heads,
        body,
        texts=3,
    )


def _cell(row: Row | None, folders: Mapping[str, str]) -> Any:
    if row is None:
        return DASH
    if not is_number(row["best"]["mean"]):
        return element("span", row["reason"] or "no figure", class_="reason")
    figure = spread(row["best"]["mean"], row["best"]["sd"], 4)
    interval = row.get("interval")
    parts: list[Any] = [element("b", figure) if beats_random(row) else figure]
    if interval:
        parts += [element("br"), f"{fixed(interval[0])} to {fixed(interval[1])}"]
    parts.append(run_links(row, folders))
    if row["reason"]:
        parts.append(element("span", row["reason"], class_="reason"))
    return element("span", parts)


def run_links(row: Row, folders: Mapping[str, str]) -> Html | None:
    """Numbered links to the runs behind a row; None if it has none."""
    links = [
        [element("a", f"{number}", href=folders[job]), " "]
        for number, job in enumerate(row["jobs"], start=1)
        if job in folders
    ]
    return element("span", "runs ", links, class_="runs") if links else None


def difference_table(rows: Sequence[Row]) -> Html | None:
    """Paired differences to random: over seeds, and over test images with the networks as they are.

    Args:
        rows: Of `with_tests`.
    """
    several = len({row["fraction"] for row in rows}) > 1
    body = []
    for row in rows:
        found = (row.get("difference") or {}).get("best")
        if not found:
            continue
        ends = (
            f"{signed(found['low'])} to {signed(found['high'])}"
            if is_number(found["low"])
            else "one seed"
        )
        body.append(
            [
                f"{row['experiment']} {row['task']}, {row['model']}",
                *([percent(row["fraction"])] if several else []),
                look(row["start"]).name,
                signed(found["mean"], 4),
                ends,
                _probability(row["p"]),
                _probability(row["p_holm"]),
                *_on_images(row),
            ]
        )
    if not body:
        return None
    heads: list[Any] = ["task and network", *(["labels"] if several else []), "start"]
    figures = (
        "minus random",
        "95 % over seeds",
        "p",
        "p, Holm",
        "95 % over test images",
        "p, Holm",
    )
    heads += [element("span", name, class_="head") for name in figures]
    return table(
        "Differences to random initialization, paired", heads, body, texts=3 if several else 2
    )


def _on_images(row: Row) -> tuple[str, str]:
    found = row.get("on_images")
    if not found:
        return DASH, DASH
    return f"{signed(found['low'])} to {signed(found['high'])}", _probability(row["images_p_holm"])


def _probability(value: Any) -> str:
    return "< 0.001" if is_number(value) and value < 0.0005 else fixed(value)


def plain_rows(rows: Sequence[Row], judged: str) -> list[dict[str, Any]]:
    """Returns the rows as flat dicts with the keys `COLUMNS`, for CSV.

    Args:
        rows: Of `with_tests`.
        judged: What the paper's figures are of, "test" or "validation".
    """
    flat = []
    for row in rows:
        found = (row.get("difference") or {}).get("best") or {}
        low, high = row.get("interval") or (None, None)
        by_image = row.get("on_images") or {}
        values = (
            *(row[key] for key in ("experiment", "task", "model", "fraction", "start", "metric")),
            *(row[part][key] for part in ("best", "last", "validation") for key in ("mean", "sd")),
            " ".join(map(str, row["seeds"])), low, high, found.get("mean"), found.get("low"),
            found.get("high"), row["p_holm"], by_image.get("low"), by_image.get("high"),
            row["images_p_holm"], row.get("paper"), judged if is_number(row.get("paper")) else None,
            " ".join(row["jobs"]), row["reason"],
        )  # fmt: skip
        flat.append(dict(zip(COLUMNS, values, strict=True)))
    return flat


def write_csv(path: Path, rows: Sequence[Row], judged: str = "test") -> None:
    """Writes rows of `with_tests` as CSV; for `judged` see `plain_rows`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in plain_rows(rows, judged):
        writer.writerow(["" if row[key] is None else row[key] for key in COLUMNS])
    path.write_text(text.getvalue(), encoding="utf-8")


def write_latex(path: Path, rows: Sequence[Row], starts: Sequence[str]) -> None:
    """Writes a booktabs table, bold where a start beats random (corrected for all comparisons)."""
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["task"], row["model"], f"{100 * row['fraction']:g}%")
        lines.setdefault(key, {})[row["start"]] = row
    names = [escaped(look(start).name) for start in starts]
    text = [
        r"\begin{tabular}{lll" + "r" * len(starts) + "}",
        r"\toprule",
        " & ".join(["task", "network", "labels", *names]) + r" \\",
        r"\midrule",
    ]
    for key, cells in lines.items():
        figures = [_latex_cell(cells.get(start)) for start in starts]
        text.append(" & ".join([*map(escaped, key), *figures]) + r" \\")
    text += [r"\bottomrule", r"\end{tabular}", ""]
    path.write_text("\n".join(text), encoding="utf-8")


def _latex_cell(row: Row | None) -> str:
    if row is None:
        return "--"
    figure = latex_figure(row["best"]["mean"], row["best"]["sd"])
    return rf"\textbf{{{figure}}}" if beats_random(row) else figure


def latex_figure(mean: Any, sd: Any) -> str:
    """Returns mean and deviation for LaTeX; "--" without a mean, the mean alone without an sd."""
    if not is_number(mean):
        return "--"
    return f"{mean:.4f}" + (rf" $\pm$ {sd:.4f}" if is_number(sd) else "")


def escaped(text: str) -> str:
    """Returns text that LaTeX prints as it is."""
    return text.translate(_LATEX)
