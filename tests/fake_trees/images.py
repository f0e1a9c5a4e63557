"""What all fake trees are drawn with: small phantoms, saved in the formats of the real files."""

import functools
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medinit_jax.data.phantoms import fundus

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def photograph(name: str, width: int, height: int, eye: int = 1) -> dict[str, np.ndarray]:
    """Draws a fundus phantom of its own for every name: image and masks of height x width."""
    drawn = _drawn(name, eye)
    rows = np.arange(height) * 64 // height
    columns = np.arange(width) * 64 // width
    planes = {"image": drawn["image"], **drawn["masks"]}
    return {key: plane[rows[:, None], columns] for key, plane in planes.items()}


@functools.cache
def _drawn(name: str, eye: int) -> dict[str, Any]:
    return fundus.render(zlib.crc32(name.encode()), eye, 64)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> None:
    """Saves an array, converted to a mode of Pillow's; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)


def cut_short(path: Path, share: float = 0.4) -> None:
    """Keeps the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def as_jpeg(path: Path) -> None:
    """Replaces a file's content with a JPEG of the same picture, under the same name."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("L").save(buffer, "JPEG", quality=30)
    path.write_bytes(buffer.getvalue())
