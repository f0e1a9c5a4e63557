"""A contact sheet of a prepared set: images with their labels and the outlines of what is marked.

It shows at a glance whether masks lie where they should and labels mean what they say.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.decode import to_rgb
from medinit_jax.data.manifest import UNLABELLED, read_manifest

_SMALLEST, _LARGEST = 240, 600
_GAP, _LINE, _FONT = 8, 18, 14
_COLUMNS = 4
_BACKGROUND, _TEXT = (24, 24, 24), (235, 235, 235)
_FIELD_COLOR, _BOX_COLOR = (255, 220, 0), (255, 60, 60)
_COLORS = ((0, 255, 255), (255, 0, 255), (0, 255, 0), (255, 150, 0), (120, 160, 255))
# Color and meaning of each outline on the sheet.
Legend = dict[str, tuple[int, int, int]]


def save_contact_sheet(builder: Builder, split: str | None, count: int, out: Path) -> int:
    """Draws the first images of a split into a PNG file.

    Args:
        builder: The dataset and its config.
        split: Which split; None takes the first.
        count: Number of images.
        out: The file.

    Returns:
        The number of images on it.

    Raises:
        UsageError: The set is not prepared, or damaged, or there is no such split.
    """
    manifest = read_manifest(builder.data_path)
    if manifest is None:
        raise UsageError(
            f"{builder.data_path} is not prepared; `python -m medinit_jax.data info "
            f"{builder.name}/{builder.builder_config.name}` says how to."
        )
    splits = [name for name, number in manifest["splits"].items() if number]
    split = split or splits[0]
    if split not in splits:
        raise UsageError(f"There is no split {split!r}; use --split with {', '.join(splits)}.")
    if count < 1 or out.suffix.lower() != ".png":
        raise UsageError("Give --count at least 1, and --out a file that ends in .png.")
    try:
        source = builder.as_data_source(split)
        examples = [source[index] for index in range(min(count, len(source)))]
    except Exception as error:
        # What a missing or damaged shard raises depends on the damage: it can be anything.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{builder.data_path} cannot be read ({reason}); `python -m medinit_jax.data verify "
            f"{builder.name}/{builder.builder_config.name}` says what is damaged."
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(builder.info.features, examples).save(out)
    return len(examples)


def contact_sheet(features: Any, examples: list[dict[str, Any]]) -> Image.Image:
    """Draws examples side by side.

    Args:
        features: What describes them.
        examples: As a tfds data source gives them.

    Returns:
        The sheet: outlines of masks, boxes and the field of view over the images, labels below,
        and a legend.
    """
    legend: Legend = {}
    largest = max(max(example["image"].shape[:2]) for example in examples)
    side = min(max(largest, _SMALLEST), _LARGEST)
    tiles = [_tile(features, example, side, legend) for example in examples]
    texts = [_caption(features, example, side) for example in examples]
    columns = min(_COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height = side + _LINE * max(len(text) for text in texts) + _GAP
    sheet = Image.new(
        "RGB",
        (columns * (side + _GAP) + _GAP, rows * height + _GAP + (_LINE + _GAP) * bool(legend)),
        _BACKGROUND,
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for number, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        x = _GAP + number % columns * (side + _GAP)
        y = _GAP + number // columns * height
        sheet.paste(Image.fromarray(tile), (x, y))
        for line, words in enumerate(text):
            pen.text((x, y + side + line * _LINE), words, _TEXT, font)
    x, y = _GAP, sheet.height - _LINE - _GAP // 2
    for words, color in legend.items():
        pen.rectangle((x, y + 2, x + 12, y + 14), color)
        pen.text((x + 18, y), words, _TEXT, font)
        x += 18 + round(font.getlength(words)) + 3 * _GAP
    return sheet


def _tile(features: Any, example: dict[str, Any], side: int, legend: Legend) -> np.ndarray:
    image = to_rgb(example["image"])
    height, width = image.shape[:2]
    scale = side / max(height, width)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    drawn = cv2.resize(image, new, interpolation=method) if new != (width, height) else image.copy()
    for name, feature, masks in _masks(features, example):
        for mask in masks:
            for words, marked in _marked(name, feature, mask[..., 0]):
                color = legend.setdefault(words, _COLORS[len(legend) % len(_COLORS)])
                _outline(drawn, marked, scale, color)
    if "fov" in features and example["fov"].ndim == 3:
        legend.setdefault("fov", _FIELD_COLOR)
        _outline(drawn, example["fov"][..., 0] > 0, scale, _FIELD_COLOR)
    for name, boxes in _boxes(features, example):
        legend.setdefault(name, _BOX_COLOR)
        for top, left, bottom, right in boxes.tolist():
            corners = [(left * new[0], top * new[1]), (right * new[0] - 1, bottom * new[1] - 1)]
            (x0, y0), (x1, y1) = [(round(x), round(y)) for x, y in corners]
            cv2.rectangle(drawn, (x0, y0), (x1, y1), _BOX_COLOR, 2)
    tile = np.zeros((side, side, 3), np.uint8)
    tile[: drawn.shape[0], : drawn.shape[1]] = drawn
    return tile


def _masks(features: Any, example: dict[str, Any]) -> list[tuple[str, Any, list[np.ndarray]]]:
    """Returns name, feature and arrays of all masks; those in a list, as of observers, too."""
    found = []
    for name, feature in features.items():
        # Masks of a table may hold any levels; a field of view is drawn in its own color.
        of_levels = isinstance(feature, tfds.features.Image) and feature.shape[-1] == 1
        if isinstance(feature, tfds.features.LabeledImage) or (of_levels and name != "fov"):
            found.append((name, feature, [example[name]]))
        elif isinstance(getattr(feature, "feature", None), tfds.features.LabeledImage):
            found.append((name, feature.feature, list(example[name])))
    return found


def _marked(name: str, feature: Any, mask: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns what a mask marks, each with its words; where there are many levels, all as one."""
    if isinstance(feature, tfds.features.LabeledImage):
        labels = getattr(feature, "names", None) or [str(i) for i in range(feature.num_classes)]
        return [(f"{name}: {labels[i]}", mask == i) for i in range(1, len(labels))]
    levels = np.unique(mask[mask > 0])
    if len(levels) > len(_COLORS):
        return [(f"{name}: above 0", mask > 0)]
    return [(f"{name}: level {level}", mask == level) for level in levels]


def _boxes(features: Any, example: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    found = []
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, tfds.features.BBoxFeature):
            found.append((name, np.asarray(example[name], np.float64).reshape(-1, 4)))
    return found


def _outline(image: np.ndarray, mask: np.ndarray, scale: float, color: tuple[int, ...]) -> None:
    """Draws the border of a mask of another resolution onto an image."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Pixel centers are at halves; four more bits than whole pixels.
    scaled = [np.rint(((one + 0.5) * scale - 0.5) * 16).astype(np.int32) for one in contours]
    cv2.polylines(image, scaled, True, color, 1, cv2.LINE_AA, 4)


def _caption(features: Any, example: dict[str, Any], side: int) -> list[str]:
    """Returns the image's name, and its labels in lines that fit."""
    parts = []
    for name, feature in features.items():
        value = example[name]
        if isinstance(feature, tfds.features.ClassLabel):
            text = UNLABELLED if int(value) < 0 else feature.int2str(int(value))
            if not (name == "eye" and text == "unknown"):
                parts.append(f"{name} {text}")
        elif name != "orig_size" and feature.shape == () and np.issubdtype(type(value), np.number):
            parts.append(f"{name} {value:g}")
        elif "labels" in name and len(feature.shape) == 1:
            parts.append(f"{name} {' '.join(str(int(one)) for one in value)}")
    words = max(12, side // 8)
    return [
        example["image_id"].decode()[:words],
        *textwrap.wrap(", ".join(parts), words)[:4],
    ]
