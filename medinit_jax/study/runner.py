"""Runs jobs one after another in this process: what is done is not done again.

Processes, of one host or of many, share the jobs of a folder: each takes those that no other has.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medinit_jax.core import lease
from medinit_jax.core.errors import InUse, UsageError
from medinit_jax.core.workdir import is_held, write_json
from medinit_jax.study.job import DONE as RESULT_FILES
from medinit_jax.study.job import Job

OPEN, DONE, FAILED, BLOCKED = "open", "done", "failed", "blocked"
ERROR_FILE = "error.json"
_POLL_SECONDS, _TELL_SECONDS = 2.0, 60.0


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
    session: str = "",
) -> dict[str, Outcome]:
    """Runs jobs in their order, each after those that it needs.

    A job that fails is kept with its sentence, jobs that need it are blocked, all others go on. A
    job that another process is running is waited for; if that process is gone, it is gone on with.

    Args:
        jobs: What is to be done; every need is among them, or done before.
        jobs_dir: Where their folders are.
        run: Runs one job.
        report: Told the outcomes so far and the name of the job that begins.
        failed: Jobs that are not tried again.
        session: Names the processes that run these jobs together: what failed for one of them is
            not tried again by the others.

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
    told = -math.inf
    while left:
        waiting = []
        for job in left:
            outcome = _advance(job, jobs_dir, run, report, outcomes, session)
            if outcome is None:
                waiting.append(job)
            else:
                outcomes[job.id] = outcome
        if len(waiting) == len(left):
            if time.monotonic() >= told + _TELL_SECONDS:
                report(outcomes, f"waits for other processes, {len(left)} jobs left")
                told = time.monotonic()
            time.sleep(_POLL_SECONDS)
        left = waiting
    report(outcomes, "")
    return {job.id: outcomes[job.id] for job in jobs}


def _advance(job, jobs_dir, run, report, outcomes, session) -> Outcome | None:
    """Brings one job as far as it gets; None if it has to wait for another process."""
    known = _settled(job, jobs_dir, session) or blocked_by(job, outcomes)
    if known or any(need not in outcomes for need in job.needs):
        return known
    held = lease.acquire(jobs_dir / f"{job.id}.lock", functools.partial(_give_up, job))
    if held is None:
        return None
    try:
        # A network's file system may keep for a while that there is no result; asked to change the
        # folder, it has to look.
        with contextlib.suppress(FileNotFoundError):
            os.utime(job.folder(jobs_dir))
        known = _settled(job, jobs_dir, session)
        if known or is_held(job.folder(jobs_dir)):
            # Someone runs it who asked for no lock of jobs, or was given up too early.
            return known
        report(outcomes, job.name)
        return _attempt(job, jobs_dir, run, session)
    finally:
        held.release()


def _settled(job: Job, jobs_dir: Path, session: str) -> Outcome | None:
    """Returns how a job ended, for whichever process of the session; None if it is to be run."""
    if job.is_done(jobs_dir):
        return finished(job, jobs_dir)
    error = _error(job, jobs_dir)
    if session and error.get("session") == session:
        return Outcome(FAILED, str(error.get("reason", "")))
    return None


def _give_up(job: Job) -> None:
    """Ends this process: another one has taken its job over, and both would write one folder."""
    print(
        f"Job {job.name} was taken over by another process, as this one was not heard of for "
        f"{lease.LAPSE:g} s; see whether its machine or its storage stood still, and say the same "
        "command again to join the study.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def blocked_by(job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Returns why a job cannot run, if what it needs failed or is blocked itself."""
    for need in job.needs:
        found = outcomes.get(need)
        if found is not None and found.status in (FAILED, BLOCKED):
            return Outcome(BLOCKED, f"it needs {need}, which is {found.status}: {found.reason}")
    return None


def _attempt(job: Job, jobs_dir: Path, run: Execute, session: str) -> Outcome | None:
    error_file = jobs_dir / f"{job.id}.{ERROR_FILE}"
    error_file.unlink(missing_ok=True)
    try:
        run(job, jobs_dir)
    except InUse:
        return None
    except UsageError as error:
        reason = str(error)
        write_json(error_file, {"reason": reason, "session": session})
        return Outcome(FAILED, reason)
    except Exception as error:
        # One run must not take the study with it; what it raised is kept whole.
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        trace = traceback.format_exc()
        write_json(error_file, {"reason": reason, "traceback": trace, "session": session})
        return Outcome(FAILED, reason)
    if not job.is_done(jobs_dir):
        reason = "it ended without a result"
        write_json(error_file, {"reason": reason, "session": session})
        return Outcome(FAILED, reason)
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
    error = _error(job, jobs_dir)
    return Outcome(FAILED, str(error.get("reason", ""))) if error else Outcome(OPEN)


def _error(job: Job, jobs_dir: Path) -> dict[str, Any]:
    """Returns what a job that failed has left of it; {} if there is nothing."""
    try:
        found = json.loads((jobs_dir / f"{job.id}.{ERROR_FILE}").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
