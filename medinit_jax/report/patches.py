"""The scores of patches and the maps that they come from, from the files a run left of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medinit_jax.report.markup import Html, count, element, fixed, is_number, percent
from medinit_jax.report.pictures import data_uri
from medinit_jax.report.plot import Frame, axes, canvas, curve, rule, text, ticks
from medinit_jax.report.sections import figure, section
from medinit_jax.report.workdir import part

_FILE = "patches.json"
_MOST = 8
_TITLE = "Patches and their scores"
_CLASSES = {"labelled normal": "t-quiet", "labelled abnormal": "t-val", "unlabelled": "t-train"}


def patch_section(workdir: str | Path) -> Html:
    """A section on patches; without its files it says that the part was not run.

    Args:
        workdir: the folder of a run, with `patches.json` and the images that it names.

    Returns:
        The section.
    """
    folder = Path(workdir)
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return section(_TITLE)
    histogram = part(content, "histogram", dict)
    groups = {name: g for name, g in part(histogram, "groups", dict).items() if name in _CLASSES}
    return section(
        _TITLE,
        legend(groups),
        figure(
            lambda width: histogram_figure(histogram, width),
            "Share of a group’s patches by score, the mean of the map over the patch. Patches of "
            "photographs labelled normal have the score 0 by their label. The dashed line is the "
            "threshold of abnormality.",
        ),
        panels(folder, part(content, "panels", list)),
    )


def legend(groups: dict[str, dict[str, Any]]) -> Html | None:
    """The groups with their color, number and share of abnormal patches."""
    items = []
    for name, group in groups.items():
        swatch = element(
            "svg",
            rule(0, 7, 30, 7, f"line {_CLASSES[name]}"),
            viewBox="0 0 30 14",
            class_="swatch",
            aria_hidden="true",
        )
        abnormal = group.get("abnormal")
        share = percent(round(abnormal, 3)) if is_number(abnormal) else percent(None)
        what = f"{name}: {count(group.get('patches'))}, {share} abnormal"
        items.append(element("li", swatch, what))
    return element("ul", items, class_="legend") if items else None


def histogram_figure(histogram: dict[str, Any], width: int) -> Html | None:
    """The histogram as steps, a line for every group.

    Args:
        histogram: `edges` of n bins, `groups` {name: {"counts": n numbers}} and `threshold`.
        width: of the drawing in pixels.

    Returns:
        The drawing, or None without a group.
    """
    edges = part(histogram, "edges", list)
    shares = {}
    for name, group in part(histogram, "groups", dict).items():
        counts = np.array(part(group, "counts", list), float)
        if name in _CLASSES and len(counts) + 1 == len(edges) and counts.sum() > 0:
            shares[name] = counts / counts.sum()
    if not shares:
        return None
    highest = max(float(share.max()) for share in shares.values())
    frame = Frame(48, 30, width - 12, 230, (float(edges[0]), float(edges[-1])), (0, highest * 1.05))
    parts: list[Any] = axes(
        frame, ticks(*frame.x), ticks(*frame.y, 4), "score of the patch", "share of patches"
    )
    for name, share in shares.items():
        xs = np.repeat(np.array(edges, float), 2)
        ys = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
        parts.append(curve(frame, xs.tolist(), ys.tolist(), f"line {_CLASSES[name]}"))
    threshold = histogram.get("threshold")
    if is_number(threshold):
        x = frame.at(threshold)
        parts.append(rule(x, frame.top, x, frame.bottom, "reference"))
        parts.append(text(x + 5, frame.top + 8, f"threshold {threshold:g}", class_="note"))
    return canvas(width, frame.bottom + 44, "Scores of patches", *parts)


def panels(folder: Path, entries: list[Any]) -> Html | None:
    """Photographs with their maps, each with the scores of its patches.

    Args:
        folder: the workdir.
        entries: {"file", "name", "label", "scores" {position: score}} of each.

    Returns:
        The pictures, or None if none can be read.
    """
    shown = []
    for entry in entries[:_MOST]:
        name = str(part(entry, "file", str))
        try:
            with Image.open(folder / name) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError):
            continue
        scores = part(entry, "scores", dict)
        told = ", ".join(f"{position} {fixed(score, 2)}" for position, score in scores.items())
        caption = f"{entry.get('name')}, {entry.get('label')}: {told}"
        height, width = pixels.shape[:2]
        picture = element("img", src=data_uri(pixels), alt=caption, width=width, height=height)
        shown.append(
            element("figure", picture, element("figcaption", caption), class_="panel photograph")
        )
    return element("div", shown, class_="panels") if shown else None
