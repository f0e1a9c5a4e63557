"""Drawn medical images with known labels and masks: no download, no patient."""

from collections.abc import Callable
from typing import NamedTuple

from medinit_jax.data.phantoms import ct, fundus, xray
from medinit_jax.data.phantoms.fundus_patient import LEFT, RIGHT


class Phantom(NamedTuple):
    """A kind of drawn image.

    Attributes:
        render: Called as `render(seed, eye, size)`; returns a dict with `image`, `labels`,
            `masks`, `eye` and `patient`.
        eyes: The images of one patient: +1 right, -1 left, 0 for what has no eye.
        label: The entry of `labels` that a binary task learns by default.
        masks: Names of the masks.
        version: Goes up whenever the same seed gives another picture.
    """

    render: Callable[..., dict]
    eyes: tuple[int, ...]
    label: str
    masks: tuple[str, ...]
    version: int


PHANTOMS = {
    "ct": Phantom(ct.render, (0,), "any", ct.TYPES, version=1),
    "fundus": Phantom(
        fundus.render,
        (RIGHT, LEFT),
        "any_dr",
        ("vessels", "disc_cup", "lesions", "fov"),
        version=1,
    ),
    "xray": Phantom(xray.render, (xray.UNKNOWN_EYE,), "opacity", ("lungs",), version=2),
}
