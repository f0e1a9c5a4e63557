"""Records that were whole when their set was prepared and are damaged now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import DecodeError

# A set may lose one image in so many, and one in any case.
_OF = 1000


class DamagedRecord(UsageError):
    """A record of which the bytes are not those that were written."""


def raw_record(records: Sequence[bytes], index: int, name: str) -> bytes:
    """Returns the bytes of a record.

    Args:
        records: Of a prepared set.
        index: Number of the record.
        name: The set's name, for the error.

    Raises:
        DamagedRecord: They are not those that were written.
    """
    try:
        return records[index]
    except RuntimeError as error:
        # What array_record says where a checksum of its own does not hold.
        if "Corrupted" not in str(error):
            raise
        reason = str(error).partition(";")[0]
        raise DamagedRecord(
            f"Record {index} of {name} is damaged ({reason}); delete the folder of the set and "
            "prepare it again."
        ) from error


class Readable:
    """Items by number; in the place of one that is damaged comes the next that is not.

    Attributes:
        damaged: {number: what is wrong with it}, of those that were met.
    """

    def __init__(self, read: Callable[[int], Any], count: int, what: str = "image"):
        """Wraps a function that reads an item.

        Args:
            read: Number -> item.
            count: How many items there are.
            what: What an item is called.
        """
        self._read, self._count, self._what = read, count, what
        self.damaged: dict[int, str] = {}

    def find(self, number: int) -> tuple[int, Any]:
        """Returns the item of a number or the next one that can be read, and whose number it is.

        Raises:
            UsageError: More than one item, and more than one in a thousand, are damaged.
        """
        while True:
            if number not in self.damaged:
                try:
                    return number, self._read(number)
                except (DamagedRecord, DecodeError) as error:
                    self._note(number, error)
            number = (number + 1) % self._count

    def _note(self, number: int, error: Exception) -> None:
        self.damaged[number] = str(error)
        most = max(1, self._count // _OF)
        if len(self.damaged) > most or self._count == 1:
            raise UsageError(
                f"{len(self.damaged)} of {self._count} {self._what}s cannot be read any more, "
                f"which is too many (the last one: {error}); restore them, or prepare their set "
                "again."
            ) from error
        print(
            f"{self._what.capitalize()} {number} cannot be read any more and is left out "
            f"({len(self.damaged)} of at most {most}): {error}",
            file=sys.stderr,
        )
