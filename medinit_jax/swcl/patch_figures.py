"""What a report shows of patches: how their scores are spread, and maps with the patches' boxes.

All of it is files in the workdir, so that the report need not know how they came to be:
`patches.json`, and `panels/NN.png` for every map.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.data.builders.image_files import png
from medinit_jax.data.color import viridis
from medinit_jax.data.shards import write_text
from medinit_jax.swcl.patch_geometry import boxes, by_position
from medinit_jax.swcl.patch_pairs import THRESHOLD
from medinit_jax.swcl.patch_table import PairTable

FIGURES = "patches.json"
PANELS = "panels"
# By the label of the photograph.
GROUPS: dict[int, str] = {0: "labelled normal", 1: "labelled abnormal", -1: "unlabelled"}
_BINS = 20
_GAP = 4


class Panel(NamedTuple):
    """A photograph with its map.

    Attributes:
        name: What it is called, as "eyepacs_13_left".
        eye: "left" or "right".
        image: Uint8 (S, S, 3).
        map: Float (S, S) in [0, 1].
        scores: Float (5,), as `cam_scores.abnormality` gives them.
        label: 0 normal, 1 abnormal, -1 unknown.
    """

    name: str
    eye: str
    image: np.ndarray
    map: np.ndarray
    scores: np.ndarray
    label: int = -1


def score_histogram(table: PairTable, threshold: float = THRESHOLD) -> dict[str, Any]:
    """Counts patches by score and by what is known of their photograph.

    Args:
        table: All pairs.
        threshold: Of abnormality.

    Returns:
        `edges` of the bins, and under `groups` {name: `counts` per bin, `patches`, and `abnormal`,
        the share that reaches the threshold}; groups without patches are left out.

    Source: SWCL, Fig. 4. Photographs labelled normal have the score 0 by their label.
    """
    edges = np.linspace(0, 1, _BINS + 1)
    groups: dict[str, Any] = {}
    for label, name in GROUPS.items():
        scores = table.scores[table.labels == label]
        if scores.size:
            groups[name] = {
                "counts": np.histogram(scores, edges)[0].tolist(),
                "patches": int(scores.size),
                "abnormal": float((scores >= threshold).mean()),
            }
    return {"edges": edges.tolist(), "threshold": threshold, "groups": groups}


def draw_panel(panel: Panel, crop: int) -> np.ndarray:
    """Draws a photograph and, beside it, the same under its map, with the boxes of the patches.

    Args:
        panel: What is drawn.
        crop: Side of a patch in pixels.

    Returns:
        uint8 (S, 2 S + 4, 3). Colors are those of 0 to 1 in every panel, not of a map's own range,
        so that panels can be compared.

    Source: SWCL, Fig. 3.
    """
    side = len(panel.image)
    under = np.rint(0.5 * panel.image + 0.5 * viridis(panel.map)).astype(np.uint8)
    marked = [_outlined(image, crop) for image in (panel.image, under)]
    return np.concatenate([marked[0], np.full((side, _GAP, 3), 255, np.uint8), marked[1]], axis=1)


def _outlined(image: np.ndarray, crop: int) -> np.ndarray:
    """Returns an image with the borders of its patches in white."""
    inner = max(1, len(image) // 200)
    drawn = image.copy()
    for top, left in boxes(len(image), crop).values():
        border = np.ones((crop, crop), bool)
        border[inner : crop - inner, inner : crop - inner] = False
        drawn[top : top + crop, left : left + crop][border] = 255
    return drawn


def write_figures(
    workdir: Path,
    table: PairTable,
    panels: Sequence[Panel],
    crop: int,
    threshold: float = THRESHOLD,
) -> Path:
    """Writes what the report shows of patches.

    Args:
        workdir: The folder of a run.
        table: All pairs.
        panels: Some photographs with maps.
        crop: Side of a patch in pixels.
        threshold: Of abnormality.

    Returns:
        `patches.json`: the histogram, and file, name, label and scores by position of each panel.
    """
    (workdir / PANELS).mkdir(parents=True, exist_ok=True)
    shown = []
    for number, panel in enumerate(panels):
        file = f"{PANELS}/{number:02d}.png"
        (workdir / file).write_bytes(png(draw_panel(panel, crop)))
        shown.append(
            {
                "file": file,
                "name": panel.name,
                "label": GROUPS[panel.label],
                "scores": by_position(panel.scores, panel.eye),
            }
        )
    content = {"histogram": score_histogram(table, threshold), "panels": shown}
    write_text(workdir / FIGURES, json.dumps(content, indent=1))
    return workdir / FIGURES
