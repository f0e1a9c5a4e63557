"""A run begins a few times and goes on with the seed that learns most."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_hyper import CONFIG, SETTINGS, TINY, write_images

from medinit_jax.arch import space as space_lib
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import Unfit, UsageError
from medinit_jax.core.log import METRICS_FILE
from medinit_jax.core.parallel import Parallel
from medinit_jax.downstream.protocol import fold_seed
from medinit_jax.hyper import setup, trials

SEEDS = [7, fold_seed(7, "trial", 1), fold_seed(7, "trial", 2)]


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """Function (workdir, options) -> the configuration that training goes on with."""
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    made = []

    def run(workdir, **options):
        own = {f"train.{name}": value for name, value in options.items()}
        settings = SETTINGS | {
            "data.path": images, "seed": 7, "train.steps": 8, "train.log_every": 1,
            "train.checkpoint_every": 100, "train.trials": 3, "train.trial_steps": 4,
        } | own  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        config = read_command_line(["test", f"--config={CONFIG}:smoke", *flags]).config
        if not made:
            made.append(setup.make_bilevel(config, Parallel(jax.devices()[:1])))
        return trials.with_best_seed(config, workdir, Console(file=io.StringIO()), made[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(space_lib.SPACES, "tiny", TINY)
        yield run


@pytest.fixture
def told(monkeypatch):
    """Trainings that leave a curve each: {seed: losses}; those that ran, in order."""
    losses, ran = {}, []

    def train(config, folder, console, stop_after, bilevel):
        assert bilevel.config.seed == config.seed and stop_after == 4
        assert (config.train.select, config.train.validate_every) == ("last", 0)
        ran.append(config.seed)
        curve = losses[config.seed]
        if curve is None:
            raise KeyboardInterrupt
        rows = [{"step": i, "train/loss": loss} for i, loss in enumerate(curve, start=1)]
        (folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(trials, "train", train)
    return losses, ran


def test_the_least_loss_of_the_second_half_wins(begin, told, tmp_path):
    losses, ran = told
    losses |= {
        SEEDS[0]: [0.1, 0.1, 1.0, 1.2], SEEDS[1]: [9.0, 9.0, 1.0, 0.8], SEEDS[2]: [0, 0, 0, None]
    }  # fmt: skip
    config = begin(tmp_path, select="probe", validate_every=3)
    assert config.seed == SEEDS[1] and (config.train.select, config.train.validate_every) == (
        "probe",
        3,
    )
    assert ran == SEEDS and not (tmp_path / trials.FOLDER).exists()
    record = json.loads((tmp_path / trials.TRIALS_FILE).read_text())
    assert record["seed"] == SEEDS[1] and record["steps"] == 4
    found = {int(seed): loss for seed, loss in record["losses"].items()}
    assert found == {SEEDS[0]: pytest.approx(1.1), SEEDS[1]: pytest.approx(0.9), SEEDS[2]: None}
    # What was found holds when the run goes on.
    assert begin(tmp_path, select="probe").seed == SEEDS[1] and ran == SEEDS


def test_trials_that_were_stopped_go_on(begin, tmp_path, monkeypatch):
    """Real trainings of four steps; the second one is stopped before it begins."""
    real, ran = trials.train, []

    def train(config, folder, console, **options):
        ran.append(config.seed)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return real(config, folder, console, **options)

    monkeypatch.setattr(trials, "train", train)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "stopped", trials=2)
    taken = begin(tmp_path / "stopped", trials=2)
    assert ran == [SEEDS[0], SEEDS[1], SEEDS[1]], "a trial that is done is not run again"
    whole = begin(tmp_path / "whole", trials=2)
    records = [
        json.loads((tmp_path / name / trials.TRIALS_FILE).read_text())
        for name in ("stopped", "whole")
    ]
    assert records[0] == records[1] and taken.seed == whole.seed
    values = list(records[0]["losses"].values())
    assert np.isfinite(values).all() and values[0] != values[1]
    assert records[0]["seed"] == SEEDS[int(np.argmin(values))]


def test_a_trial_that_cannot_be_trained_loses(begin, tmp_path, monkeypatch):
    def train(config, folder, console, **options):
        if config.seed != wanted:
            raise Unfit("The pretext rotation has collapsed")
        (folder / METRICS_FILE).write_text('{"step": 4, "train/loss": 1.0}')

    monkeypatch.setattr(trials, "train", train)
    wanted = SEEDS[2]
    assert begin(tmp_path / "one").seed == wanted
    wanted = None
    with pytest.raises(UsageError, match="None of 3 trials could be trained"):
        begin(tmp_path / "none")
    assert not (tmp_path / "none" / trials.TRIALS_FILE).exists()


def test_a_trial_is_no_longer_than_the_training(begin, told, tmp_path):
    losses, ran = told
    losses |= dict.fromkeys(SEEDS, [1.0] * 4)
    assert begin(tmp_path, steps=4, trial_steps=200).seed == 7 and ran == SEEDS


def test_one_trial_is_none(begin, told, tmp_path):
    assert begin(tmp_path, trials=1).seed == 7
    assert not told[1] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"trials": 0}, {"trial_steps": 0}])
def test_trials_that_mean_nothing(begin, tmp_path, options):
    with pytest.raises(UsageError, match=r"config\.train\.trials=.*at least 1 of both"):
        begin(tmp_path, **options)
