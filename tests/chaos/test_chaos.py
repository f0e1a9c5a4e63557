"""Runs are struck at random points; afterwards they resume, and end as if nothing had been.

A case is a route and a seed: what strikes, and at which step, is drawn from them. The fixed eight
run daily; the others are marked `chaos`: `python -m pytest tests/chaos -n0 -m chaos`.
"""

import contextlib
import random
import shutil
import subprocess
import time

import chaos_runs
import numpy as np
import pytest
from chaos_runs import ROUTES, ended, start

# The exit code of a process that is struck so.
CODES = {
    "term": 75,
    "int": 130,
    "clock": 75,
    "full": 2,
    "kill": -9,
    "save": -9,
    "listing": -9,
    "time": -9,
    "corrupt": -9,
    "record": -9,
}
OF_TRAINING = tuple(CODES)
OF_STUDY = ("term", "int", "kill", "save", "time", "corrupt", "full")
STRIKES = 5
# Bytes that a file may have where the disk is full: fewer than a checkpoint's, more than a curve's.
ROOM = 16384
FIXED = (
    ("hyper", "term"),
    ("hyper", "save"),
    ("swcl", "clock"),
    ("swcl", "corrupt"),
    ("finetune", "kill"),
    ("finetune", "full"),
    ("finetune", "record"),
    ("study", "kill"),
)


def drawn(name, seed):
    """Returns the strikes of a case, in order: (kind, step)."""
    rng = random.Random(f"{name} {seed}")
    route = ROUTES[name]
    kinds = rng.sample(OF_STUDY if route.counted else OF_TRAINING, STRIKES)
    # After a kill at any time it is not known what is left to strike, and the last process is one
    # that lives to say what was harmed.
    kinds.sort(key=lambda kind: (kind == "corrupt", kind == "time"))
    # The last step but one is the last that a signal interrupts.
    steps = sorted(rng.sample(range(1, route.steps - 1), STRIKES))
    if route.counted:
        # Each process counts its own batches, and what is done is not done again.
        steps = [rng.randrange(1, 4) for _ in range(STRIKES)]
    return list(zip(kinds, steps, strict=True))


def cases():
    for name in ROUTES:
        for seed in range({"study": 2, "swcl2": 1}.get(name, 3)):
            kinds = "+".join(f"{kind}@{step}" for kind, step in drawn(name, seed))
            yield pytest.param(name, seed, id=f"{name}-{seed}-{kinds}")


class Case:
    """One run in its own folders."""

    def __init__(self, route, data, tmp_path, seconds, tally, rng):
        self.route, self.data, self.seconds, self.tally, self.rng = route, data, seconds, tally, rng
        self.workdir = tmp_path / "run"
        self.harmed, self.late = "", False

    def launch(self, strike, kill_after=None):
        return ended(start(self.route, self.data, self.workdir, strike), kill_after)

    def strike(self, kind, at):
        # After the clock has moved, the signal comes with the next batch.
        at -= kind == "clock"
        strike = {"kind": kind, "at": at, "counted": self.route.counted}
        if kind in ("corrupt", "record"):
            strike["kind"] = "kill"
        if kind == "save":
            strike["delay"] = self.rng.uniform(0, 0.2)
        if kind == "full":
            strike["size"] = ROOM
        if kind == "clock":
            strike["size"] = self.rng.choice([-3, 400]) * 86400
        if kind == "time":
            found = self.launch({}, self.rng.uniform(0.2, 0.95) * self.seconds)
        else:
            found = self.launch(strike)
        # A run may be through before its time has come, and then there is nothing left to strike.
        self.late = self.late or kind == "time"
        missed = self.late and found.code == 0
        # A study goes on with its other jobs, which fail alike, and says so at its end.
        failed = kind == "full" and self.route.counted
        assert missed or found.code == (0 if failed else CODES[kind]), found.said[-3000:]
        assert "Traceback" not in found.said, found.said[-3000:]
        if failed:
            assert "jobs failed" in found.said
        elif kind == "full":
            assert "could not be written (File too large)" in found.said
        self.tally(self.route.name, kind, "missed" if missed else "struck")
        if kind == "corrupt" and not missed:
            self.corrupt()
        if kind == "record" and not missed:
            self.truncate_record()
        return not missed

    def corrupt(self):
        """Harms the newest checkpoint, and does what a run that has no other says."""
        place = chaos_runs.newest(self.route, self.workdir)
        if place is None:
            return
        others = [p for p in place.parent.iterdir() if p.name.isdigit() and p != place]
        name = chaos_runs.harm(place, self.rng)
        if others:
            self.harmed = name
            return
        found = self.launch({})
        if self.route.counted:
            # A study goes on with its other jobs and says at the end that this one failed.
            assert found.code == 0 and "1 jobs failed" in found.said, found.said[-3000:]
        else:
            assert found.code == 2 and "Traceback" not in found.said, found.said[-3000:]
            assert name in found.said and f"remove the folder {place}" in found.said
        shutil.rmtree(place)

    def truncate_record(self):
        """Truncates a file of records, sees it refused, and puts the whole one back."""
        files = sorted(self.data.rglob("*.array_record*")) or sorted(self.data.glob("*.npz"))
        files = [file for file in files if self.uses(file)]
        file = self.rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(content[: self.rng.randrange(1, len(content))])
        found = self.launch({})
        file.write_bytes(content)
        assert found.code == 2 and "Traceback" not in found.said, found.said[-3000:]
        assert file.name in found.said

    def uses(self, file):
        words = {"finetune": "phantom_idrid", "swcl": "phantom_odir"}
        return words.get(self.route.name.rstrip("2"), "images.npz") in str(file)

    def finish(self, whole):
        """Resumes the run, and compares it with the one that nothing interrupted."""
        found = self.launch({})
        assert found.code == 0, found.said[-3000:]
        if self.harmed:
            assert self.harmed in found.said and "goes on from step" in found.said
        equal(self.route.result(self.workdir), whole, self.route.tolerance)
        left = [p for p in self.workdir.parent.rglob("*") if "orbax-checkpoint-tmp" in p.name]
        assert not left


def equal(found, wanted, tolerance):
    if not tolerance:
        assert found == wanted
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            equal(found[name], wanted[name], tolerance)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            equal(one, other, tolerance)
    elif isinstance(wanted, float):
        np.testing.assert_allclose(found, wanted, rtol=tolerance)
    else:
        assert found == wanted


@pytest.fixture
def make_case(data, tmp_path, whole, tally):
    """Returns a function: (route, seed, kinds) to a case, with its data to harm if it will."""

    def make(route, seed, kinds):
        seconds, _ = whole(route)
        rng = random.Random(f"{route.name} {seed} points")
        # Route 1 knows its images by their place.
        own = chaos_runs.copied(data, tmp_path / "data") if "record" in kinds else data
        own = data if route.name == "hyper" else own
        return Case(route, own, tmp_path, seconds, tally, rng)

    return make


@pytest.mark.parametrize(("name", "kind"), FIXED)
def test_struck_once(make_case, whole, name, kind):
    route = ROUTES[name]
    case = make_case(route, 0, [kind])
    case.strike(kind, 2 if route.counted else 6)
    case.finish(whole(route)[1])


@pytest.mark.chaos
@pytest.mark.parametrize(("name", "seed"), list(cases()))
def test_struck_again_and_again(make_case, whole, name, seed):
    route, strikes = ROUTES[name], drawn(name, seed)
    case = make_case(route, seed, [kind for kind, _ in strikes])
    for kind, at in strikes:
        if not case.strike(kind, at):
            break
    case.finish(whole(route)[1])


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2))
def test_of_two_processes_of_a_study_one_is_killed(make_case, whole, tally, seed):
    route = ROUTES["study"]
    case = make_case(route, seed, [])
    # A workdir is for one; the jobs are for both.
    places = [case.workdir, case.workdir.with_name("second")]
    both = [start(route, case.data, place, {}) for place in places]
    try:
        time.sleep(case.rng.uniform(0.4, 0.9) * case.seconds)
        both[seed % 2].kill()
        codes = [ended(one).code for one in both]
    finally:
        for one in both:
            one.kill()
    assert codes[1 - seed % 2] == 0
    tally(route.name, "one of two", "struck" if codes[seed % 2] == -9 else "missed")
    case.finish(whole(route)[1])


@contextlib.contextmanager
def small_disk(place, size):
    place.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this user may mount no small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.chaos
# Room for three checkpoints of a run; those of the pretraining have 48 MB.
@pytest.mark.parametrize(("name", "size"), [("swcl", "160m"), ("finetune", "16m")])
def test_a_disk_that_fills_up(make_case, whole, tally, name, size):
    route = ROUTES[name]
    case = make_case(route, 0, [])
    with small_disk(case.workdir.parent / "disk", size):
        case.workdir = case.workdir.parent / "disk" / "run"
        case.strike("term", 5)
        filler = case.workdir.parent / "filler"
        # Unbuffered: closing must have nothing left to write.
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        found = case.launch({})
        assert found.code == 2 and "Traceback" not in found.said, found.said[-3000:]
        assert "(No space left on device)" in found.said
        tally(name, "full disk", "struck")
        filler.unlink()
        case.finish(whole(route)[1])
