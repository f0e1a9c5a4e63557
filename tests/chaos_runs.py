"""Short runs of every route that are struck, resumed, and compared with one that was not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tiny_hyper import SETTINGS
from tiny_pretrain import NAME, ODIR

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / "configs"
# Of one process, on a machine that has much else to do.
DEADLINE = 1200
# What is said once by whoever lost time, and differs between two runs that are the same.
TIMES = ("seconds", "provenance", "compiled_signatures", "data")


@dataclasses.dataclass(frozen=True)
class Route:
    """A kind of run.

    Attributes:
        name: What tests call it.
        arguments: (folder of data) -> flags of `main`, without the workdir.
        steps: Batches that a whole run takes.
        result: (workdir) -> what must be equal at the end.
        devices: Virtual devices; with several, numbers are equal to `tolerance`.
        tolerance: Largest relative difference of numbers.
        counted: Whether strikes count the batches of the process, see `child.py`.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    steps: int
    result: Callable[[Path], Any]
    devices: int = 1
    tolerance: float = 0.0
    counted: bool = False


def _hyper(data: Path) -> list[str]:
    flags = SETTINGS | {
        "data.path": data / "images.npz",
        "stages": "train",
        "train.steps": 10,
        "train.log_every": 1,
        "train.checkpoint_every": 2,
        "train.validate_every": 0,
    }
    return [f"--config={CONFIGS}/hyper.py:smoke", *(f"--config.{k}={v}" for k, v in flags.items())]


def _swcl(data: Path) -> list[str]:
    return [
        f"--config={CONFIGS}/swcl.py:byol",
        f"--config.data.data_dir={data}",
        f"--config.data.sets={ODIR}",
        "--config.data.image_size=24",
        "--config.data.size=16",
        f"--config.model.name={NAME}",
        "--config.train.steps=10",
        "--config.train.batch=8",
        "--config.train.log_every=1",
        "--config.train.checkpoint_every=2",
        "--config.optim.warmup_epochs=0",
    ]


def _finetune(data: Path) -> list[str]:
    return [
        f"--config={CONFIGS}/finetune.py:phantom_idrid_32px_x0.1",
        f"--config.data.data_dir={data}",
        "--config.data.size=32",
        "--config.data.recipe=hyper512",
        f"--config.model.name={NAME}",
        "--config.optim.learning_rate=0.05",
        "--config.train.epochs=5",
        "--config.train.batch=16",
        "--config.train.devices=1",
        "--config.train.ema=0.5",
        "--config.train.patience=3",
        "--config.train.checkpoint_seconds=0",
        "--config.evaluate.resamples=20",
    ]


def _study(data: Path) -> list[str]:
    return [
        f"--config={CONFIGS}/study.py:hyper_table2",
        "--config.starts=('random',)",
        "--config.sizes.mini.seeds=3",
        f"--config.finetune.data.data_dir={data}",
        "--config.finetune.train.epochs=2",
        "--config.finetune.train.checkpoint_seconds=0",
        "--config.finetune.evaluate.resamples=20",
    ]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def _curve(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hyper_result(workdir: Path) -> Any:
    params = _digest(workdir / "initializer" / "params.safetensors")
    return [_curve(workdir), _timeless(_read(workdir / "train.json")), params]


def _swcl_result(workdir: Path) -> Any:
    params = _digest(workdir / "model" / "params.safetensors")
    return [_curve(workdir), _timeless(_read(workdir / "summary.json")), params]


def _swcl_numbers(workdir: Path) -> Any:
    # Bits of parameters may differ where devices add up in another order.
    return _swcl_result(workdir)[:2]


def _finetune_result(workdir: Path) -> Any:
    params = _digest(workdir / "model" / "params.safetensors")
    return [_timeless(_read(workdir / "summary.json")), params]


def jobs_of(workdir: Path) -> Path:
    """Returns where the jobs of a study lie."""
    return workdir.parent / "jobs"


def _study_result(workdir: Path) -> Any:
    jobs = sorted(place for place in jobs_of(workdir).iterdir() if place.is_dir())
    # The table has the seconds of its jobs, and figures of theirs.
    return [(job.name, _finetune_result(job)) for job in jobs]


ROUTES = {
    route.name: route
    for route in (
        Route("hyper", _hyper, 10, _hyper_result),
        Route("swcl", _swcl, 10, _swcl_result),
        Route("swcl2", _swcl, 10, _swcl_numbers, devices=2, tolerance=1e-6),
        Route("finetune", _finetune, 10, _finetune_result),
        Route("study", _study, 10, _study_result, counted=True),
    )
}


class Ended(NamedTuple):
    """How a process ended: its exit code, what it said on stderr, and seconds."""

    code: int
    said: str
    seconds: float


def start(route: Route, data: Path, workdir: Path, strike: dict[str, Any]) -> subprocess.Popen:
    """Starts a run in a process."""
    place = [f"--workdir={workdir}"]
    if route.counted:
        place.append(f"--config.jobs_dir={jobs_of(workdir)}")
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={route.devices}",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    return subprocess.Popen(
        [sys.executable, str(TESTS / "chaos" / "child.py"), json.dumps(strike)]
        + route.arguments(data)
        + place,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen, kill_after: float | None = None) -> Ended:
    """Waits for a process, or kills it after so many seconds."""
    began = time.monotonic()
    try:
        _, said = process.communicate(timeout=DEADLINE if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        if kill_after is None:
            raise AssertionError(f"it did not end within {DEADLINE} s: {said[-3000:]}") from None
    return Ended(process.returncode, said, time.monotonic() - began)


def run(route: Route, data: Path, workdir: Path) -> Ended:
    """Runs to the end without a strike."""
    found = ended(start(route, data, workdir, {}))
    assert found.code == 0, found.said[-3000:]
    return found


def newest(route: Route, workdir: Path) -> Path | None:
    """Returns the folder of the newest checkpoint of a run."""
    folder = jobs_of(workdir) if route.counted else workdir
    places = [place for place in folder.rglob("checkpoints/*") if place.name.isdigit()]
    return max(places, key=lambda place: place.stat().st_mtime, default=None)


def harm(place: Path, rng: random.Random) -> str:
    """Truncates, changes or removes a file of a checkpoint, and returns its name."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    file = rng.choice([path for path in files if path.name != "files.json"])
    content = file.read_bytes()
    what = rng.choice(["truncate", "flip", "remove"])
    if what == "remove":
        file.unlink()
    elif what == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        spot = rng.randrange(len(content))
        file.write_bytes(content[:spot] + bytes([content[spot] ^ 1]) + content[spot + 1 :])
    return str(file.relative_to(place))


def copied(data: Path, to: Path) -> Path:
    """Copies the data, so that they may be harmed."""
    shutil.copytree(data, to)
    return to
