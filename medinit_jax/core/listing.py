"""The listing of a folder: length and digest of every file in it, and whether they still hold."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medinit_jax.core.workdir import write_json

LISTING = "files.json"


def digest(path: Path) -> dict[str, Any]:
    """Returns {"bytes", "sha256"} of a file."""
    with open(path, "rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def compare(held: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Returns how a file differs from what was listed; for files that do."""
    if held["bytes"] != found["bytes"]:
        return f"{found['bytes']} bytes instead of {held['bytes']}"
    return "its content has changed"


def write_listing(place: Path) -> None:
    """Writes the listing of a folder into it."""
    files = {
        str(path.relative_to(place)): digest(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != LISTING
    }
    write_json(place / LISTING, files)


def problem(place: Path) -> str:
    """Returns which file of a folder is not as it was listed, and why; "" if all are.

    Without a listing nothing is known: the process ended before it was written.
    """
    file = place / LISTING
    if not file.exists():
        return ""
    try:
        listing = json.loads(file.read_text(encoding="utf-8"))
        for name, held in listing.items():
            path = place / name
            if not path.is_file():
                return f"{name} is missing"
            found = digest(path)
            if found != held:
                return f"{name}: {compare(held, found)}"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"{LISTING}: {error}"
    return ""
