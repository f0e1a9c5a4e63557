"""One run of a study: which route, with which configuration, and what it needs before."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from medinit_jax import finetune, hyper, swcl
from medinit_jax.core.workdir import CONFIG_FILE

# A value that stands for the folder of another job.
REFERENCE = "job:"
# Per route: the file that is written last, and the keys that no result depends on.
DONE = {
    "hyper": "initializer/initializer.json",
    **dict.fromkeys(("finetune", "labeler", "patches", "swcl"), "summary.json"),
}
FREE = {
    "finetune": finetune.FREE,
    "hyper": (*hyper.FREE, "data.data_dir"),
    "labeler": finetune.FREE,
    "patches": (*swcl.SCORE_FREE, "data_dir"),
    "swcl": swcl.FREE,
}


class Job:
    """A run.

    Attributes:
        kind: The route.
        name: For people.
        config: The whole configuration; a value "job:<id>" is the folder of another job.
        facts: What the tables group by: experiment, task, model, start, seed, ...
    """

    def __init__(self, kind: str, name: str, config: Mapping[str, Any], facts: Mapping[str, Any]):
        self.kind, self.name = kind, name
        self.config: dict[str, Any] = json.loads(json.dumps(config, default=list))
        self.facts = dict(facts)

    @functools.cached_property
    def id(self) -> str:
        """Name and digest of all that the result depends on, the same wherever it is run."""
        kept = dict(_leaves(self.config))
        for key in list(kept):
            if self._is_free(key):
                del kept[key]
        text = json.dumps([self.kind, kept], sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @functools.cached_property
    def needs(self) -> tuple[str, ...]:
        """Ids of the jobs whose folders the configuration refers to."""
        return tuple(
            value.removeprefix(REFERENCE)
            for _, value in _leaves(self.config)
            if isinstance(value, str) and value.startswith(REFERENCE)
        )

    def folder(self, jobs_dir: Path) -> Path:
        """Returns the job's workdir."""
        return jobs_dir / self.id

    def is_done(self, jobs_dir: Path) -> bool:
        """Tells whether the file that is written last is there."""
        last = "summary.json" if self._evaluates else DONE.get(self.kind, "summary.json")
        return (self.folder(jobs_dir) / last).is_file()

    @functools.cached_property
    def _evaluates(self) -> bool:
        """Whether it is a run of the route `hyper` whose result is its evaluation."""
        return self.kind == "hyper" and "evaluate" in self.config.get("stages", ())

    def disagreement(self, jobs_dir: Path) -> str:
        """Returns what keeps the job's folder from being this job's; "" if nothing does."""
        path = self.folder(jobs_dir) / CONFIG_FILE
        try:
            held = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))["config"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path} cannot be read ({error}); remove its folder to run the job again."
        wanted = dict(_leaves(self.config))
        for key in sorted(held.keys() | wanted.keys()):
            if not self._is_free(key) and not _same(held.get(key), wanted.get(key)):
                return (
                    f"{path} is of another run: {key} is {held.get(key)!r} there and "
                    f"{wanted.get(key)!r} here; remove its folder to run the job again."
                )
        return ""

    def _is_free(self, key: str) -> bool:
        starts = FREE.get(self.kind, ())
        if self._evaluates and key.partition(".")[0] in ("evaluate", "stages"):
            return False
        return any(key == start or key.startswith(f"{start}.") for start in starts)

    def summary(self, jobs_dir: Path) -> dict[str, Any]:
        """Returns what the job left in `summary.json`; {} if it is not done or leaves none."""
        try:
            found = json.loads((self.folder(jobs_dir) / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def resolved(self, jobs_dir: Path) -> ml_collections.ConfigDict:
        """Returns the configuration with folders in the place of references, locked."""
        # Absolute, so that a run begun by one runner is gone on with by another.
        config = ml_collections.ConfigDict(_resolved(self.config, jobs_dir.absolute()))
        return config.lock()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same(held: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and wanted.startswith(REFERENCE):
        # Folders of jobs may have been moved since; their names stay.
        return Path(str(held)).name == wanted.removeprefix(REFERENCE)
    return held == wanted


def _resolved(value: Any, jobs_dir: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolved(item, jobs_dir) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and value.startswith(REFERENCE):
        return str(jobs_dir / value.removeprefix(REFERENCE))
    return value
