"""The page of a run that pretrained an encoder: its curves, its settings, what it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medinit_jax.report import sections
from medinit_jax.report.document import document, write_page
from medinit_jax.report.looks import look
from medinit_jax.report.markup import DASH, Html, count, duration, element, fixed
from medinit_jax.report.pretrain_figures import SCALARS, scalar_panels
from medinit_jax.report.sections import section
from medinit_jax.report.tables import facts, flat, table
from medinit_jax.report.workdir import Record, images_of, part, read_workdir

_CONTRAST = ("temperature", "match", "reduction")
# What of `config.loss` a method depends on.
_LOSS = {
    "swcl": ("scheme", "threshold", *_CONTRAST),
    "swcl_image": ("scheme", *_CONTRAST),
    "simclr": _CONTRAST,
    "byol": ("head_norm",),
    "dino": ("prototypes", "official"),
    "multitask": ("threshold", "position_weight"),
}
# Methods that see pairs of patches; the others see whole images.
_PAIRED = ("swcl", "swcl_image", "multitask")
# Methods with an averaged network.
_AVERAGED = ("byol", "dino")
_DATA = ("views", "size", "normalization")
_TRAIN = ("batch", "epochs", "bn_group", "dtype")
_OPTIM = ("name", "learning_rate", "weight_decay", "schedule", "warmup_epochs", "clip")


def write_pretrain_report(workdir: str | Path) -> Path:
    """Writes `report.html` from what a pretraining left in its workdir.

    Args:
        workdir: A folder with `summary.json` and, as far as present, `metrics.jsonl` and
            `config.json`.

    Returns:
        The path of the page: one file that loads nothing.

    Raises:
        UsageError: `summary.json` is missing or unreadable.
    """
    return write_page(Path(workdir), render(read_workdir(workdir)))


def render(record: Record) -> Html:
    """The whole page.

    Args:
        record: Of `read_workdir`.

    Returns:
        An HTML document.
    """
    return document(
        f"{record.name}: pretraining",
        _opening(record),
        section("Curves", scalar_panels(record.metrics)),
        _settings(record),
        _images(record.summary),
        sections.provenance(record),
        element("footer", "Written by medinit_jax from summary.json in the same folder."),
    )


def _opening(record: Record) -> Html:
    summary = record.summary
    origin, last = part(summary, "provenance", dict), part(summary, "last", dict)
    config = part(record.config, "config", dict)
    kicker = " · ".join(str(v) for v in ("medinit_jax", record.name, origin.get("date")) if v)
    method = look(str(summary.get("method"))).name
    notes = [note for note in part(summary, "notes", list) if isinstance(note, str)]
    own = part(config, "note", str)
    start = look(str(part(summary, "start", dict).get("name"))).name
    skipped = summary.get("skipped_steps")
    return element(
        "header",
        element("p", kicker, class_="kicker"),
        element("h1", f"{method}: a pretrained {summary.get('model')}"),
        [element("p", note, class_="alarm", role="alert") for note in notes if note != own],
        element(
            "p",
            f"Start: {start}. {count(summary.get('steps'))} steps, {summary.get('epochs')} epochs, "
            f"over {count(summary.get('images'))} images"
            + (f"; {count(skipped)} steps were skipped as not finite" if skipped else "")
            + ". The encoder is the folder model; what it is worth shows in fine-tuning only.",
            class_="lead",
        ),
        element("p", own) if own else None,
        element(
            "div",
            [element("div", element("b", value), element("span", name), class_="tile")
             for value, name in _tiles(summary, last) if value != DASH],
            class_="tiles",
        ),
    )  # fmt: skip


def _tiles(summary: dict[str, Any], last: dict[str, Any]) -> list[tuple[str, str]]:
    """The loss, two figures that tell of a collapse or of learning, and the time."""
    telling = ("spread", "collapse_distance", "teacher_entropy", "accuracy_abnormality",
               "accuracy_position")  # fmt: skip
    figures = [(fixed(last.get(name)), f"{SCALARS[name].title} at the end") for name in telling]
    return [
        (fixed(last.get("loss")), "loss at the end, mean of the last steps"),
        *[figure for figure in figures if figure[0] != DASH][:2],
        (duration(summary.get("seconds")), "of training"),
    ]


def _settings(record: Record) -> Html:
    config = part(record.config, "config", dict)
    method = str(record.summary.get("method"))
    data = ("patches", *_DATA) if method in _PAIRED else ("sets", "image_size", *_DATA)
    train = (*_TRAIN, "ema") if method in _AVERAGED else _TRAIN
    chosen = {
        name: {key: part(config, name, dict)[key] for key in keys if key in config.get(name, {})}
        for name, keys in (
            ("data", data), ("loss", _LOSS.get(method, ())), ("train", train), ("optim", _OPTIM)
        )
    }  # fmt: skip
    rows = [(name, value) for name, value in flat(chosen) if value not in ("", "{}")]
    parameters = [("parameters of the encoder", count(record.summary.get("parameters")))]
    return section("Settings", facts([*parameters, *rows], short=True) if rows else None)


def _images(summary: dict[str, Any]) -> Html:
    lines = [[source, count(number), sha256[:16]] for source, number, sha256 in images_of(summary)]
    caption = "Images, or pairs of patches, and the beginning of their SHA-256"
    heads = ("source", "number", "SHA-256")
    return section("Images", table(caption, heads, lines) if lines else None)
