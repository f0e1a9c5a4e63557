"""The processes that run one study together: one conducts, the others take jobs, too.

They start with the same command, on one host or on many, and know of each other through files: the
lock of the one that conducts, and `session.json`, which is there until the report is written. If
the one that conducts ends before that, another one takes its place.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from medinit_jax.core import lease
from medinit_jax.core.errors import InUse, UsageError
from medinit_jax.core.lease import Lease
from medinit_jax.core.workdir import write_json

SESSION_FILE, LOCK = "session.json", "conductor.lock"
# Holds a name of the folder of jobs itself, wherever a host has mounted it.
_MARK_FILE = ".folder"
_POLL_SECONDS = 1.0


class Session:
    """What a process knows of those that it runs a study with.

    Args:
        workdir: Of the study.
        mark: Name of the folder of jobs.
    """

    def __init__(self, workdir: Path, mark: str):
        self.id = uuid.uuid4().hex
        self._workdir, self._mark = workdir, mark
        self._held: Lease | None = None

    def conducts(self) -> bool:
        """Returns whether this process conducts; if nobody does any more, it begins to."""
        if self._held is None and self._take():
            if self._file.exists():
                self._write()
            else:
                # All is done and told.
                self.leave()
        return self._held is not None

    def closes(self) -> bool:
        """Waits for the others; returns whether this process is the one that writes the report."""
        while not self.conducts():
            if not self._file.exists():
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self) -> None:
        """Says that the report is written."""
        self._file.unlink(missing_ok=True)

    def leave(self) -> None:
        """Stops to conduct, if it does."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def begin(self, claim: Callable[[bool], None]) -> bool:
        """Begins the session; returns False if another process conducts one.

        Args:
            claim: See `joined`.
        """
        if not self._take():
            return False
        try:
            claim(True)
            self._write()
        except BaseException:
            self.leave()
            raise
        return True

    def join(self, claim: Callable[[bool], None]) -> bool:
        """Joins the session of another process; returns False if none is ready.

        Args:
            claim: See `joined`.

        Raises:
            UsageError: As `claim`, or the folder of jobs is another one.
        """
        holder = lease.holder(self._workdir / LOCK)
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if not holder or found["conductor"] != holder.get("token"):
            return False
        claim(False)
        if found["jobs_dir"] != self._mark:
            raise UsageError(
                f"{lease.in_words(holder)} runs this study with another folder of jobs; set "
                "config.jobs_dir to the same one, on storage that all hosts share."
            )
        self.id = found["id"]
        return True

    @property
    def _file(self) -> Path:
        return self._workdir / SESSION_FILE

    def _take(self) -> bool:
        self._held = lease.acquire(self._workdir / LOCK, self._lose)
        return self._held is not None

    def _lose(self) -> None:
        """Another process conducts now, as this one was not heard of for long."""
        self._held = None

    def _write(self) -> None:
        assert self._held is not None
        content = {"id": self.id, "conductor": self._held.token, "jobs_dir": self._mark}
        write_json(self._file, content)


@contextmanager
def joined(
    workdir: Path,
    jobs_dir: Path,
    claim: Callable[[bool], None],
    console: Console,
    alone: str = "",
) -> Iterator[Session]:
    """Begins a session, or joins the one that is at work in a folder.

    Args:
        workdir: Of the study; made if it is missing.
        jobs_dir: Where its jobs are; made if it is missing.
        claim: Called with True by the one that begins, which makes the folder the study's, and with
            False by others, which have to find there what they would have made.
        console: Where it is said that there are others.
        alone: Why no other process may be there; "" if they may.

    Raises:
        InUse: Another process is at work there, and may not be.
        UsageError: As `claim`, or the processes have not the same folder of jobs.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    jobs_dir.mkdir(parents=True, exist_ok=True)
    session = Session(workdir, _mark(jobs_dir))
    lapses = time.monotonic() + lease.LAPSE + 2 * lease.BEAT
    while not session.begin(claim):
        holder = lease.holder(workdir / LOCK)
        who = lease.in_words(holder)
        if not alone and session.join(claim):
            _tell(console, f"{who} conducts this study; this process takes jobs of it, too.")
            break
        if alone and (lease.is_here(holder) or time.monotonic() > lapses):
            raise InUse(f"{workdir} is in use by {who}, and {alone}; wait until it has ended.")
        time.sleep(_POLL_SECONDS)
    try:
        yield session
    finally:
        session.leave()


def _tell(console: Console, line: str) -> None:
    console.print(line[0].upper() + line[1:], highlight=False, markup=False, soft_wrap=True)


def _mark(jobs_dir: Path) -> str:
    """Returns the name that a folder of jobs bears, and gives it one."""
    file = jobs_dir / _MARK_FILE
    try:
        with open(file, "x", encoding="utf-8") as place:
            place.write(uuid.uuid4().hex)
    except FileExistsError:
        pass
    for _ in range(20):
        text = file.read_text(encoding="utf-8")
        if text:
            return text
        # Another process is about to write it.
        time.sleep(_POLL_SECONDS / 4)
    raise UsageError(f"{file} is empty; remove it.")
