"""What a builder is asked for, and what it makes examples of."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath

_SUFFIXES = re.compile(r"(_\d+px)?(_seed\d+)?$")


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """One way to prepare a dataset.

    Attributes:
        shorter: Shorter side of stored images in pixels, larger images are reduced to it; 0 keeps
            every image as it is.
        square: Side to which images are stretched, 0: none. Masks follow by nearest neighbor.
        split_seed: Seed of divisions that the dataset does not make itself.
        rule: Which images and labels it takes, where a builder knows several.
    """

    shorter: int = 0
    square: int = 0
    split_seed: int = 0
    rule: str = ""


class Item(NamedTuple):
    """What an example is made of.

    Attributes:
        key: "<split>/<stem>", unique within the dataset.
        files: {feature: file} of what must be decoded.
        values: {feature: value} of what need not.
    """

    key: str
    files: dict[str, epath.Path]
    values: dict[str, Any]


def plain_name(config: str) -> str:
    """Returns a config's name without the suffixes for another size and split seed."""
    return _SUFFIXES.sub("", config)
