"""The arrays of an .npz file as a source."""

import zipfile
from pathlib import Path

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import Fit, fit_square, to_rgb
from medinit_jax.data.sources import ArraySource, array_checksum

# Larger numbers are no classes, but numbers of patients or images.
_MOST_CLASSES = 1_000_000


class NpzSource(ArraySource):
    """An image array of an .npz file.

    Attributes:
        path: The file.
        images_key: The array that was taken.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        images_key: str = "auto",
        labels_key: str | None = None,
        fit: Fit = "crop",
    ):
        """Reads the file.

        Args:
            path: File with an array uint8 (N, H, W) or (N, H, W, C), C of 1 or 3.
            size: Side of the images in pixels; None keeps square images as they are.
            images_key: Name of the images; "auto" takes `images`, `train_images` or the only
                array that can be images.
            labels_key: Name of the labels (N,) or (N, 1), whole numbers from 0, of which -1 and NaN
                are unlabelled; "auto" takes the name of the images with
                `labels` in place of `images` if there is such an array; None takes none.
                `eye` and `patient` arrays under such names are always taken.
            fit: How an image becomes square, see `decode.fit_square`.

        Raises:
            UsageError: The file or an array is missing, cannot be read, or has the wrong shape or
                dtype.
        """
        self.path = Path(path)
        arrays = _read_npz(self.path)
        self.images_key = _images_key(self.path, arrays, images_key)
        images = _checked_images(f"{self.images_key} in {self.path}", arrays[self.images_key])
        side = size or images.shape[1]
        square = np.stack([fit_square(to_rgb(image), side, fit) for image in images])
        beside = {
            name: _column(self.path, arrays, self.images_key, name, key)
            for name, key in (("eye", "auto"), ("patient", "auto"), ("labels", labels_key))
        }
        eyes = _whole(self.path, "eye", beside["eye"], unknown=0, most=1)
        labels = _whole(self.path, "labels", beside["labels"], unknown=-1, most=_MOST_CLASSES)
        super().__init__(square, eyes, _patients(beside["patient"]), labels)
        self._origin = {
            "source": f"npz:{self.path}#{self.images_key}",
            "count": len(images),
            "sha256": array_checksum(images),
        }


def npz_keys(path: str | Path) -> tuple[str, ...]:
    """Returns the names of the arrays in an .npz file; raises UsageError like `NpzSource`."""
    return tuple(_read_npz(Path(path)))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"The file {path} does not exist; set data.path to an .npz file.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} cannot be read as an .npz file of plain arrays ({error}); "
            f"write it with numpy.savez and without object arrays."
        ) from error


def _images_key(path: Path, arrays: dict[str, np.ndarray], wanted: str) -> str:
    listing = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in arrays.items())
    if wanted != "auto":
        if wanted not in arrays:
            raise UsageError(
                f"{path} has no array {wanted!r}; set data.images_key to one of: {listing}."
            )
        return wanted
    for key in ("images", "train_images"):
        if key in arrays:
            return key
    possible = [k for k, v in arrays.items() if v.ndim in (3, 4)]
    if len(possible) != 1:
        raise UsageError(
            f"It is not clear which array of {path} holds the images; set "
            f"data.images_key to one of: {listing}."
        )
    return possible[0]


def _checked_images(name: str, images: np.ndarray) -> np.ndarray:
    gray = images.ndim == 3
    if not gray and not (images.ndim == 4 and images.shape[-1] in (1, 3)):
        raise UsageError(
            f"The array {name} has shape {images.shape}; images are (N, H, W), (N, H, W, 1) or "
            f"(N, H, W, 3): transpose the array or set data.images_key to another one."
        )
    if images.dtype != np.uint8:
        raise UsageError(
            f"The array {name} is {images.dtype}; images are uint8 from 0 to 255: "
            f"convert it, or set data.images_key to another array."
        )
    if 0 in images.shape:
        raise UsageError(f"The array {name} is empty (shape {images.shape}); choose another one.")
    return images


def _column(
    path: Path, arrays: dict[str, np.ndarray], images_key: str, name: str, key: str | None
) -> np.ndarray | None:
    """Returns the values that stand beside the images, or None where there are none.

    A key of "auto" means `train_eye` beside `train_images`, and that it may be absent.
    """
    if key is None:
        return None
    if key == "auto":
        key = images_key.replace("images", name) if "images" in images_key else name
        if key not in arrays:
            return None
    if key not in arrays:
        raise UsageError(
            f"{path} has no array {key!r}; set data.{name}_key to one of: {', '.join(arrays)}."
        )
    values = arrays[key].reshape(-1)
    count = len(arrays[images_key])
    if len(values) != count:
        raise UsageError(
            f"The array {key} in {path} has shape {arrays[key].shape}, but {images_key} holds "
            f"{count} images: give one value per image."
        )
    return values


def _whole(
    path: Path, name: str, values: np.ndarray | None, unknown: int, most: int
) -> np.ndarray | None:
    """Returns values as whole numbers from -1 to `most`; NaN becomes `unknown`."""
    if values is None:
        return None
    meaning = "-1 (left), 0 (unknown) and 1 (right)"
    if name == "labels":
        meaning = "whole numbers from 0, -1 or NaN where a label is not known"
    if values.dtype.kind not in "biuf":
        raise UsageError(
            f"The {name} in {path} are {values.dtype}, as {str(values[0])[:50]!r}; give {meaning}: "
            f"numpy.unique(texts, return_inverse=True) numbers texts."
        )
    numbers = np.where(np.isnan(values), unknown, values)
    wrong = np.flatnonzero((numbers != np.floor(numbers)) | (numbers < -1) | (numbers > most))
    if len(wrong):
        raise UsageError(
            f"The {name} in {path} hold {values[wrong[0]]} at place {wrong[0]}; give {meaning}."
        )
    return numbers.astype(np.int32)


def _patients(values: np.ndarray | None) -> list[str] | None:
    """Returns a name for every image; one whose patient is blank or NaN is one of its own."""
    if values is None:
        return None
    names = values.astype(str).tolist()
    return [
        f"image {place}" if not name.strip() or name == "nan" else name
        for place, name in enumerate(names)
    ]
