"""The program as `python -m medinit_jax.main` runs it, with one strike of fate:

    python child.py '{"kind": "save", "at": 3, "delay": 0.02}' ARGUMENTS

The strike is armed by the batch of step `at`; in a study, whose jobs count from 0 each, by
batch `at` of this process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tiny_hyper import TINY
from tiny_pretrain import NAME, tiny_zoo

from medinit_jax.arch import space
from medinit_jax.core import interrupt, listing
from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.data.pipeline import Batches
from medinit_jax.main import main
from medinit_jax.study import studies
from medinit_jax.study.plan import Cell

SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Strike:
    """Does its harm once the batch has come."""

    def __init__(
        self, kind: str, at: int, delay: float = 0.0, size: int = 0, counted: bool = False
    ):
        self.kind, self.at, self.delay, self.size, self.counted = kind, at, delay, size, counted
        self.batches = 0
        self.armed = False

    def install(self) -> None:
        """Puts itself between the program and its batches, checkpoints and clock."""
        following, writing, listed = Batches.__next__, Checkpoints._write, listing.write_listing

        def next_batch(batches: Batches) -> Any:
            self.batches += 1
            reached = self.batches if self.counted else batches.get_state()["step"]
            if reached >= self.at and not self.armed:
                self.armed = True
                self.begin()
            elif self.armed and self.kind == "clock":
                os.kill(os.getpid(), signal.SIGTERM)
                self.kind = "done"
            return following(batches)

        def write(*given: Any) -> Any:
            if self.armed and self.kind == "save":
                threading.Timer(self.delay, die).start()
            if self.armed and self.kind == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
            return writing(*given)

        def write_listing(place: Path) -> None:
            if self.armed and self.kind == "listing":
                die()
            listed(place)

        Batches.__next__ = next_batch
        Checkpoints._write = write
        listing.write_listing = write_listing

    def begin(self) -> None:
        if self.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.kind])
        elif self.kind == "clock":
            clock, clock_ns = time.time, time.time_ns
            time.time = lambda: clock() + self.size
            time.time_ns = lambda: clock_ns() + 10**9 * self.size


def cells(config: Any) -> list[Cell]:
    """The least study that there is: one task and network, from two starts that need no job."""
    return [Cell("T2b", "aptos_dr", NAME, start) for start in config.starts]


if __name__ == "__main__":
    interrupt.raise_on_sigterm()
    # TensorboardX imports PyTorch where it is installed, which takes longer than all the rest.
    sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]
    space.SPACES["tiny"] = TINY
    small = studies.STUDIES["hyper_table2"]._replace(cells=cells)
    studies.STUDIES["hyper_table2"] = small
    chosen = json.loads(sys.argv[1])
    if chosen:
        Strike(**chosen).install()
    with tiny_zoo():
        sys.exit(main(["main", *sys.argv[2:]]))
