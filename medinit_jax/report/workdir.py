"""What a run left in its workdir, read leniently: what is absent or broken is said, not raised."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.core.errors import UsageError


class Record(NamedTuple):
    """A run's remains.

    Attributes:
        name: name of the workdir.
        config: `config.json`, {} if absent.
        metrics: scalar name to (steps, values), both 1-D and in order of steps.
        summary: `summary.json`.
        samples: arrays of `samples.npz`, {} if absent: images uint8 (n, H, W, 3), views uint8
            (n, v, H, W, 3) or (n, H, W, 3), targets (n, v) or (n,), labels (n,).
        parameters: `parameters.json`: network to a list of {"name", "shape", start: {"mean",
            "std"}}, {} if absent.
        remarks: sentences about files that could not be read.
    """

    name: str
    config: dict[str, Any]
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    summary: dict[str, Any]
    samples: dict[str, np.ndarray]
    parameters: dict[str, list[dict[str, Any]]]
    remarks: tuple[str, ...]


def read_workdir(workdir: str | Path) -> Record:
    """Read everything the page shows.

    Args:
        workdir: the folder of a run.

    Returns:
        A `Record`.

    Raises:
        UsageError: there is no readable `summary.json`.
    """
    folder = Path(workdir)
    path = folder / "summary.json"
    if not path.is_file():
        raise UsageError(
            f"{path} is missing, so there is nothing to report: run the stages train and "
            "evaluate with this workdir first."
        )
    summary = _read_json(path)
    if not isinstance(summary, dict):
        raise UsageError(f"{path} does not hold a JSON object: run the stage evaluate again.")
    remarks: list[str] = []
    return Record(
        name=folder.resolve().name,
        config=_optional(folder / "config.json", remarks),
        metrics=read_metrics(folder / "metrics.jsonl", remarks),
        summary=summary,
        samples=_read_samples(folder / "samples.npz", remarks),
        parameters=_optional(folder / "parameters.json", remarks),
        remarks=tuple(remarks),
    )


def part(mapping: Any, key: str, kind: type) -> Any:
    """The value under a key if it has the kind, else an empty value of that kind."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return value if isinstance(value, kind) else kind()


def images_of(summary: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Source, number and SHA-256 of the images that a run of any route says it has seen."""
    data = part(summary, "data", dict)
    named = [(part(one, "role", str), one) for one in part(summary, "sets", list)]
    named += [("", one) for one in part(data, "parts", list)]
    named += [(name, one) for name, one in data.items() if isinstance(one, dict)]
    if "source" in data:
        named.append(("", data))
    return [
        (
            str(one["source"]) + (f" ({name})" if name else ""),
            part(one, "count", int),
            part(one, "sha256", str),
        )
        for name, one in named
        if isinstance(one, dict) and one.get("source")
    ]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _optional(path: Path, remarks: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = _read_json(path)
    if isinstance(content, dict):
        return content
    remarks.append(f"{path.name} could not be read.")
    return {}


def read_metrics(path: Path, remarks: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns scalar name -> (steps, values) of `metrics.jsonl`; adds a remark on broken lines."""
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            broken += 1
            continue
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                # A resumed run repeats the steps after its last checkpoint: the later one holds.
                points.setdefault(key, {})[step] = float(value)
    if broken:
        remarks.append(f"Lines of {path.name} that could not be read and are left out: {broken}.")
    return {
        key: (np.array(sorted(rows)), np.array([rows[step] for step in sorted(rows)]))
        for key, rows in points.items()
    }


def _read_samples(path: Path, remarks: list[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        remarks.append(f"{path.name} could not be read.")
        return {}
