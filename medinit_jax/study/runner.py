"""Runs jobs one after another in this process: what is done is not done again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import write_json
from medinit_jax.study.job import DONE as RESULT_FILES
from medinit_jax.study.job import Job

OPEN, DONE, FAILED, BLOCKED = "open", "done", "failed", "blocked"
ERROR_FILE = "error.json"
_POLL_SECONDS = 2.0


class Outcome(NamedTuple):
    """What became of a job: one of the four words, and the reason where it is not done."""

    status: str
    reason: str = ""


Execute = Callable[[Job, Path], None]
Report = Callable[[Mapping[str, Outcome], str], None]


def execute(job: Job, jobs_dir: Path) -> None:
    """Runs one job in this process, as the command line would.

    Raises:
        UsageError: As its route raises.
    """
    from medinit_jax.main import ROUTES

    ROUTES[job.kind](job.resolved(jobs_dir), job.folder(jobs_dir))


def run_jobs(
    jobs: Sequence[Job],
    jobs_dir: Path,
    run: Execute = execute,
    report: Report = lambda outcomes, name: None,
    failed: Mapping[str, Outcome] | None = None,
) -> dict[str, Outcome]:
    """Runs jobs in their order, each after those that it needs.

    A job that fails is kept with its sentence, jobs that need it are blocked, all others go on. A
    job that another process is running is waited for.

    Args:
        jobs: What is to be done; every need is among them, or done before.
        jobs_dir: Where their folders are.
        run: Runs one job.
        report: Told the outcomes so far and the name of the job that begins.
        failed: Jobs that are not tried again.

    Returns:
        {job id: outcome}.
    """
    jobs_dir.mkdir(parents=True, exist_ok=True)
    outcomes = dict(failed or {})
    left = [job for job in jobs if job.id not in outcomes]
    missing = {need for job in jobs for need in job.needs} - {job.id for job in jobs}
    for need in missing:
        there = any((jobs_dir / need / file).is_file() for file in RESULT_FILES.values())
        outcomes[need] = Outcome(DONE) if there else Outcome(FAILED, "it is not done")
    while left:
        waiting = []
        for job in left:
            outcome = _advance(job, jobs_dir, run, report, outcomes)
            if outcome is None:
                waiting.append(job)
            else:
                outcomes[job.id] = outcome
        if len(waiting) == len(left):
            time.sleep(_POLL_SECONDS)
        left = waiting
    report(outcomes, "")
    return {job.id: outcomes[job.id] for job in jobs}


def _advance(job, jobs_dir, run, report, outcomes) -> Outcome | None:
    """Brings one job as far as it gets; None if it has to wait for another process."""
    if job.is_done(jobs_dir):
        return finished(job, jobs_dir)
    blocked = blocked_by(job, outcomes)
    if blocked or any(need not in outcomes for need in job.needs):
        return blocked
    with _lock(job, jobs_dir) as held:
        if not held:
            return None
        if job.is_done(jobs_dir):
            return finished(job, jobs_dir)
        report(outcomes, job.name)
        return _attempt(job, jobs_dir, run)


def blocked_by(job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Returns why a job cannot run, if what it needs failed or is blocked itself."""
    for need in job.needs:
        found = outcomes.get(need)
        if found is not None and found.status in (FAILED, BLOCKED):
            return Outcome(BLOCKED, f"it needs {need}, which is {found.status}: {found.reason}")
    return None


def _attempt(job: Job, jobs_dir: Path, run: Execute) -> Outcome:
    error_file = jobs_dir / f"{job.id}.{ERROR_FILE}"
    error_file.unlink(missing_ok=True)
    try:
        run(job, jobs_dir)
    except UsageError as error:
        reason = str(error)
        write_json(error_file, {"reason": reason})
        return Outcome(FAILED, reason)
    except Exception as error:
        # One run must not take the study with it; what it raised is kept whole.
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        write_json(error_file, {"reason": reason, "traceback": traceback.format_exc()})
        return Outcome(FAILED, reason)
    if not job.is_done(jobs_dir):
        return Outcome(FAILED, "it ended without a result")
    return finished(job, jobs_dir)


def finished(job: Job, jobs_dir: Path) -> Outcome:
    """Returns how a job ended that has its result: done, unless it diverged or is another's."""
    problem = job.disagreement(jobs_dir)
    if not problem and job.summary(jobs_dir).get("diverged"):
        problem = "training diverged: its figures are those from before"
    return Outcome(FAILED, problem) if problem else Outcome(DONE)


def outcomes_on_disk(jobs: Sequence[Job], jobs_dir: Path) -> dict[str, Outcome]:
    """Returns what is on disk about jobs, in their order: those that need a failed one, blocked."""
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        found = outcome_of(job, jobs_dir)
        blocked = blocked_by(job, outcomes) if found.status == OPEN else None
        outcomes[job.id] = blocked or found
    return outcomes


def outcome_of(job: Job, jobs_dir: Path) -> Outcome:
    """Returns what is on disk about a job: done, failed before, or open."""
    if job.is_done(jobs_dir):
        return finished(job, jobs_dir)
    try:
        held = json.loads((jobs_dir / f"{job.id}.{ERROR_FILE}").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Outcome(OPEN)
    return Outcome(FAILED, str(held.get("reason", "")))


@contextlib.contextmanager
def _lock(job: Job, jobs_dir: Path) -> Iterator[bool]:
    """Holds a job for this process; yields False where another living process holds it."""
    path = jobs_dir / f"{job.id}.lock"
    with open(jobs_dir / ".locks", "a", encoding="utf-8") as guard:
        # Two processes that find the lock of a dead one must not both take it over.
        fcntl.flock(guard, fcntl.LOCK_EX)
        held = _acquire(path)
    if not held:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> bool:
    for _ in range(2):
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
            return True
        except FileExistsError:
            if _is_alive(path):
                return False
            path.unlink(missing_ok=True)
    return False


def _is_alive(path: Path) -> bool:
    """Tells whether the holder of a lock may still run; one on another host may."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        host, pid = held["host"], int(held["pid"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        # Being written just now, or cut short by a crash: old enough, it is the latter.
        return path.exists() and time.time() - path.stat().st_mtime < 10
    if host != socket.gethostname():
        return True
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
