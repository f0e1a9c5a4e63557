"""A written phantom set as a source."""

import json
from pathlib import Path
from typing import Any

import cv2
from array_record.python.array_record_data_source import ArrayRecordDataSource

from medinit_jax.core.errors import UsageError
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.data.records import decode_record, is_complete


class RecordSource:
    """A written phantom set as a source.

    Attributes:
        listing: What the set's listing says.
    """

    def __init__(self, listing: str | Path, size: int | None = None, label: str | None = None):
        """Opens a set.

        Args:
            listing: What `write_phantoms` returned.
            size: Side of the images in pixels, reduced by area; None keeps them as they are.
            label: Entry of the labels that becomes `label`; None takes the phantom's own.

        Raises:
            UsageError: The set is missing, incomplete or damaged.
        """
        self.path = Path(listing)
        try:
            self.listing = json.loads(self.path.read_text())
            whole = is_complete(self.path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"The image set {self.path} cannot be opened ({error}); write it again."
            ) from error
        if not whole:
            raise UsageError(
                f"Shards of the image set {self.path} are missing or cut short; "
                f"delete {self.path.name} and run again to write them anew."
            )
        self.size = size
        self.label = label or PHANTOMS[self.listing["phantom"]].label
        shards = [str(self.path.parent / shard["file"]) for shard in self.listing["shards"]]
        self._records = ArrayRecordDataSource(shards)
        known = self.full(0)["labels"]
        if self.label not in known:
            raise UsageError(
                f"The images of {self.path} have no label {self.label!r}; set data.label to one "
                f"of: {', '.join(known)}."
            )

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.listing["count"]

    def full(self, index: int) -> dict[str, Any]:
        """Returns image, all labels, stored masks, eye and patient at the stored size."""
        return decode_record(self._records[int(index)])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example at the working size."""
        example = self.full(index)
        image = example["image"]
        if self.size and self.size != image.shape[0]:
            method = cv2.INTER_AREA if self.size < image.shape[0] else cv2.INTER_CUBIC
            image = cv2.resize(image, (self.size, self.size), interpolation=method)
        return {
            "image": image,
            "eye": example["eye"],
            "patient": example["patient"],
            "label": int(example["labels"][self.label]),
        }

    def describe(self) -> dict[str, Any]:
        """Returns source, count and sha256."""
        name = f"{self.path.parent.name}/{self.listing['split']}"
        return {
            "source": f"phantom:{name}",
            "count": len(self),
            "sha256": self.listing["sha256"],
        }
