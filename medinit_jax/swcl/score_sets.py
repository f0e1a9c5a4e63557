"""The photographs that are scored: sets by name, whose eyes they show, and what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.draw import draw_missing
from medinit_jax.data.prepared import PreparedSource, manifest_of
from medinit_jax.data.tasks import make_builder
from medinit_jax.swcl.batches import Joined
from medinit_jax.swcl.patch_geometry import EYES
from medinit_jax.swcl.patch_plan import Eye
from medinit_jax.swcl.score_model import CLASSES
from medinit_jax.swcl.sources import plain_name, source_name

ROLES = ("labelled", "unlabelled")
_LABEL = "abnormal"
# OIA-ODIR's patients are numbers; its builder sets this in front of them.
_PREFIX = "odir_"
_LISTED = 5


class Photographs(NamedTuple):
    """All photographs of the sets that were named.

    Attributes:
        eyes: Of whom eye and patient are known; numbers are those of `images`.
        left_out: A line for every other photograph, and for those that a later split repeats.
        images: All of them by number.
        sets: Name, role, source, count and sha256 of every set and split.
    """

    eyes: list[Eye]
    left_out: list[str]
    images: Joined
    sets: list[dict[str, Any]]


def open_sets(config: ml_collections.ConfigDict, console: Console) -> Photographs:
    """Opens the labelled and the unlabelled sets; phantoms that are missing are drawn.

    Args:
        config: `labelled` and `unlabelled`, names of sets, each with ":SPLIT" behind it for one
            split, separated by commas; `data_dir`; `image_size`.
        console: Where drawing is shown.

    Raises:
        UsageError: No set is named, one is not there, has no label or no pair of eyes, or sets
            share patients.
    """
    named = [(name, role) for role in ROLES for name in _names(config[role])]
    if not named:
        raise UsageError(
            "config.labelled and config.unlabelled are empty; name prepared sets, separated by "
            "commas."
        )
    eyes: list[Eye] = []
    left_out: list[str] = []
    images: list[PreparedSource] = []
    described: list[dict[str, Any]] = []
    owners: dict[tuple[str, str], str] = {}
    for name, role in named:
        builder = make_builder(name.partition(":")[0], config.data_dir)
        draw_missing(builder, name, console)
        opened = [
            PreparedSource(builder, split, config.image_size, "crop")
            for split in _splits(builder, name)
        ]
        found, without = _eyes(builder, opened, role, sum(map(len, images)))
        _refuse_without_pairs(found, name, role)
        _refuse_shared(found, f"{name} ({role})", owners)
        described += [
            {"name": name, "role": role, **source.describe(), "patches_of": source_name(builder)}
            for source in opened
        ]
        eyes, left_out, images = eyes + found, left_out + without, images + opened
    return Photographs(eyes, left_out, Joined(images), described)


def _names(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


def _splits(builder: Builder, name: str) -> list[str]:
    """Returns the split that a name asks for, else all that hold something."""
    split = name.partition(":")[2]
    return [split] if split else [s for s, n in manifest_of(builder)["splits"].items() if n]


def _eyes(
    builder: Builder, sources: Sequence[PreparedSource], role: str, first: int
) -> tuple[list[Eye], list[str]]:
    """Returns the eyes of a set whose photographs count from `first`, and lines on the others."""
    features, source = builder.info.features, source_name(builder)
    labelled = _LABEL in features and tuple(getattr(features[_LABEL], "names", ())) == CLASSES
    if role == "labelled" and not labelled:
        raise UsageError(
            f"{builder.name}/{builder.builder_config.name} has no feature {_LABEL} of the classes "
            f"{' and '.join(CLASSES)}, so it is no labelled set; name it under config.unlabelled."
        )
    columns = ["image_id", "patient_id", "eye", *([_LABEL] if labelled else [])]
    sides = features["eye"].names
    eyes, left_out = [], []
    originals: dict[str, str] = {}
    seen: set[str] = set()
    for held in sources:
        table = held.columns(columns)
        labels = table.get(_LABEL, [-1] * len(held))
        for place, original in enumerate(table["patient_id"]):
            eye, index, name = sides[table["eye"][place]], first + place, table["image_id"][place]
            if not original or eye not in EYES:
                left_out.append(f"{source} {name}: eye or patient unknown")
                continue
            if name in seen:
                # As in EyePACS, whose split `sample` repeats photographs of training.
                left_out.append(f"{source} {name}: in another split, too")
                continue
            seen.add(name)
            patient = plain_name(original.removeprefix(_PREFIX))
            if originals.setdefault(patient, original) != original:
                raise UsageError(
                    f"The patients {originals[patient]} and {original} of {source} would both be "
                    f"called {patient} in the names of patches; rename one of them."
                )
            eyes.append(Eye(source, patient, eye, index, labels[place], role == "labelled"))
        first += len(held)
    return eyes, left_out


def _refuse_without_pairs(eyes: Sequence[Eye], name: str, role: str) -> None:
    sides = {side: {one.patient for one in eyes if one.eye == side} for side in EYES}
    if not sides["left"] & sides["right"]:
        raise UsageError(
            f"{name} shows both eyes of no patient, as far as it names them, so it has no pairs of "
            f"patches; leave it out of config.{role}."
        )


def _refuse_shared(eyes: Sequence[Eye], name: str, owners: dict[tuple[str, str], str]) -> None:
    """Raises UsageError if patients were in an earlier set; otherwise notes whose they are."""
    whose = sorted({(one.source, one.patient) for one in eyes})
    shared = [one for one in whose if one in owners]
    if shared:
        told = ", ".join(f"{source} {patient}" for source, patient in shared[:_LISTED])
        more = ", ..." if len(shared) > _LISTED else ""
        raise UsageError(
            f"{len(shared)} patients of {name} are in {owners[shared[0]]}, too ({told}{more}); "
            f"name every patient's photographs once, as by NAME:SPLIT."
        )
    owners.update(dict.fromkeys(whose, name))
