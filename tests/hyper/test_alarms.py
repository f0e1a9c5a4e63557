"""A collapsed pretext ends the run with its name; a slow one does not."""

import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.alarms import EARLY, Alarms
from medinit_jax.hyper.objective import Objective, Part
from medinit_jax.hyper.pretext import PRETEXTS

PAIR = ("rotation", "contrast")


def alarms(names=PAIR, every=5):
    parts = tuple(Part(name, PRETEXTS[name](), 1.0) for name in names)
    return Alarms(Objective(parts, 8, 4), every)


def figures(loss=1.4, spread=0.8, of="contrast"):
    found = {"train/loss": jnp.float32(loss)}
    for name in PAIR:
        here = name == of
        found[f"train/loss/{name}"] = jnp.float32(loss if here else 1.4)
        found[f"train/spread/{name}"] = jnp.float32(spread if here else 0.8)
    return found


def run(watch, steps, **values):
    for step in range(1, steps + 1):
        watch(step, figures(**values))


def test_features_that_do_not_differ_end_the_run():
    watch = alarms()
    run(watch, 4, spread=1e-6)
    with pytest.raises(UsageError, match=r"pretext contrast has collapsed: in all 5 steps up to 5"):
        watch(5, figures(spread=1e-6))


def test_one_step_that_differs_is_enough():
    watch = alarms()
    run(watch, 4, spread=1e-6)
    watch(5, figures())
    run(watch, 4, spread=1e-6)


@pytest.mark.parametrize("names", [PAIR, ("rotation",)], ids="+".join)
def test_what_is_solved_from_the_start_ends_the_run(names):
    watch = alarms(names)
    with pytest.raises(UsageError, match=f"{names[-1]} teaches nothing: its loss is 0.0010"):
        run(watch, 5, loss=0.001)


def test_what_is_solved_later_or_never_left_chance_goes_on():
    watch = alarms()
    run(watch, 10)
    watch = alarms()
    run(watch, EARLY)
    for step in range(EARLY + 1, EARLY + 11):
        watch(step, figures(loss=0.001))


def test_steps_that_are_not_finite_are_no_collapse():
    run(alarms(), 10, loss=np.nan, spread=np.nan)
