import io
import json

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from medinit_jax.core import log, loop
from medinit_jax.core.progress import Progress
from medinit_jax.core.timing import Stopwatch


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_parts_and_rates_are_per_step_since_the_last_call():
    clock = Clock()
    watch = Stopwatch({"images": 8}, seen=lambda step: {"seen": 3.0 * step}, clock=clock)
    clock.now += 50
    watch.restart()
    for _ in range(4):
        with watch.part("data"):
            clock.now += 0.5
        with watch.part("host"):
            clock.now += 0.25
        clock.now += 0.25
    found = watch.figures(step=10, steps=4)
    assert found["run/data_ms"] == 500 and found["run/host_ms"] == 250
    assert found["run/step_ms"] == 1000 and found["run/images_per_s"] == 8
    assert found["run/seen"] == 30 and found["run/memory_mb"] > 10
    clock.now += 2
    assert watch.figures(step=11, steps=1)["run/step_ms"] == 2000
    assert "run/data_ms" not in watch.figures(step=12, steps=1)


def test_what_is_compiled_within_is_counted():
    compile_one = lambda n: jax.jit(lambda x: x * n + 1).lower(jnp.ones(n)).compile()  # noqa: E731
    with Stopwatch({}) as watch:
        compile_one(3)
        watch.figures(1, 1)
        compile_one(5)
        compile_one(7)
        found = watch.figures(2, 1)
    assert found["run/compiled"] >= 2 and found["run/compile_s"] > 0
    assert watch.figures(3, 1)["run/compiled"] == 0
    compile_one(9)
    assert watch.figures(4, 1)["run/compiled"] == 0


def test_a_part_that_fails_is_counted_all_the_same():
    clock = Clock()
    watch = Stopwatch({}, clock=clock)
    with pytest.raises(KeyError), watch.part("data"):
        clock.now += 1
        raise KeyError
    assert watch.figures(1, 1)["run/data_ms"] == 1000


def trained(folder, watch):
    """Runs ten steps of nothing with all writers; returns what the console showed."""

    def step_fn(state, step, batch):
        return state, {"loss": jnp.float32(step)}

    class State:
        step, skipped = 0, 0

    console = Console(file=io.StringIO(), width=200)
    writer = log.create_writer(folder, console)
    with watch, Progress("train", 10, console) as bar:
        loop.run(
            step_fn, State(), loop.LoopConfig(10, 5, 100), writer=writer, progress=bar, watch=watch
        )
    writer.close()
    return console.file.getvalue()


def test_timings_lie_apart_from_results(tmp_path):
    shown = trained(tmp_path, Stopwatch({"images": 2}))
    read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]  # noqa: E731
    assert read("metrics.jsonl") == [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 7.0}]
    timings = read("timing.jsonl")
    assert [line["step"] for line in timings] == [5, 10]
    assert {"run/data_ms", "run/host_ms", "run/device_wait_ms", "run/images_per_s"} <= set(
        timings[0]
    )
    assert "loss" in shown and "run/" not in shown


@pytest.mark.parametrize(("steps", "traces"), [(0, 0), (2, 1), (100, 1)])
def test_steps_are_traced_when_asked_for(tmp_path, steps, traces):
    trained(tmp_path, Stopwatch({}, steps, tmp_path / "profile"))
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == traces
