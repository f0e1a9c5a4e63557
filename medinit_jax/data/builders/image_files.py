"""How builders read the files of images and masks, and encode what they store."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from typing import Any, NoReturn

import cv2
import numpy as np
from etils import epath
from PIL import Image

from medinit_jax.data.decode import DecodeError, decode_with_size, opened
from medinit_jax.data.layout import DatasetLayoutError, pointer_kind

JPEG_QUALITY = 92
# What a .gz file may unpack to; the largest known image weighs 1.3 MB.
_MOST_UNPACKED = 64 * 2**20


class ImageFiles:
    """The part of a builder that opens files; what cannot be read is its DatasetLayoutError."""

    name: str
    builder_config: Any

    def read_file(self, path: epath.Path) -> bytes:
        """Returns a file's content, of a .gz file the unpacked.

        Raises:
            DatasetLayoutError: E_DECODE or E_LFS: it cannot be opened, or the .gz file is damaged
                or unpacks to too much.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            self.unreadable(path, b"", error.strerror or str(error))
        if not path.name.lower().endswith(".gz"):
            return content
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
                unpacked = stream.read(_MOST_UNPACKED + 1)
        except (OSError, EOFError, zlib.error) as error:
            self.unreadable(path, content, str(error))
        if len(unpacked) > _MOST_UNPACKED:
            self.unreadable(path, content, f"it unpacks to more than {_MOST_UNPACKED >> 20} MB")
        return unpacked

    def read_image(self, path: epath.Path) -> np.ndarray:
        """Returns uint8 (H, W, 3).

        Raises:
            DatasetLayoutError: E_DECODE or E_LFS.
        """
        return self.read_sized(path)[0]

    def read_sized(self, path: epath.Path, at_least: int = 0) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns uint8 (H, W, 3) and the height and width of the file.

        Args:
            path: The image.
            at_least: The shorter side that is needed; large JPEGs are decoded at a fraction of
                their size, in a third of the time. 0: the whole image.

        Raises:
            DatasetLayoutError: E_DECODE or E_LFS.
        """
        content = self.read_file(path)
        try:
            return decode_with_size(content, at_least)
        except DecodeError as error:
            self.unreadable(path, content, str(error))

    def read_gray(self, path: epath.Path) -> np.ndarray:
        """Returns uint8 (H, W): a mask's gray levels, whatever palette they are stored with.

        Raises:
            DatasetLayoutError: E_DECODE or E_LFS.
        """
        content = self.read_file(path)
        try:
            with opened(content) as image:
                return np.array(image.convert("L"))
        except DecodeError as error:
            self.unreadable(path, content, str(error))

    def read_mask(self, path: epath.Path, size: tuple[int, int], most: float = 0.001) -> np.ndarray:
        """Returns a mask of two classes, uint8 (H, W) of 0 and 1: gray above 127 is 1.

        Args:
            path: The mask.
            size: Height and width of its image.
            most: Share of the pixels that may be neither black nor white.

        Raises:
            DatasetLayoutError: E_MASK_VALUES, E_DECODE or E_LFS.
        """
        gray = self.read_gray(path)
        # Files of DRIVE's second observer hold 3 and 253.
        self.check_mask(path, gray, size, (0, 255), most, near=16)
        return (gray > 127).astype(np.uint8)

    def check_mask(
        self,
        path: epath.Path,
        gray: np.ndarray,
        size: tuple[int, int],
        levels: Sequence[int],
        most: float = 0.001,
        near: int = 0,
    ) -> None:
        """Raises E_MASK_VALUES unless a mask has its image's size and (nearly) these levels."""
        distance = np.min([np.abs(np.arange(256) - level) for level in levels], axis=0)
        strange = float((distance[gray] > near).mean())
        if gray.shape == tuple(size) and strange <= most:
            return
        values, counts = np.unique(gray, return_counts=True)
        common = np.argsort(-counts)[:5]
        self.fail(
            "E_MASK_VALUES",
            f"{path.name} has {strange:.2%} pixels of other gray levels and the size {gray.shape}",
            path,
            found=[f"level {values[i]}: {counts[i]} pixels" for i in common],
            expected=f"levels {', '.join(map(str, levels))} and the size {tuple(size)}",
            fix="The mask was saved as JPEG or resized; take the original file.",
        )

    def unreadable(self, path: epath.Path, content: bytes, reason: str) -> NoReturn:
        """Raises E_LFS or E_DECODE for a file with this content."""
        kind = pointer_kind(content[:200])
        self.fail(
            "E_LFS" if kind else "E_DECODE",
            f"{path.name} is {kind}" if kind else f"{path.name} cannot be read ({reason})",
            path,
            found=[f"{len(content)} bytes"],
            expected="an image",
            fix="Download the file again; --on-corrupt=skip leaves up to 0.1 % of the files out.",
        )

    def fail(self, code, what, path, found=(), expected="", fix="") -> NoReturn:
        """Raises a DatasetLayoutError of this dataset."""
        raise DatasetLayoutError(code, self.name, path, what, list(found), expected, fix)

    def stored_image(
        self, image: np.ndarray, path: epath.Path, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Returns `image` encoded at the size of the config, and `orig_size`: `size` or its own."""
        smaller = self.resized(image)
        config = self.builder_config
        lossless = not (config.shorter or config.square)
        return {
            "image": png(smaller) if lossless else jpeg(smaller),
            "orig_size": np.array(size or image.shape[:2], np.int32),
        }

    def resized(self, image: np.ndarray, nearest: bool = False) -> np.ndarray:
        """Returns an image, or with `nearest` a mask, at the size of the config."""
        height, width = image.shape[:2]
        config = self.builder_config
        if config.square:
            new = (config.square, config.square)
        elif config.shorter and min(height, width) > config.shorter:
            scale = config.shorter / min(height, width)
            new = (round(width * scale), round(height * scale))
        else:
            return image
        # Both sample at pixel centers: cv2.INTER_NEAREST would shift masks against their images.
        method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        return np.array(Image.fromarray(image).resize(new, method))


def png(array: np.ndarray, fast: bool = False) -> bytes:
    """Encodes uint8 (H, W), (H, W, 1) or RGB (H, W, 3) without loss.

    Args:
        array: The image.
        fast: Whether a third of the time counts for more than a tenth of the bytes (of gray in
            three channels, half of them).
    """
    return _encode(".png", array, [] if fast else [cv2.IMWRITE_PNG_COMPRESSION, 3])


def jpeg(array: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """Encodes uint8 RGB (H, W, 3)."""
    return _encode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(suffix: str, array: np.ndarray, options: list[int]) -> bytes:
    if array.ndim == 3 and array.shape[2] == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(suffix, array, options)
    if not done:
        raise AssertionError(f"cannot encode {array.dtype} {array.shape} as {suffix}")
    return encoded.tobytes()
