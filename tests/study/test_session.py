"""Processes that run one study together: what each knows, and what two of them do."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from medinit_jax.core import lease
from medinit_jax.core.errors import InUse, UsageError
from medinit_jax.study import run
from medinit_jax.study.session import SESSION_FILE, joined

HERE = Path(__file__).resolve().parent
# Runs the command with routes that only leave their figures, after a while; the machine is named
# by hand, as two hosts would be. The initializer of CT fails.
PROCESS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from conftest import Routes
from medinit_jax import main as main_lib
from medinit_jax.core import lease
from medinit_jax.core.errors import UsageError

lease.BEAT, lease.LAPSE = 0.2, float(sys.argv[3])
lease._machine = lambda: sys.argv[2]
routes = Routes()

def on(config, summary):
    with open(sys.argv[4], "a") as file:
        file.write(f"{os.getpid()} {routes.calls[-1]}\\n")
    # One that starts late finds something left to do.
    while len({line.split()[0] for line in open(sys.argv[4])}) < 2:
        time.sleep(0.1)
    time.sleep(0.15)
    if config.route == "hyper" and config.data.name == "ct":
        raise UsageError("No images of CT.")

routes.on = on
main_lib.ROUTES["finetune"], main_lib.ROUTES["hyper"] = routes.finetune, routes.hyper
sys.exit(main_lib.main(["main", *sys.argv[5:]]))
"""


@pytest.fixture
def place(tmp_path):
    return tmp_path / "study", tmp_path / "jobs"


def enter(place, begun=None, alone="", check=lambda: None):
    """Returns a session that is entered, as a context manager."""

    def claim(begins):
        check()
        if begun is not None:
            begun.append(begins)

    return joined(*place, claim, Console(file=io.StringIO()), alone)


def test_the_first_conducts_and_writes(place):
    begun = []
    with enter(place, begun) as first, enter(place, begun) as second:
        assert begun == [True, False] and first.id == second.id
        assert first.conducts() and not second.conducts()
        assert first.closes()
        first.close()
        assert not second.closes() and not second.conducts()
    assert not (place[0] / SESSION_FILE).exists()
    with enter(place, begun) as third:
        assert begun[-1] and third.id != first.id


def test_another_one_takes_the_place_of_one_that_is_gone(place):
    with enter(place) as second_first:
        with enter(place) as second, enter(place) as third:
            second_first.leave()
            assert second.closes() and not third.conducts()
            second.close()
            assert not third.closes()


def test_a_session_that_was_cut_off_begins_anew(place):
    with enter(place) as first:
        pass
    assert (place[0] / SESSION_FILE).exists()
    begun = []
    with enter(place, begun) as again:
        assert begun == [True] and again.id != first.id and again.closes()


def test_what_cannot_be_joined_says_so(place, tmp_path):
    def refuse():
        raise UsageError("Other settings.")

    with enter(place):
        with pytest.raises(InUse, match=rf"process {os.getpid()} on .*, and Ray shares them; wait"):
            with enter(place, alone="Ray shares them"):
                pass
        with pytest.raises(UsageError, match="another folder of jobs; set config.jobs_dir"):
            with enter((place[0], tmp_path / "elsewhere")):
                pass
        with pytest.raises(UsageError, match="Other settings"):
            with enter(place, check=refuse):
                pass
    # One that is refused as it begins lets the next one begin.
    with pytest.raises(UsageError, match="Other settings"), enter(place, check=refuse):
        pass
    with enter(place) as session:
        assert session.conducts()


def test_one_for_a_single_process_waits_whether_a_host_elsewhere_is_still_there(place, monkeypatch):
    monkeypatch.setattr(lease, "LAPSE", 0.5)
    place[0].mkdir()
    gone = {"host": "far", "pid": 1, "machine": "far", "token": "x"}
    (place[0] / "conductor.lock.0").write_text(json.dumps(gone))
    with enter(place, alone="Ray shares them") as session:
        assert session.conducts()


def test_other_settings_beside_a_process_at_work_are_refused(study, routes, tmp_path):
    workdir, refused = tmp_path / "study", []

    def another(config, summary):
        if not refused:
            with pytest.raises(UsageError) as error:
                run(study("hyper_fig4", "--config.first_seed=7", "--config.fresh=True"), workdir)
            refused.append(str(error.value))

    routes.on = another
    run(study(), workdir)
    assert "is at work with other settings of config.first_seed" in refused[0]
    assert json.loads((workdir / "summary.json").read_text())["seeds"] == [42, 43]


class Two:
    """Two processes of one study, and what they left."""

    def __init__(self, tmp_path):
        self.workdir, self.ran = tmp_path / "study", tmp_path / "ran.txt"
        self.jobs_dir, self.started = tmp_path / "jobs", []

    def start(self, rank, machine, lapse=600.0):
        root = HERE.parents[1]
        words = [f"--config={root}/configs/study.py:hyper_fig4", f"--workdir={self.workdir}"]
        words += [f"--config.jobs_dir={self.jobs_dir}", "--coordinator=host0:9876"]
        words += ["--processes=2", f"--process={rank}"]
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, HERE, machine, str(lapse), self.ran, *words],
            env=os.environ | {"PYTHONPATH": str(root)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def runs(self):
        """Returns (process, job) of every run that began."""
        if not self.ran.exists():
            return []
        return [line.split() for line in self.ran.read_text().splitlines()]

    def wait_for(self, condition):
        until = time.monotonic() + 500
        while not condition():
            assert time.monotonic() < until and all(one.poll() is None for one in self.started)
            time.sleep(0.05)

    def result(self):
        jobs = json.loads((self.workdir / "jobs.json").read_text())
        for job in jobs:
            del job["folder"]
        return jobs, json.loads((self.workdir / "summary.json").read_text())


@pytest.fixture
def two(tmp_path):
    made = Two(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def alone(study, routes, tmp_path):
    """Returns what one process leaves of the study that `PROCESS` runs."""

    def fail(config, summary):
        if config.route == "hyper" and config.data.name == "ct":
            raise UsageError("No images of CT.")

    routes.on = fail
    one = Two(tmp_path / "alone")
    run(study("hyper_fig4", f"--config.jobs_dir={one.jobs_dir}"), one.workdir)
    return one.result()


def test_two_processes_run_every_job_once_and_write_one_report(alone, two):
    started = [two.start(rank, "one machine") for rank in range(2)]
    said = [one.communicate(timeout=500)[1] for one in started]
    assert [one.returncode for one in started] == [0, 0], said
    assert all("The processes of this route do not meet" in text for text in said), said
    assert sorted("Report: " in text for text in said) == [False, True], said
    assert sorted("Report, by another process: " in text for text in said) == [False, True], said
    runs = two.runs()
    assert len({job for _, job in runs}) == len(runs)
    assert len({process for process, _ in runs}) == 2
    assert two.result() == alone
    assert sum(job["status"] == "failed" for job in alone[0]) == 1


@pytest.mark.parametrize(
    ("second", "lapse", "killed"),
    # On one machine the system tells that a process has ended; otherwise it has to be given up.
    [
        pytest.param("a", 600.0, 0, id="one machine"),
        pytest.param("b", 10.0, 0, id="the first of two"),
        pytest.param("b", 10.0, 1, id="the second of two", marks=pytest.mark.slow),
    ],
)
def test_of_two_hosts_one_dies_in_a_job(alone, two, second, lapse, killed):
    first = two.start(0, "a", lapse)
    two.wait_for((two.workdir / SESSION_FILE).exists)
    both = [first, two.start(1, second, lapse)]
    pids = [str(one.pid) for one in both]
    two.wait_for(lambda: {process for process, _ in two.runs()} == set(pids))
    both[killed].send_signal(signal.SIGKILL)
    both[killed].communicate()
    said = both[1 - killed].communicate(timeout=500)[1]
    assert both[1 - killed].returncode == 0 and "Report: " in said, said
    runs = two.runs()
    repeated = [job for _, job in runs if [name for _, name in runs].count(job) > 1]
    # At most the job that the killed process was on.
    last = [job for process, job in runs if process == pids[killed]][-1]
    assert repeated in ([], [last, last])
    assert two.result() == alone
    assert not (two.workdir / SESSION_FILE).exists()
