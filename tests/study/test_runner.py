import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from medinit_jax.core import lease
from medinit_jax.core.errors import InUse, UsageError
from medinit_jax.core.workdir import claim_workdir, locked, write_json
from medinit_jax.study.job import Job
from medinit_jax.study.runner import (
    BLOCKED,
    DONE,
    FAILED,
    OPEN,
    Outcome,
    outcomes_on_disk,
    run_jobs,
)


def job(name, *needs):
    return Job("fake", name, {"name": name, "needs": {str(i): f"job:{n}" for i, n in
               enumerate(needs)}}, {})  # fmt: skip


@pytest.fixture
def chain():
    first = job("first")
    second = job("second", first.id)
    return [first, second, job("third", second.id), job("apart")]


def finish(one, jobs_dir, **summary):
    claim_workdir(one.folder(jobs_dir), one.resolved(jobs_dir), "fake")
    write_json(one.folder(jobs_dir) / "summary.json", {"diverged": False, **summary})


def test_what_is_done_is_not_done_again(tmp_path, chain):
    ran = []

    def run(one, jobs_dir):
        ran.append(one.name)
        finish(one, jobs_dir)

    for _ in range(2):
        assert set(run_jobs(chain, tmp_path, run).values()) == {Outcome(DONE)}
    assert ran == ["first", "second", "third", "apart"]


def test_a_failure_blocks_what_needs_it_and_nothing_else_until_it_is_mended(tmp_path, chain):
    def fails(one, jobs_dir):
        if one.name == "second":
            raise UsageError("No such file.")
        finish(one, jobs_dir)

    found = run_jobs(chain, tmp_path, fails)
    assert found == outcomes_on_disk(chain, tmp_path)
    assert [one.status for one in found.values()] == [DONE, FAILED, BLOCKED, DONE]
    assert found[chain[1].id].reason == "No such file."
    assert chain[1].id in found[chain[2].id].reason and "No such file." in found[chain[2].id].reason
    assert set(run_jobs(chain, tmp_path, finish).values()) == {Outcome(DONE)}
    assert set(outcomes_on_disk(chain, tmp_path).values()) == {Outcome(DONE)}


def test_what_failed_before_can_be_left_alone(tmp_path, chain):
    failed = {chain[0].id: Outcome(FAILED, "x")}
    found = run_jobs(chain, tmp_path, finish, failed=failed)
    assert [one.status for one in found.values()] == [FAILED, BLOCKED, BLOCKED, DONE]


def test_a_crash_is_kept_with_its_traceback(tmp_path, chain):
    def crashes(one, jobs_dir):
        raise ZeroDivisionError("by 0")

    found = run_jobs(chain[:1], tmp_path, crashes)
    assert found[chain[0].id] == Outcome(FAILED, "ZeroDivisionError: by 0")
    kept = json.loads((tmp_path / f"{chain[0].id}.error.json").read_text())
    assert "crashes" in kept["traceback"]


def test_a_run_that_diverged_has_failed(tmp_path, chain):
    found = run_jobs(chain, tmp_path, lambda one, folder: finish(one, folder, diverged=True))
    assert [one.status for one in found.values()] == [FAILED, BLOCKED, BLOCKED, FAILED]
    assert "diverged" in found[chain[0].id].reason


def test_a_need_that_is_half_done_is_not_done(tmp_path, chain):
    chain[0].folder(tmp_path).mkdir(parents=True)
    assert run_jobs(chain[1:2], tmp_path, finish)[chain[1].id].status == BLOCKED
    finish_first = chain[0].folder(tmp_path)
    finish_first.rmdir()
    finish(chain[0], tmp_path)
    assert run_jobs(chain[1:2], tmp_path, finish)[chain[1].id].status == DONE


def test_an_interrupt_goes_through_and_the_next_call_goes_on(tmp_path, chain):
    def stops(one, jobs_dir):
        if one.name == "second":
            raise KeyboardInterrupt
        finish(one, jobs_dir)

    with pytest.raises(KeyboardInterrupt):
        run_jobs(chain, tmp_path, stops)
    assert not list(tmp_path.glob("*.lock*"))
    on_disk = [one.status for one in outcomes_on_disk(chain, tmp_path).values()]
    assert on_disk == [DONE, OPEN, OPEN, OPEN]
    assert set(run_jobs(chain, tmp_path, finish).values()) == {Outcome(DONE)}


def test_a_job_that_another_process_runs_is_waited_for(tmp_path, chain, monkeypatch):
    held = lease.acquire(tmp_path / f"{chain[0].id}.lock")
    ran, told = [], []

    def slept(seconds):
        # Meanwhile the other process finishes.
        finish(chain[0], tmp_path)

    def run(one, jobs_dir):
        ran.append(one.name)
        finish(one, jobs_dir)

    monkeypatch.setattr(time, "sleep", slept)
    try:
        found = run_jobs(
            [chain[0], chain[3]], tmp_path, run, lambda outcomes, name: told.append(name)
        )
    finally:
        monkeypatch.undo()
        held.release()
    assert set(found.values()) == {Outcome(DONE)} and ran == ["apart"]
    assert told == ["apart", "waits for other processes, 1 jobs left", ""]


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_folder_that_a_run_holds_is_waited_for(tmp_path, chain, monkeypatch, moment):
    """Someone runs the job by its own command, and began before we looked, or just after."""
    holding = contextlib.ExitStack()
    if moment == "before":
        finish(chain[0], tmp_path)
        (chain[0].folder(tmp_path) / "summary.json").unlink()
        holding.enter_context(locked(chain[0].folder(tmp_path)))
    ran = []

    def run(one, jobs_dir):
        ran.append(one.name)
        if len(ran) == 1 and moment == "between":
            raise InUse("in use")
        with locked(one.folder(jobs_dir)):
            finish(one, jobs_dir)

    monkeypatch.setattr(time, "sleep", lambda seconds: holding.close())
    assert run_jobs(chain[:1], tmp_path, run)[chain[0].id] == Outcome(DONE)
    assert len(ran) == (1 if moment == "before" else 2)


def test_what_failed_for_one_process_is_not_tried_by_the_others_of_its_session(tmp_path, chain):
    ran = []

    def fails(one, jobs_dir):
        ran.append(one.name)
        raise UsageError("No such file.")

    for session in ("a", "a", "b"):
        found = run_jobs(chain[:1], tmp_path, fails, session=session)
        assert found[chain[0].id] == Outcome(FAILED, "No such file.")
    assert ran == ["first", "first"]
    # Without a session, as with the commands of single jobs, every command tries.
    run_jobs(chain[:1], tmp_path, fails)
    assert len(ran) == 3


def test_a_run_that_leaves_no_result_has_failed(tmp_path, chain):
    found = run_jobs(chain[:1], tmp_path, lambda one, folder: None)
    assert found[chain[0].id].status == FAILED and "without a result" in found[chain[0].id].reason
    assert outcomes_on_disk(chain[:1], tmp_path) == found


RACER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_runner import finish, job
from medinit_jax.study.runner import run_jobs

def run(one, jobs_dir):
    with open(jobs_dir / "ran.txt", "a") as file:
        file.write(one.name + "\\n")
    time.sleep(float(sys.argv[3]))
    finish(one, jobs_dir)

run_jobs([job(f"j{i}") for i in range(6)], Path(sys.argv[1]), run)
"""


def _racer(jobs_dir, seconds):
    words = [sys.executable, "-c", RACER, str(jobs_dir), os.path.dirname(__file__), str(seconds)]
    return subprocess.Popen(words)


def test_two_processes_share_the_jobs(tmp_path):
    racers = [_racer(tmp_path, 0.05) for _ in range(2)]
    assert [racer.wait(timeout=60) for racer in racers] == [0, 0]
    assert sorted((tmp_path / "ran.txt").read_text().split()) == [f"j{i}" for i in range(6)]


def test_after_a_kill_the_rest_is_done(tmp_path):
    racer = _racer(tmp_path, 0.3)
    jobs = [job(f"j{i}") for i in range(6)]
    while not jobs[1].is_done(tmp_path) and racer.poll() is None:
        time.sleep(0.02)
    racer.send_signal(signal.SIGKILL)
    racer.wait()
    done = sum(one.is_done(tmp_path) for one in jobs)
    assert 2 <= done < 6
    ran = []

    def run(one, jobs_dir):
        ran.append(one.name)
        finish(one, jobs_dir)

    assert set(run_jobs(jobs, tmp_path, run).values()) == {Outcome(DONE)}
    assert len(ran) == 6 - done
