"""What the phantom twin of every benchmark task holds: patients, cameras, features and labels.

A twin has the features, class names and splits of the real dataset's builder. A case is an image
that is not drawn yet; all its randomness follows from its seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders import phantom_scans
from medinit_jax.data.builders.divisions import stratified_folds
from medinit_jax.data.builders.image_files import jpeg, png
from medinit_jax.data.builders.messidor import FOLDS
from medinit_jax.data.builders.phantom_case import (
    SEXES,
    Case,
    Draft,
    Twin,
    label_of,
    person_of,
)
from medinit_jax.data.phantoms import fundus
from medinit_jax.data.phantoms.cameras import Camera, photographed
from medinit_jax.data.phantoms.fundus_patient import Patient, draw_patient
from medinit_jax.data.phantoms.odir import draw_odir, with_signs

GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative")
EDEMA_RISKS = ("none", "low", "high")
_DISEASE_STREAM = 21
# Labels do not depend on the size; folds need them before anything is drawn in earnest.
_SKETCH = 16

_ZEISS = Camera((45.0,), (0.84, 0.90), 0.0, 0.12, (0.05, 0.0, -0.04))
_CANON = Camera((45.0,), (0.96, 1.02), 0.35, -0.12, (-0.04, 0.02, 0.02))
# Three hospitals of Messidor.
_SITES = (
    Camera((45.0,), (0.92, 0.96), 0.0, 0.05, (0.03, 0.0, 0.0)),
    Camera((45.0,), (0.96, 1.00), 0.35, -0.10, (0.0, 0.02, 0.0)),
    Camera((45.0,), (1.00, 1.04), 0.35, 0.0, (-0.03, 0.0, 0.03)),
)


def _patient(case: Case) -> Patient:
    return photographed(draw_patient(case.seed), case.camera, case.seed)


def _chance(case: Case) -> np.random.Generator:
    return np.random.default_rng([case.seed, _DISEASE_STREAM])


# Graded photographs.


def _grade_features() -> dict[str, Any]:
    return {"label": label_of(*GRADES)}


def _eyepacs_features() -> dict[str, Any]:
    return {
        **_grade_features(),
        "abnormal": label_of("normal", "abnormal"),
        "referable": label_of("not_referable", "referable"),
    }


def _draw_grade(case: Case, size: int) -> dict[str, Any]:
    drawn = fundus.render(case.seed, case.eye, size, patient=_patient(case))
    return {"image": jpeg(drawn["image"]), "label": drawn["labels"]["grade"]}


def _draw_eyepacs(case: Case, size: int) -> dict[str, Any]:
    example = _draw_grade(case, size)
    grade = example["label"]
    return {**example, "abnormal": int(grade > 0), "referable": int(grade >= 2)}


def _draw_aptos(case: Case, size: int) -> dict[str, Any]:
    return {**_draw_grade(case, size), "fov_found": True}


def _idrid_features() -> dict[str, Any]:
    return {"dr": label_of(*GRADES), "dme": label_of(*EDEMA_RISKS)}


def _draw_idrid(case: Case, size: int) -> dict[str, Any]:
    drawn = fundus.render(case.seed, case.eye, size, patient=_patient(case))
    labels = drawn["labels"]
    return {"image": jpeg(drawn["image"]), "dr": labels["grade"], "dme": labels["dme"]}


def _messidor_features() -> dict[str, Any]:
    return {
        "dr": label_of(*(f"grade{grade}" for grade in range(4))),
        "referable": label_of("nonreferable", "referable"),
        "abnormal": label_of("normal", "abnormal"),
        "dme": label_of(*(f"risk{risk}" for risk in range(3))),
        "fold": tfds.features.Scalar(dtype=np.int64),
        "group": tfds.features.Text(),
        "source": tfds.features.Text(),
        "department": tfds.features.Text(),
        "fold_swcl": tfds.features.Scalar(dtype=np.int64),
    }


def _draw_messidor(case: Case, size: int) -> dict[str, Any]:
    drawn = fundus.render(case.seed, case.eye, size, patient=_patient(case))
    grade, dme = drawn["labels"]["messidor"], drawn["labels"]["dme"]
    return {
        "image": jpeg(drawn["image"]),
        "dr": grade,
        "referable": int(grade > 1),
        "abnormal": int(grade > 0),
        "dme": dme,
        "fold": case.fold,
        "group": case.name,
        "source": case.source,
        "department": f"department of {case.source}",
        "fold_swcl": case.fold_swcl,
    }


def _fold(cases: list[Case], seed: int) -> Draft:
    """Deals folds as the real set does, by referable and dme; the authors' by grade, in order."""
    sketches = [_draw_messidor(case, _SKETCH) for case in cases]
    strata = [(sketch["referable"], sketch["dme"]) for sketch in sketches]
    folds = stratified_folds(strata, FOLDS, seed).tolist()
    authors = stratified_folds([sketch["dr"] for sketch in sketches], FOLDS, None).tolist()
    dealt = zip(cases, folds, authors, strict=True)
    return Draft([case._replace(fold=fold, fold_swcl=swcl) for case, fold, swcl in dealt], [])


# Discs and vessels.


def _refuge_features() -> dict[str, Any]:
    return {
        "mask": tfds.features.LabeledImage(
            labels=["background", "disc", "cup"], shape=(None, None, 1)
        ),
        "label": label_of("normal", "glaucoma"),
        "fovea": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "vcdr": tfds.features.Scalar(np.float32),
        "source": tfds.features.Text(),
    }


def _draw_refuge(case: Case, size: int) -> dict[str, Any]:
    patient = dataclasses.replace(_patient(case), glaucoma=bool(_chance(case).random() < 0.15))
    drawn = fundus.render(case.seed, case.eye, size, patient=patient)
    mask = drawn["masks"]["disc_cup"]
    # In tiny images a small cup may cover no pixel.
    disc, cup = (int((mask >= part).any(axis=1).sum()) for part in (1, 2))
    return {
        "image": png(drawn["image"]),
        "mask": png(mask),
        "label": drawn["labels"]["glaucoma"],
        "fovea": np.array(drawn["fovea"], np.float32),
        "vcdr": np.float32(cup / disc),
        "source": case.source,
    }


def _vessel_features() -> dict[str, Any]:
    vessels = {"labels": ["background", "vessel"], "shape": (None, None, 1)}
    return {
        "mask": tfds.features.LabeledImage(**vessels),
        "mask2": tfds.features.Sequence(tfds.features.LabeledImage(**vessels)),
        "fov": tfds.features.Image(shape=(None, None, 1)),
        "fov_found": tfds.features.Scalar(np.uint8),
        "fov_source": label_of("file", "computed"),
    }


def _draw_vessels(case: Case, size: int, ill_share: float | None = None) -> dict[str, Any]:
    """Draws vessels; `ill_share` is the share of the patients with retinopathy, None: the usual."""
    patient = _patient(case)
    if ill_share is not None:
        rng = _chance(case)
        ill, grade = rng.random() < ill_share, int(rng.integers(1, 5))
        patient = dataclasses.replace(patient, grade=grade if ill else 0)
    drawn = fundus.render(case.seed, case.eye, size, patient=patient)
    return {
        "image": png(drawn["image"]),
        "mask": png(drawn["masks"]["vessels"]),
        "mask2": [],
        "fov": png(drawn["masks"]["fov"] * np.uint8(255)),
        "fov_found": np.uint8(1),
        "fov_source": "file",
    }


def _draw_stare(case: Case, size: int) -> dict[str, Any]:
    return _draw_vessels(case, size, 0.5)


def _draw_chase(case: Case, size: int) -> dict[str, Any]:
    return _draw_vessels(case, size, 0.0)


# Both eyes of ODIR.


def _odir_features() -> dict[str, Any]:
    return {
        "abnormal": label_of("normal", "abnormal"),
        "odd": tfds.features.Scalar(dtype=np.int64),
        "source": tfds.features.Text(),
        "labels8": tfds.features.Tensor(shape=(8,), dtype=np.int64),
        "eye_labels8": tfds.features.Tensor(shape=(8,), dtype=np.int64),
        "keywords": tfds.features.Text(),
        "age": tfds.features.Scalar(dtype=np.int64),
        "sex": label_of(*SEXES),
    }


def _draw_odir(case: Case, size: int) -> dict[str, Any]:
    patient = _patient(case)
    both = draw_odir(patient, case.seed)
    eye = both.eyes[case.eye]
    drawn = fundus.render(
        case.seed, case.eye, size, patient=with_signs(patient, eye), signs=eye.signs
    )
    return {
        "image": jpeg(drawn["image"]),
        "abnormal": 1 - eye.classes[0],
        "odd": 0,
        "source": case.source,
        "labels8": np.array(both.classes, np.int64),
        "eye_labels8": np.array(eye.classes, np.int64),
        "keywords": eye.keywords,
        **person_of(case.seed),
    }


def _usable_pairs(cases: list[Case], seed: int) -> Draft:
    """Leaves out both photographs of patients of whom one shows no fundus."""
    del seed
    usable = {case.seed: draw_odir(draw_patient(case.seed), case.seed).usable for case in cases}
    return Draft(
        [case for case in cases if usable[case.seed]],
        [
            f"{case.name}: of a pair with an anterior segment"
            for case in cases
            if not usable[case.seed]
        ],
    )


def _alike(splits: Mapping[str, int], **options: Any) -> dict[str, Any]:
    """Returns counts for a twin with one image per patient."""
    return {"images": splits, "patients": splits, **options}


def _pairs(splits: Mapping[str, int], **options: Any) -> dict[str, Any]:
    """Returns counts for a twin with both eyes of every patient."""
    return {"images": splits, "patients": {k: n // 2 for k, n in splits.items()}, **options}


def _everywhere(*cameras: Camera, splits=("train", "validation", "test")) -> dict[str, tuple]:
    return dict.fromkeys(splits, cameras)


_ANONYMOUS = {"known_patients": False, "known_eyes": False}
_REFUGE = _alike(
    {"train": 200, "validation": 200, "test": 200},
    features=_refuge_features,
    draw=_draw_refuge,
    cameras={"train": (_ZEISS,), "validation": (_CANON,), "test": (_CANON,)},
    sources={
        "train": ("refuge1_train",),
        "validation": ("refuge1_val",),
        "test": ("refuge1_test",),
    },
    **_ANONYMOUS,
)
_VESSELS = {"features": _vessel_features, **_ANONYMOUS}

# The order decides the seeds: new twins go to the end.
TWINS: dict[str, Twin] = {
    "eyepacs_dr": Twin(
        "medinit_eyepacs/paper",
        **_pairs({"train": 4000, "validation": 1000, "test": 2000}),
        features=_eyepacs_features,
        draw=_draw_eyepacs,
        cameras=_everywhere(Camera()),
    ),
    "aptos_dr": Twin(
        "medinit_aptos2019/paper",
        **_alike({"train": 800, "test": 200}, **_ANONYMOUS),
        features=lambda: {**_grade_features(), "fov_found": tfds.features.Scalar(dtype=np.bool_)},
        draw=_draw_aptos,
        cameras=_everywhere(Camera((35.0, 40.0), pigment=-0.25)),
    ),
    "refuge2_seg": Twin(
        "medinit_refuge2/paper",
        **{
            **_REFUGE,
            **_alike({"train": 400, "test": 200}),
            "cameras": {"train": (_ZEISS, _CANON), "test": (_CANON,)},
            "sources": {"train": ("refuge1_train", "refuge1_val"), "test": ("refuge1_test",)},
        },
    ),
    "drive_seg": Twin(
        "medinit_drive/default",
        **_alike({"train": 20, "test": 20}),
        **_VESSELS,
        draw=_draw_vessels,
        cameras=_everywhere(Camera((45.0,), (0.92, 0.96), 0.0)),
    ),
    "rsna_ihd": Twin(
        "medinit_rsna_ihd/paper10",
        images={"train": 3000, "test": 750},
        patients={"train": 320, "test": 80},
        features=phantom_scans.ihd_features,
        draw=phantom_scans.draw_ihd,
    ),
    "rsna_cxr": Twin(
        "medinit_rsna_cxr/paper_rows",
        **_alike({"train": 1200, "test": 300}),
        features=phantom_scans.cxr_features,
        draw=phantom_scans.draw_cxr,
        arrange=phantom_scans.rows_of,
    ),
    "messidor": Twin(
        "medinit_messidor/swcl",
        **_alike({"train": 600}, **_ANONYMOUS),
        features=_messidor_features,
        draw=_draw_messidor,
        cameras={"train": _SITES},
        arrange=_fold,
        sources={"train": ("site1", "site2", "site3")},
    ),
    "idrid": Twin(
        "medinit_idrid/grading",
        **_alike({"train": 330, "validation": 83, "test": 103}, **_ANONYMOUS),
        features=_idrid_features,
        draw=_draw_idrid,
        cameras=_everywhere(Camera((50.0,), (0.96, 1.04), 1.0, 0.15)),
    ),
    "refuge_cls": Twin("medinit_refuge/default", **_REFUGE),
    "stare_seg": Twin(
        "medinit_stare/ah",
        **_alike({"train": 10, "test": 10}),
        **_VESSELS,
        draw=_draw_stare,
        cameras=_everywhere(Camera((35.0,), (0.94, 1.0), 0.5, noise=1.8)),
    ),
    "chase_seg": Twin(
        "medinit_chase_db1/first",
        **_pairs({"train": 20, "test": 8}),
        features=_vessel_features,
        draw=_draw_chase,
        cameras=_everywhere(
            Camera((30.0,), (0.94, 0.98), 0.0, 0.2, (0.04, -0.02, -0.04), centering=(0.8, 1.0))
        ),
    ),
    "refuge_seg": Twin("medinit_refuge/default", **_REFUGE),
    "odir": Twin(
        "medinit_oia_odir/default",
        **_pairs({"train": 700, "validation": 100, "test": 200}),
        features=_odir_features,
        draw=_draw_odir,
        cameras=_everywhere(Camera()),
        arrange=_usable_pairs,
        sources={"train": ("training",), "validation": ("off-site",), "test": ("on-site",)},
    ),
}
