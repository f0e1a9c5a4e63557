"""The page of the study of pretexts: what was chosen, and what the confirmation found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.report.diagnostics import probe_curves, rank_table
from medinit_jax.report.document import document, write_page
from medinit_jax.report.markup import Html, element, fixed, signed
from medinit_jax.report.sections import section
from medinit_jax.report.tables import facts, flat, table

TITLE = "Pretexts: which one carries over"


def write_pretext_report(workdir: str | Path) -> Path:
    """Writes `report.html` from the `summary.json` of the study.

    Args:
        workdir: The study's folder.

    Returns:
        The page: one file that loads nothing.

    Raises:
        UsageError: `summary.json` is missing or damaged.
    """
    folder = Path(workdir)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder / 'summary.json'} cannot be read ({error}); run the study first."
        ) from error
    return write_page(folder, render(summary))


def render(summary: Mapping[str, Any]) -> Html:
    """Returns the page of a summary."""
    found = summary["confirmation"]
    return document(
        TITLE,
        element(
            "header",
            element("h1", TITLE),
            [element("p", _sentence(name, part), class_="lead") for name, part in found.items()],
            [element("p", note) for note in summary["notes"]],
        ),
        section("What was compared", _choice(summary)),
        [
            section(
                f"Confirmation: {name}",
                *_gains(part),
                *_networks(part),
                *rank_table(part["diagnostics"]),
            )
            for name, part in found.items()
        ],
        _curves(summary.get("probe_curves", [])),
        section("Where this is from", facts(flat(summary["provenance"]))),
        element("footer", "Written by medinit_jax from summary.json."),
    )


def _sentence(modality: str, part: Mapping[str, Any]) -> str:
    name, what, units = ("probe", "frozen features", "networks")
    if "dice" in part:
        name, what, units = ("dice", "Dice after fine-tuning", "fine-tunings")
    gains = part.get(f"{name}_gain_over_matched", {})
    wins = part.get(f"{name}_wins_over_matched", {})
    by_share = "; ".join(
        f"{float(share):.0%} of the labels {signed(gain)} ({wins[share]} of "
        f"{len(part['networks'])} {units} won)"
        for share, gain in gains.items()
    )
    return (
        f"{modality}, {part['pretext']} with the recipe {part['recipe']}: gain of {what} "
        f"over the permuted control, {part['hypernetwork_seeds']} hypernetworks: {by_share}."
    )


def _choice(summary: Mapping[str, Any]) -> Html:
    chosen = [tuple(pair.values()) for pair in summary["chosen"].values()]
    rows = [
        [
            row["modality"], row["pretext"], row["recipe"],
            signed(row["score"]) if row["score"] is not None else "not judged",
            "chosen" if (row["modality"], row["pretext"], row["recipe"]) in chosen else "",
        ]
        for row in summary["scores"]
    ]  # fmt: skip
    shares = ", ".join(f"{share:.0%}" for share in summary["rule"]["fractions"])
    return table(
        "Validation images: the smaller of the gains over random and over matched. Probes: on "
        f"validation networks, mean over {shares} of the labels; segmentation: in Dice, mean over "
        "its own shares",
        ["Modality", "Pretext", "Recipe", "Score", ""],
        rows,
        texts=3,
    )


def _gains(part: Mapping[str, Any]) -> list[Html]:
    over = "mean over networks and hypernetworks; 95 % interval over networks"
    if "margin" in part:
        over += f"; a network is won by {fixed(part['margin'], 2)} at least"
    of_vessels = "mean over hypernetworks; 95 % interval (Student) over runs"
    found = [
        (part[name], f"{title}: AUC of the hyper-initializer minus that of another start, {over}")
        for name, title in (
            ("probe", "Frozen features"),
            ("finetune", "Fine-tuning, early"),
            ("finetune_last", "Fine-tuning, last epoch"),
        )
        if name in part
    ]
    if "dice" in part:
        caption = f"test Dice of the hyper-initializer minus that of another start, {of_vessels}"
        found.append((part["dice"], f"All tasks: {caption}"))
        found += [(own, f"{task}: {caption}") for task, own in part["dice_by_task"].items()]
    tables = [_gain_table(parts, caption) for parts, caption in found]
    return [
        *(one for one in tables if one is not None),
        *_images_table(part.get("dice_on_images", [])),
    ]


def _gain_table(parts: Mapping[str, Any], caption: str) -> Html | None:
    rows = [
        [
            other, f"{float(share):.0%}", signed(gain),
            " to ".join(fixed(end) for end in by_share["interval"][share]),
            f"{by_share['wins'][share]} of {by_share['networks'][share]}",
        ]
        for other, by_share in parts.items()
        for share, gain in by_share["gain"].items()
    ]  # fmt: skip
    heads = ["Other start", "Labels", "Gain", "Interval", "Won"]
    return table(caption, heads, rows, texts=2) if rows else None


def _networks(part: Mapping[str, Any]) -> list[Html]:
    """Gains of every single network, and its family."""
    shown = ("random", "matched")
    held = part.get("probe", {})
    shares = [(other, share) for other in shown if other in held for share in held[other]["gain"]]
    families = part.get("families", {})
    rows = [
        [
            name, families.get(name, ""),
            *(signed(held[other]["by_network"][share].get(name)) for other, share in shares),
        ]
        for name in part["networks"]
    ]  # fmt: skip
    heads = [f"Over {other}, {float(share):.0%}" for other, share in shares]
    caption = "Frozen features of each network: gain in AUC, mean over hypernetworks"
    return [table(caption, ["Network", "Family", *heads], rows, texts=2)] if shares else []


def _curves(curves: Sequence[Mapping[str, Any]]) -> Html | None:
    """Transfer probes over training by modality."""
    tables = []
    for modality in dict.fromkeys(one["modality"] for one in curves):
        own = [
            (f"{one['pretext']} s{one['seed']}", one["steps"], one["auc"])
            for one in curves
            if one["modality"] == modality
        ]
        tables += [element("h3", modality), *probe_curves(own)]
    return section("Transfer probe over training", *tables) if tables else None


def _images_table(found: Sequence[Mapping[str, Any]]) -> list[Html]:
    rows = [
        [
            one["task"], one["model"], one["other"], f"{one['fraction']:.0%}", signed(one["mean"]),
            f"{fixed(one['low'])} to {fixed(one['high'])}", one["images"],
        ]
        for one in found
    ]  # fmt: skip
    if not rows:
        return []
    caption = (
        "The same on test images: mean over hypernetworks and seeds, 95 % interval over the images "
        "with the networks as they are"
    )
    heads = ["Task", "Network", "Other start", "Labels", "Gain", "Interval", "Images"]
    return [table(caption, heads, rows, texts=4)]
