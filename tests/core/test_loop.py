import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from medinit_jax.core import interrupt, log, loop
from medinit_jax.core import state as state_lib
from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.core.errors import UsageError
from medinit_jax.core.progress import Progress

OPTIMIZER = optax.sgd(0.05, momentum=0.9)


class Counter:
    """Batches 0, 1, 2, ... with a position, as a grain iterator has it."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return np.float32(self.position - 1)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@jax.jit
def train_step(state, step, batch):
    def loss_fn(params):
        return jnp.mean((params["w"] - jnp.sin(batch)) ** 2) + 0.01 * step

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    state, metrics = state_lib.apply_gradients(state, gradients, OPTIMIZER, loss)
    return state, metrics | {"loss": loss}


def step_fn(state, step, batch):
    return train_step(state, jnp.float32(step), batch)


def start():
    return state_lib.create({"w": jnp.arange(4, dtype=jnp.float32)}, OPTIMIZER)


class Run:
    """One process's worth of a run in a workdir."""

    def __init__(self, folder, total=20, log_every=5, checkpoint_every=4, **options):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.config = loop.LoopConfig(total, log_every, checkpoint_every)
        self.options = options

    def __call__(self, step=step_fn, stop_after=None):
        checkpoints, batches = Checkpoints(self.folder / "checkpoints"), Counter()
        state = loop.resume(checkpoints, start(), batches)
        self.started_at = int(state.step)
        writer = log.JsonlWriter(self.folder / "metrics.jsonl", self.started_at)
        console = Console(file=io.StringIO())
        try:
            with Progress("train", self.config.total_steps, console) as progress:
                return loop.run(
                    step,
                    state,
                    self.config,
                    writer=writer,
                    progress=progress,
                    batches=batches,
                    checkpoints=checkpoints,
                    extra={"version": "x"},
                    stop_after=stop_after,
                    **self.options,
                )
        finally:
            writer.close()
            self.saved = checkpoints.steps()
            checkpoints.close()

    def lines(self):
        text = (self.folder / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_scalars_are_means_over_each_window(tmp_path):
    state, losses = start(), []
    for step in range(12):
        state, metrics = step_fn(state, step, np.float32(step))
        losses.append(float(metrics["loss"]))
    run = Run(tmp_path / "run", total=12)
    final = run()
    assert bits(final) == bits(state)
    lines = run.lines()
    assert [line["step"] for line in lines] == [5, 10, 12]
    expected = [np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])]
    np.testing.assert_allclose([line["loss"] for line in lines], expected, rtol=1e-5)
    assert all(line["skipped"] == 0 for line in lines)


def test_the_device_is_waited_for_once_in_a_window(tmp_path, monkeypatch):
    fetched = []
    original = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or original(x))
    Run(tmp_path / "run", total=12, checkpoint_every=100)()
    assert [len(x) for x in fetched if isinstance(x, list) and x] == [5, 5, 2]


@pytest.mark.parametrize("stop", [1, 4, 7, 15])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    whole = Run(tmp_path / "whole")()
    run = Run(tmp_path / "parts")
    partial = run(stop_after=stop)
    assert int(partial.step) == stop and run.saved[-1] == stop
    final = run()
    assert run.started_at == stop
    assert bits(final) == bits(whole)
    assert run.saved == [16, 20]
    steps = [line["step"] for line in run.lines()]
    assert steps == sorted(set(steps)) and steps[-1] == 20


def test_resumed_from_an_older_checkpoint_writes_no_line_twice(tmp_path):
    run = Run(tmp_path / "run", total=20, checkpoint_every=8)

    class Crash(Exception):
        pass

    def crash(state, step, batch):
        if step == 14:
            raise Crash
        return step_fn(state, step, batch)

    with pytest.raises(Crash):
        run(crash)
    assert run.saved == [8] and [line["step"] for line in run.lines()] == [5, 10]
    final = run()
    assert run.started_at == 8
    assert bits(final) == bits(Run(tmp_path / "whole")())
    assert [line["step"] for line in run.lines()] == [5, 10, 15, 20]


def test_a_complete_run_does_nothing_more(tmp_path):
    run = Run(tmp_path / "run")
    run()
    before = run.lines()

    def unexpected(state, step, batch):
        raise AssertionError("a step was taken")

    assert int(run(unexpected).step) == 20
    assert run.lines() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)
    run = Run(tmp_path / "run")

    def interrupted(state, step, batch):
        if step == 5:
            os.kill(os.getpid(), number)
        return step_fn(state, step, batch)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(interrupted)
    assert interrupt.exit_code(caught.value) == {signal.SIGINT: 130, signal.SIGTERM: 75}[number]
    assert run.saved[-1] == 6
    assert signal.getsignal(number) is before
    assert bits(run()) == bits(Run(tmp_path / "whole")())


def broken_at(*steps):
    def step(state, number, batch):
        return step_fn(state, number, np.float32(np.nan) if number in steps else batch)

    return step


def test_a_signal_in_the_last_step_reaches_what_the_steps_are_part_of(tmp_path):
    """As in fine-tuning, where each epoch is a run of its own."""

    def step(state, number, batch):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return step_fn(state, number, batch)

    with loop.stop_on_signal() as stopped:
        Run(tmp_path / "run", total=3)(step=step)
        assert stopped.is_set()
    with loop.stop_on_signal() as stopped:
        assert not stopped.is_set()


def test_skipped_steps_are_counted_named_and_left_out_of_the_means(tmp_path):
    run = Run(tmp_path / "run", describe=lambda step: f"architectures {2 * step}, {2 * step + 1}")
    final = run(broken_at(3, 11))
    assert int(final.skipped) == 2 and int(final.step) == 20
    scalars = [line for line in run.lines() if "loss" in line]
    assert [line["skipped"] for line in scalars] == [1, 0, 1, 0]
    assert all(np.isfinite(line["loss"]) for line in scalars)
    texts = [line["skipped_step"] for line in run.lines() if "skipped_step" in line]
    assert texts == [
        "step 3 not finite: architectures 6, 7",
        "step 11 not finite: architectures 22, 23",
    ]


def test_too_many_skipped_steps_abort_with_the_architectures(tmp_path):
    run = Run(tmp_path / "run", total=400, describe=lambda step: f"architecture {step}")
    with pytest.raises(UsageError) as caught:
        run(broken_at(*range(50, 53)))
    message = str(caught.value)
    assert "aborted at step 55: 3 steps were not finite, more than 2%" in message
    assert "architecture 50; architecture 51; architecture 52" in message
    assert "learning rate" in message and "\n" not in message


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every"])
def test_a_number_of_steps_is_at_least_one(name):
    train = ConfigDict({"log_every": 1, "checkpoint_every": 2})
    assert loop.make_config(3, train) == loop.LoopConfig(3, 1, 2)
    train[name] = 0
    with pytest.raises(UsageError, match=f"config.train.{name}=0 is no number of steps"):
        loop.make_config(3, train)


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path):
    run = Run(tmp_path / "run", total=60)
    run(broken_at(3, 4), stop_after=10)
    with pytest.raises(UsageError, match="aborted at step 25: 3 steps"):
        run(broken_at(22))


def test_the_share_counts_once_there_are_enough_steps(tmp_path):
    # 2 % of 300 is 6: six are let pass, the seventh is not.
    run = Run(tmp_path / "run", total=305, log_every=300, checkpoint_every=300)
    assert int(run(broken_at(*range(100, 106)), stop_after=300).skipped) == 6
    with pytest.raises(UsageError, match="7 steps"):
        run(broken_at(301))


def test_without_checkpoints_data_or_metrics_of_skips(tmp_path):
    writer = log.JsonlWriter(tmp_path / "m.jsonl")

    def plain(state, step, batch):
        assert batch is None
        return state.replace(step=state.step + 1), {"loss": jnp.float32(step)}

    with Progress("train", 3, Console(file=io.StringIO())) as progress:
        state = loop.run(plain, start(), loop.LoopConfig(3, 2, 2), writer=writer, progress=progress)
    writer.close()
    assert int(state.step) == 3
    assert (tmp_path / "m.jsonl").read_text().splitlines() == [
        '{"step": 2, "loss": 0.5}',
        '{"step": 3, "loss": 2.0}',
    ]
