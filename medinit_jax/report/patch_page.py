"""The page of a run that scored photographs: how many patches, how abnormal, and their maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medinit_jax.report import sections
from medinit_jax.report.document import document, write_page
from medinit_jax.report.markup import DASH, Html, count, duration, element, fixed, percent
from medinit_jax.report.patches import patch_section
from medinit_jax.report.sections import section
from medinit_jax.report.tables import folded, table
from medinit_jax.report.workdir import Record, part, read_workdir


def write_patch_report(workdir: str | Path) -> Path:
    """Writes `report.html` from what a scoring left in its workdir.

    Args:
        workdir: A folder with `summary.json` and, as far as present, `patches.json`, the pictures
            that it names, and `config.json`.

    Returns:
        The path of the page: one file that loads nothing.

    Raises:
        UsageError: `summary.json` is missing or unreadable.
    """
    folder = Path(workdir)
    return write_page(folder, render(read_workdir(folder), folder))


def render(record: Record, folder: Path) -> Html:
    """The whole page.

    Args:
        record: Of `read_workdir`.
        folder: Where the figures of the patches lie.

    Returns:
        An HTML document.
    """
    return document(
        f"{record.name}: patches",
        _opening(record),
        patch_section(folder),
        _sources(record.summary),
        sections.provenance(record),
        element("footer", "Written by medinit_jax from summary.json in the same folder."),
    )


def _opening(record: Record) -> Html:
    summary = record.summary
    labeler, origin = part(summary, "labeler", dict), part(summary, "provenance", dict)
    left_out = part(summary, "unpaired", dict)
    kicker = " · ".join(str(v) for v in ("medinit_jax", record.name, origin.get("date")) if v)
    notes = [note for note in part(summary, "notes", list) if isinstance(note, str)]
    tiles = (
        (count(summary.get("patches")), f"patches of {count(summary.get('patients'))} patients"),
        (percent(_rounded(summary.get("share_abnormal"))),
         f"abnormal, with a score of {summary.get('threshold')} or more"),
        (fixed(summary.get("photographs_per_s"), 1), "photographs scored per second, devices busy "
         f"{percent(_rounded(summary.get('device_busy_share')))} of the time"),
        (duration(summary.get("seconds")), "in all"),
    )  # fmt: skip
    return element(
        "header",
        element("p", kicker, class_="kicker"),
        element("h1", f"Patches of {count(summary.get('patients'))} patients, scored"),
        element(
            "p",
            f"A labeler ({labeler.get('model')}, {labeler.get('task')}) scored both eyes of every "
            f"patient; {count(left_out.get('count'))} photographs without the other eye were left "
            f"out. The patches are in {summary.get('place')}.",
            class_="lead",
        ),
        [element("p", note) for note in notes],
        element(
            "div",
            [element("div", element("b", value), element("span", name), class_="tile")
             for value, name in tiles if value != DASH],
            class_="tiles",
        ),
    )  # fmt: skip


def _sources(summary: dict[str, Any]) -> Html:
    """What came from which set."""
    columns = ("patients", "patches", "abnormal", "photographs left out")
    lines = [
        [name, count(one.get("patients")), count(one.get("patches")),
         percent(_rounded(one.get("share_abnormal"))), count(one.get("unpaired"))]
        for name, one in part(summary, "by_source", dict).items()
    ]  # fmt: skip
    named = [
        [f"{one.get('name')}, {one.get('role')}", one.get("source"), count(one.get("count"))]
        for one in part(summary, "sets", list)
    ]
    unpaired = part(part(summary, "unpaired", dict), "photographs", list)
    return section(
        "Sets",
        table("By source", ("source", *columns), lines) if lines else None,
        table("Opened", ("set", "split", "photographs"), named, texts=2) if named else None,
        folded(
            f"{len(unpaired)} photographs left out",
            element("ul", [element("li", line) for line in unpaired], class_="prose"),
        )
        if unpaired
        else None,
    )


def _rounded(share: Any) -> Any:
    """A share to a tenth of a percent."""
    return round(share, 3) if isinstance(share, float) else share
