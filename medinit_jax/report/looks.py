"""What a start is called on a page and which mark it has; its color is `.s-<start>` of `style`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from medinit_jax.report.markup import Html, element
from medinit_jax.report.plot import marker, rule


class Look(NamedTuple):
    """How a start appears.

    Attributes:
        name: In legends and tables.
        short: Beside lines, where there is little room.
        shape: Of its mark, see `plot.marker`.
    """

    name: str
    short: str
    shape: str


LOOKS: dict[str, Look] = {
    "hyper": Look("hyper-initializer", "hyper", "circle"),
    "random": Look("random (He)", "random", "square"),
    "matched": Look("matched statistics", "matched", "diamond"),
    "untrained": Look("untrained hypernetwork", "untrained", "triangle"),
    "rotnet": Look("pretrained alone on rotation", "rotation", "diamond"),
    "imagenet": Look("ImageNet weights", "ImageNet", "square"),
    "probe": Look("hyper-initializer, frozen", "frozen", "triangle"),
    "simclr": Look("SimCLR", "SimCLR", "diamond"),
    "byol": Look("BYOL", "BYOL", "triangle"),
    "dino": Look("DINO", "DINO", "diamond"),
    "dino_official": Look("DINO, official settings", "DINO official", "square"),
    "odir": Look("supervised on OIA-ODIR", "OIA-ODIR", "circle"),
    "eyepacs": Look("supervised on EyePACS", "EyePACS", "circle"),
    "bit_s": Look("BiT-S", "BiT-S", "square"),
    "bit_m": Look("BiT-M", "BiT-M", "diamond"),
    "multitask": Look("CE-multitask", "multitask", "triangle"),
    "swcl_image": Look("SWCL-image", "SWCL-image", "square"),
    "swcl": Look("SWCL", "SWCL", "circle"),
    "swcl_t03": Look("SWCL, threshold 0.3", "t = 0.3", "triangle"),
    "swcl_t05": Look("SWCL, threshold 0.5", "t = 0.5", "diamond"),
    "swcl_no_position": Look("SWCL without position", "no position", "triangle"),
    "swcl_no_abnormality": Look("SWCL without abnormality", "no abnormality", "diamond"),
    "swcl_no_patient": Look("SWCL without patient", "no patient", "square"),
    "swcl_only_patient": Look("SWCL, patient alone", "patient alone", "square"),
    "swcl_only_abnormality": Look("SWCL, abnormality alone", "abnormality alone", "diamond"),
    "swcl_only_position": Look("SWCL, position alone", "position alone", "triangle"),
}


def look(start: str) -> Look:
    """Returns how a start appears; one without an entry goes by its own name."""
    return LOOKS.get(start) or Look(start, start, "circle")


def legend(starts: Sequence[str]) -> Html:
    """A line of swatches with the full names of the starts."""
    items = []
    for start in starts:
        swatch = element(
            "svg",
            rule(0, 7, 30, 7, f"line s-{start}"),
            marker(look(start).shape, 15, 7, 4, f"mark s-{start}"),
            viewBox="0 0 30 14",
            class_="swatch",
            aria_hidden="true",
        )
        items.append(element("li", swatch, look(start).name))
    return element("ul", items, class_="legend")
