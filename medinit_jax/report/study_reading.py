"""What a study shows, in sentences that go no further than its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medinit_jax.report.looks import look
from medinit_jax.report.markup import fixed
from medinit_jax.report.study_kinds import KINDS, MANY
from medinit_jax.report.study_tables import LEVEL, Row, beats_random

# Starts that nothing was trained for in the study.
_READY = ("random", "imagenet", "bit_s", "bit_m")


def headline(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """Returns in one sentence what the study shows of the start under test, and no more."""
    kind = KINDS[summary["study"]]
    tested = [row for row in rows if row["start"] == kind.main and row["p"] is not None]
    if len(summary["seeds"]) < 2:
        return "One seed: nothing can be claimed beyond these networks on these test images."
    if not tested:
        return f"{kind.subject} could not be tested against random initialization."
    won = sum(beats_random(row) for row in tested)
    lost = sum(row["p_holm"] < LEVEL and row["difference"]["best"]["mean"] < 0 for row in tested)
    if not won and not lost:
        return (
            f"{kind.subject} shows no significant difference from random initialization in "
            f"{len(tested)} comparison{'s' if len(tested) > 1 else ''}."
        )
    return (
        f"{kind.subject} beats random initialization in {won} of {len(tested)} comparisons and "
        f"falls behind in {lost}."
    )


def reading(rows: Sequence[Row], summary: Mapping[str, Any]) -> list[str]:
    """Returns what is significant, what is not, and what limits it."""
    kind = KINDS[summary["study"]]
    starts = list(summary["starts"])
    if len(starts) >= MANY:
        # The others are in the figures, which say it shorter.
        starts = [start for start in starts if start == kind.main]
    found = [text for start in starts if (text := _of_start(rows, start))]
    by_image = [row for row in rows if row.get("on_images")]
    if by_image:
        sure = [row for row in by_image if row["images_p_holm"] < LEVEL]
        ahead = sum(row["on_images"]["mean"] > 0 for row in sure)
        found.append(
            "Over test images, with the networks as they came out: in "
            f"{len(sure)} of {len(by_image)} comparisons the difference to random is larger than "
            f"the draw of images explains, in {ahead} of them upward. Other seeds may differ."
        )
    if kind.judged == "validation":
        found.append(
            "The paper’s figures of this table are of validation images, by which the best epoch "
            "was chosen, too; beside ours of validation stand those of test images, on which "
            "all comparisons here are made."
        )
    if any(row["start"] not in _READY and row["jobs"] for row in rows):
        found.append(
            f"What a start was trained on beforehand ({kind.beforehand}) was trained once, with "
            "the first seed; the spread over seeds is that of fine-tuning."
        )
    return [*found, *_limits(rows, summary)]


def _of_start(rows: Sequence[Row], start: str) -> str:
    tested = [row for row in rows if row["start"] == start and row["difference"]]
    if start == "random" or not tested:
        return ""
    differences = [row["difference"]["best"]["mean"] for row in tested]
    won = [row for row in tested if beats_random(row)]
    plain = [row for row in tested if row["p"] is not None and row["p"] < LEVEL]
    name = look(start).name
    return (
        f"{name[0].upper()}{name[1:]}: better than random in "
        f"{sum(d > 0 for d in differences)} of {len(tested)} comparisons, by "
        f"{fixed(float(np.mean(differences)), 4)} on average; significant alone in "
        f"{len(plain)}, after correction in {len(won)}."
    )


def _limits(rows: Sequence[Row], summary: Mapping[str, Any]) -> list[str]:
    found = []
    missing = sum(bool(row["reason"]) for row in rows)
    if missing:
        found.append(f"{missing} of {len(rows)} cells are incomplete; each says why.")
    seeds = len(summary["seeds"])
    if seeds < 5:
        found.append(
            f"{seeds} seed(s) show large differences only: an interval over two seeds is 12.7 "
            "standard errors wide on either side, over three 4.3."
        )
    if summary["phantom"]:
        found.append(
            "All images are drawn by a program. They show that the method runs and what it does on "
            "drawings, not what it does on patients."
        )
    if summary["size"] == "mini":
        found.append(
            "The size mini is made to run through in minutes; its figures are near chance and say "
            "nothing about the method."
        )
    return found
