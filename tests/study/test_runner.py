import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import claim_workdir, write_json
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
    assert not list(tmp_path.glob("*.lock"))
    on_disk = [one.status for one in outcomes_on_disk(chain, tmp_path).values()]
    assert on_disk == [DONE, OPEN, OPEN, OPEN]
    assert set(run_jobs(chain, tmp_path, finish).values()) == {Outcome(DONE)}


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, chain):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = tmp_path / f"{chain[0].id}.lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid}))
    assert run_jobs(chain[:1], tmp_path, finish)[chain[0].id] == Outcome(DONE)
    assert not lock.exists()


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_a_job_that_another_process_runs_is_waited_for(tmp_path, chain, monkeypatch, host):
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    name = socket.gethostname() if host == "here" else "another.host"
    (tmp_path / f"{chain[0].id}.lock").write_text(json.dumps({"host": name, "pid": holder.pid}))
    ran = []

    def slept(seconds):
        # Meanwhile the other process finishes.
        finish(chain[0], tmp_path)

    def run(one, jobs_dir):
        ran.append(one.name)
        finish(one, jobs_dir)

    monkeypatch.setattr(time, "sleep", slept)
    try:
        found = run_jobs([chain[0], chain[3]], tmp_path, run)
    finally:
        monkeypatch.undo()
        holder.kill()
        holder.wait()
    assert set(found.values()) == {Outcome(DONE)} and ran == ["apart"]


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
