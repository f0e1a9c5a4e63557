"""Phantom twins of the two RSNA sets: slices of head CTs, and chest radiographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders import rsna_cxr
from medinit_jax.data.builders.image_files import jpeg
from medinit_jax.data.builders.phantom_case import SEXES, Case, Draft, label_of, person_of
from medinit_jax.data.phantoms import ct, xray

_CT_QUALITY = 95


def ihd_features() -> dict[str, Any]:
    """Returns the features of RSNA-IHD."""
    return {
        "label": label_of("no_hemorrhage", "hemorrhage"),
        "labels": tfds.features.Tensor(shape=(len(ct.TYPES),), dtype=np.int64),
        "study_id": tfds.features.Text(),
    }


def draw_ihd(case: Case, size: int) -> dict[str, Any]:
    """Draws a slice of a head CT."""
    drawn = ct.render(case.seed, 0, size, slice_number=case.number)
    labels = drawn["labels"]
    return {
        "image": jpeg(drawn["image"], _CT_QUALITY),
        "label": labels["any"],
        "labels": np.array([labels[name] for name in ct.TYPES], np.int64),
        "study_id": case.patient,
    }


def cxr_features() -> dict[str, Any]:
    """Returns the features of RSNA-CXR."""
    return {
        "label": label_of("no_opacity", "opacity"),
        "class3": label_of(*rsna_cxr.CLASSES),
        "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
        "view": label_of(*rsna_cxr.VIEWS),
        "age": np.int32,
        "sex": label_of(*rsna_cxr.SEXES),
    }


def draw_cxr(case: Case, size: int) -> dict[str, Any]:
    """Draws a radiograph; as a row of the real table, it has one of its boxes."""
    drawn = xray.render(case.seed, 0, size)
    labels, person = drawn["labels"], person_of(case.seed)
    return {
        "image_id": case.patient,
        "image": jpeg(drawn["image"]),
        "label": labels["opacity"],
        "class3": labels["class3"],
        "boxes": [_box(box, size) for box in drawn["boxes"][case.number :][:1]],
        "view": labels["view"],
        "age": person["age"],
        "sex": rsna_cxr.SEXES[SEXES.index(person["sex"])],
    }


def _box(box: tuple[float, float, float, float], size: int) -> tfds.features.BBox:
    """Returns x, y, width, height in pixels as shares of the image."""
    x, y, width, height = box
    edges = (y, x, y + height, x + width)
    ymin, xmin, ymax, xmax = (min(1.0, max(0.0, edge / size)) for edge in edges)
    return tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)


def rows_of(cases: list[Case], seed: int) -> Draft:
    """Repeats a radiograph for each of its opacities, as the table of labels does."""
    del seed
    rows = []
    for case in cases:
        for number in range(max(1, xray.draw_finding(case.seed)[1])):
            rows.append(case._replace(name=f"{case.name}#{number}", number=number))
    return Draft(rows, [])
