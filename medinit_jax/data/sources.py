"""Sources of images: random access by number, picklable, one shape for all kinds of storage."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Source(Protocol):
    """Images by number.

    An example is a dict with `image` uint8 (S, S, 3), `eye` (+1 right, -1 left, 0 unknown),
    `patient` str, and `label` int where there are labels.
    """

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns source, count and sha256 for the record of a run."""
        ...


class ArraySource:
    """Images that lie in memory.

    Attributes:
        images: uint8 (N, S, S, 3).
        eyes: int32 (N,).
        patients: One name per image.
        labels: int32 (N,) or None.
    """

    def __init__(
        self,
        images: np.ndarray,
        eyes: np.ndarray | None = None,
        patients: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
        origin: dict[str, Any] | None = None,
    ):
        """Wraps arrays; without eyes they are unknown, without patients every image is one.

        Args:
            images: uint8 (N, S, S, 3).
            eyes: int (N,).
            patients: N names.
            labels: int (N,).
            origin: What `describe` returns; made from the images if None.
        """
        count = len(images)
        self.images = images
        self.eyes = np.zeros(count, np.int32) if eyes is None else np.asarray(eyes, np.int32)
        self.patients = [str(p) for p in (range(count) if patients is None else patients)]
        self.labels = None if labels is None else np.asarray(labels, np.int32)
        self._origin = origin

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example, its image a view."""
        example = {
            "image": self.images[index],
            "eye": int(self.eyes[index]),
            "patient": self.patients[index],
        }
        if self.labels is not None:
            example["label"] = int(self.labels[index])
        return example

    def describe(self) -> dict[str, Any]:
        """Returns source, count and sha256."""
        if self._origin is not None:
            return self._origin
        return {"source": "memory", "count": len(self), "sha256": array_checksum(self.images)}


class Subset:
    """Some images of a source, in the given order."""

    def __init__(self, source: Source, indices: np.ndarray, name: str):
        """Keeps the numbers `indices` of the source under a name for the record."""
        self.source, self.indices, self.name = source, np.asarray(indices), name

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        return self.source[int(self.indices[index])]

    @property
    def patients(self) -> list[str]:
        """The patient of every image."""
        names = patients_of(self.source)
        return [names[index] for index in self.indices]

    def describe(self) -> dict[str, Any]:
        """Returns the source's description with this part's name and count."""
        whole = self.source.describe()
        return {**whole, "source": f"{whole['source']} [{self.name}]", "count": len(self)}


def cached(source: Source, limit_mb: float = 512.0) -> Source:
    """Reads a whole source into memory if its images fit.

    Args:
        source: Any source.
        limit_mb: Most megabytes of pixels.

    Returns:
        An ArraySource with the same examples, or the source itself if it is too large.
    """
    if isinstance(source, ArraySource) or len(source) == 0:
        return source
    first = source[0]
    if len(source) * first["image"].nbytes > limit_mb * 1e6:
        return source
    images = np.empty((len(source), *first["image"].shape), np.uint8)
    eyes, patients, labels = [], [], []
    for i in range(len(source)):
        example = first if i == 0 else source[i]
        images[i] = example["image"]
        eyes.append(example["eye"])
        patients.append(example["patient"])
        labels.append(example.get("label"))
    known = None if labels[0] is None else np.array(labels)
    return ArraySource(images, np.array(eyes), patients, known, source.describe())


def split_by_patient(
    source: Source, shares: Sequence[float], seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Splits the numbers of a source's images at random, all images of a patient on one side.

    Args:
        source: Any source; its patients are read, so large ones should be cached first.
        shares: Share of the patients per part, sum at most 1; the last part takes the rest.
        seed: Seed of the permutation of the sorted patients.

    Returns:
        One sorted int64 array of image numbers per share.
    """
    patients = patients_of(source)
    parts = divide_names(patients, shares, seed)
    part_of = {name: part for part, names in enumerate(parts) for name in names}
    part_of_image = np.array([part_of[p] for p in patients])
    return tuple(np.flatnonzero(part_of_image == part) for part in range(len(shares)))


def divide_names(
    names: Sequence[str], shares: Sequence[float], seed: int = 0
) -> tuple[list[str], ...]:
    """Divides names at random.

    Args:
        names: Names, each of which counts once.
        shares: Share of the names per part, sum at most 1; the last part takes the rest.
        seed: Seed of the permutation of the sorted names.

    Returns:
        The names of each part, sorted.
    """
    names = sorted(set(names))
    bounds = np.floor(np.cumsum(shares)[:-1] * len(names) + 1e-9).astype(int)
    return cut_shuffled(names, bounds.tolist(), seed)


def cut_shuffled(names: Sequence[str], bounds: Sequence[int], seed: int) -> tuple[list[str], ...]:
    """Cuts names, sorted and then permuted by `PCG64(seed)`, at `bounds`; parts are sorted."""
    names = sorted(names)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    return tuple([names[i] for i in sorted(part)] for part in np.split(order, bounds))


def patients_of(source: Source) -> list[str]:
    """Returns the patient of every image."""
    if isinstance(source, ArraySource):
        return source.patients
    known = getattr(source, "patients", None)
    return known if known is not None else [source[i]["patient"] for i in range(len(source))]


def array_checksum(images: np.ndarray) -> str:
    """Returns the SHA-256 of an array's shape and bytes."""
    digest = hashlib.sha256(repr((images.shape, str(images.dtype))).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()
