"""Finished pieces of long work, kept in a file so that a second run goes on after the last."""

import json
import math
from pathlib import Path
from typing import Any

from medinit_jax.core.workdir import write_json


class Ledger:
    """Results by name, written to a JSON file as they come."""

    def __init__(self, path: str | Path, subject: str):
        """Reads what is finished.

        Args:
            path: The file; made with the first result.
            subject: What the results are about, such as a digest; results about another subject,
                and a file that cannot be read, are dropped.
        """
        self.path, self.subject = Path(path), subject
        self._pieces: dict[str, Any] = {}
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            if held["subject"] == subject:
                self._pieces = dict(held["pieces"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def __getitem__(self, name: str) -> Any:
        return self._pieces[name]

    def add(self, name: str, value: Any) -> None:
        """Keeps a result: JSON values; numbers that are not finite become null."""
        self._pieces[name] = finite(value)
        write_json(self.path, {"subject": self.subject, "pieces": self._pieces})


def finite(value: Any) -> Any:
    """Returns a JSON value with None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
