"""The images of a task, one part of them at a time, as they are kept for a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.decode import decode_with_size
from medinit_jax.data.prepared import PreparedSource
from medinit_jax.data.readable import raw_record
from medinit_jax.finetune import recipes
from medinit_jax.finetune.recipes import Plan

# A pixel of a mask that nobody labelled.
UNLABELLED_PIXEL = 255
_SKIP = tfds.decode.SkipDecoding()


class Layer(NamedTuple):
    """A head of a segmentation: the pixels whose class lies between two numbers, both included.

    Attributes:
        head: Name of the head.
        least: Least class.
        most: Largest class.
    """

    head: str
    least: int
    most: int

    def of(self, classes: np.ndarray) -> np.ndarray:
        """Returns whether pixels belong to it, bool of the shape of `classes`."""
        return (classes >= self.least) & (classes <= self.most)


class Cache:
    """Keeps arrays in memory until they fill it; a copy in another process starts empty."""

    def __init__(self, limit_mb: float):
        """Makes an empty cache of at most so many megabytes."""
        self._limit, self._free = limit_mb, limit_mb * 1e6
        self._held: dict[Any, tuple[np.ndarray, ...]] = {}

    def get(self, key: Any, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Returns what is held under a key, or makes it and holds it if there is room."""
        found = self._held.get(key)
        if found is None:
            found = make()
            size = sum(array.nbytes for array in found)
            if size <= self._free:
                self._free -= size
                self._held[key] = found
        return found

    def __reduce__(self):
        """Leaves what is held behind when it is sent to another process."""
        return Cache, (self._limit,)


class Records:
    """A split of a prepared set, read feature by feature.

    Args:
        builder: The set.
        split: As the set names it.

    Raises:
        UsageError: The set is not prepared, is cut short, or has no such split or no 8-bit images.
    """

    def __init__(self, builder: Builder, split: str):
        checked = PreparedSource(builder, split, size=16)
        self.name = f"{builder.name}/{builder.builder_config.name}"
        self.split, self._described = split, checked.describe()
        self._features: dict[str, Any] = dict(builder.info.features.items())
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self._count = len(checked)

    def __len__(self) -> int:
        """Returns the number of images."""
        return self._count

    def has(self, feature: str) -> bool:
        """Returns whether the set has a feature."""
        return feature in self._features

    def columns(self, features: Sequence[str]) -> list[dict[str, Any]]:
        """Returns small features of every record, none of which is an image."""
        reader = self._reader(features)
        return [reader.deserialize_example_np(self._record(i)) for i in range(len(self))]

    def read(self, index: int, feature: str, encoded: bool = False) -> Any:
        """Returns a feature of one record; an image's bytes if `encoded`."""
        decoders = {feature: _SKIP} if encoded else None
        record = self._record(index)
        return self._reader([feature]).deserialize_example_np(record, decoders=decoders)[feature]

    def describe(self) -> dict[str, Any]:
        """Returns source, count, a sha256 over the split's shards, and the set's license."""
        return {key: self._described[key] for key in ("source", "count", "sha256", "license")}

    def _record(self, index: int) -> bytes:
        return raw_record(self._records, index, f"{self.name}/{self.split}")

    def _reader(self, features: Sequence[str]) -> Any:
        return tfds.features.FeaturesDict({name: self._features[name] for name in features})


class Examples:
    """Some images of a task, with what is known of them.

    Attributes:
        targets: {head: int32 (n,)}, or (n, classes) of 0 and 1 for a sigmoid; `UNKNOWN` where
            nobody labelled; empty for a segmentation.
        patients: Group, else patient, else a name of its own, of every image.
        ids: Name of every image.
    """

    def __init__(
        self,
        records: Records,
        indices: np.ndarray,
        targets: Mapping[str, np.ndarray],
        patients: Sequence[str],
        ids: Sequence[str],
        plan: Plan,
        cache: Cache,
        layers: tuple[Layer, ...] = (),
        use_fov: bool = False,
        turned: bool = False,
    ):
        """Wraps records.

        Args:
            records: Where the images are.
            indices: Number of the record of every image.
            targets: See above.
            patients: n names.
            ids: n names.
            plan: How images are kept.
            cache: Where they are kept.
            layers: Heads of a segmentation.
            use_fov: Whether pixels outside the field of view do not count.
            turned: Whether every image comes in its four right angles, one after the other: then
                `indices` names it four times.
        """
        self.records, self.indices = records, np.asarray(indices, np.int64)
        self.targets = dict(targets)
        self.patients, self.ids = list(patients), list(ids)
        self.plan, self.cache, self.layers = plan, cache, layers
        self.use_fov, self.turned = use_fov, turned

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.indices)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Returns some of the images, in the given order."""
        chosen = np.asarray(indices, np.int64)
        return Examples(
            self.records,
            self.indices[chosen],
            {head: target[chosen] for head, target in self.targets.items()},
            [self.patients[i] for i in chosen],
            [self.ids[i] for i in chosen],
            self.plan,
            self.cache,
            self.layers,
            self.use_fov,
            self.turned,
        )

    def in_four_angles(self, head: str) -> Examples:
        """Returns every image in its four right angles, which are the targets of `head`."""
        count = len(self)
        four = self.subset(np.repeat(np.arange(count), 4))
        four.targets = {head: np.tile(np.arange(4, dtype=np.int32), count)}
        four.turned = True
        return four

    def image(self, index: int) -> np.ndarray:
        """Returns an image, uint8 (H, W, 3).

        Of a classification it is as the recipe keeps it; of a segmentation as it is stored, of the
        size of `mask` and `fov`, while `pair` has it as the recipe keeps it.
        """
        if self.layers:
            return self._decoded(index)[0]
        kept = self.cache.get(self._key(index), lambda: (self._kept(index),))[0]
        return np.ascontiguousarray(np.rot90(kept, index % 4)) if self.turned else kept

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image to segment and its mask as the recipe keeps them.

        Returns:
            uint8 (H, W, 3), and uint8 (H, W) of class + 1, 0 where nothing is known or counts.
        """

        def make() -> tuple[np.ndarray, ...]:
            image, size = self._decoded(index, recipes.least_side(self.plan))
            classes = self._classes(index, size)
            # 255, which is not labelled, becomes 0.
            known = np.where(self.fov(index, classes), classes + np.uint8(1), np.uint8(0))
            return recipes.kept_pair(image, known, self.plan)

        image, known = self.cache.get(self._key(index), make)
        return image, known

    def mask(self, index: int) -> dict[str, np.ndarray]:
        """Returns {head: uint8 (H, W)} of 0 and 1, and 255 where nobody labelled."""
        classes = self._classes(index)
        unlabelled = classes == UNLABELLED_PIXEL
        return {
            layer.head: np.where(unlabelled, np.uint8(255), layer.of(classes).astype(np.uint8))
            for layer in self.layers
        }

    def fov(self, index: int, classes: np.ndarray | None = None) -> np.ndarray:
        """Returns which pixels count, bool (H, W).

        Args:
            index: Number of the image.
            classes: Its mask, if it is at hand.

        Returns:
            Those that are labelled and, if `use_fov`, lie in the field of view.
        """
        classes = self._classes(index) if classes is None else classes
        counted = classes != UNLABELLED_PIXEL
        if self.use_fov:
            field = self.records.read(int(self.indices[index]), "fov")[..., 0]
            self._refuse_other_size(index, "field of view", field.shape, counted.shape)
            counted &= field > 0
        return counted

    def native_size(self, index: int) -> tuple[int, int]:
        """Returns height and width of an image as it is stored."""

        def make() -> tuple[np.ndarray, ...]:
            return (np.array(self._decoded(index, 1)[1]),)

        height, width = self.cache.get(("size", *self._key(index)), make)[0].tolist()
        return height, width

    def describe(self) -> dict[str, Any]:
        """Returns source, count, license, and sha256 of the split's shards and of the names."""
        names = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()
        return {**self.records.describe(), "count": len(self), "ids_sha256": names}

    def _key(self, index: int) -> tuple[str, str, int]:
        return self.records.name, self.records.split, int(self.indices[index])

    def _decoded(self, index: int, least: int = 0) -> tuple[np.ndarray, tuple[int, int]]:
        content = self.records.read(int(self.indices[index]), "image", encoded=True)
        return decode_with_size(content, least)

    def _kept(self, index: int) -> np.ndarray:
        image, _ = self._decoded(index, recipes.least_side(self.plan))
        try:
            return recipes.kept_image(image, self.plan)
        except UsageError as error:
            raise UsageError(f"{self.ids[index]} in {self.records.name}: {error}") from error

    def _classes(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Returns the class of every pixel, uint8 (H, W), 255 where nobody labelled."""
        classes = self.records.read(int(self.indices[index]), "mask")[..., 0]
        self._refuse_other_size(index, "mask", classes.shape, size or self.native_size(index))
        return classes

    def _refuse_other_size(
        self, index: int, what: str, shape: tuple[int, ...], size: tuple[int, ...]
    ) -> None:
        if tuple(shape) != tuple(size):
            raise UsageError(
                f"The {what} of {self.ids[index]} in {self.records.name} has {shape[0]} x "
                f"{shape[1]} pixels, its image {size[0]} x {size[1]}; mend the files and prepare "
                f"the set again."
            )
