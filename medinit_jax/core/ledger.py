"""Finished pieces of long work, kept in a file so that a second run goes on after the last."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from medinit_jax.core import cluster
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

    @classmethod
    def shared(cls, path: Path, subject: str) -> Self:
        """Reads what is finished, on every process of a run; each keeps what it adds in a file.

        The file of the first process is that of a run of one; what others left there when they were
        stopped is taken into it.

        Args:
            path: As of a run of one process.
            subject: What the results are about.
        """

        def gather() -> None:
            ledger = cls(path, subject)
            for place in _of_others(path):
                ledger.take(cls(place, subject)._pieces)
            forget_others(path)

        cluster.once(gather)
        ledger = cls(path, subject)
        if not cluster.first():
            ledger.path = path.with_name(f"{path.stem}-{cluster.share()[0]}{path.suffix}")
        return ledger

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def __getitem__(self, name: str) -> Any:
        return self._pieces[name]

    def add(self, name: str, value: Any) -> None:
        """Keeps a result: JSON values; numbers that are not finite become null."""
        self._pieces[name] = finite(value)
        self._write()

    def take(self, pieces: Mapping[str, Any]) -> None:
        """Keeps results of another process, which are as `add` leaves them."""
        merged = {**self._pieces, **pieces}
        if merged != self._pieces:
            self._pieces = merged
            self._write()

    def divide(
        self, pieces: Mapping[str, Callable[[], Any]], report: Callable[[str], None]
    ) -> None:
        """Finds the results that are not there yet, each on one process, and tells all of them.

        Every process calls it with the same pieces. Which one finds what depends on their order
        alone, so that a file that one of them sees late does no harm.

        Args:
            pieces: Functions that return results, by name.
            report: Told the names of results that this process has by now.
        """
        process, processes = cluster.share()
        own = list(pieces)[process::processes]
        for name in own:
            if name not in self:
                self.add(name, pieces[name]())
            report(name)
        if processes == 1:
            return
        told = cluster.everyone("pieces", json.dumps({name: self[name] for name in own}))
        for text in told:
            self.take(json.loads(text))
        for name in pieces.keys() - set(own):
            report(name)

    def _write(self) -> None:
        write_json(self.path, {"subject": self.subject, "pieces": self._pieces})


def forget_others(path: Path) -> None:
    """Removes what processes other than the first one kept beside its file, which has it all."""
    for place in _of_others(path):
        place.unlink()


def _of_others(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))


def finite(value: Any) -> Any:
    """Returns a JSON value with None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
