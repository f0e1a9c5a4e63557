"""Ends a run whose pretext teaches nothing: features that do not differ, or nothing left to learn.

A loss that stays at chance is no reason to end: hypernetworks stay there for long before they
leave it; the end of the run says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medinit_jax.core.errors import Unfit
from medinit_jax.hyper.objective import Objective

# Below, features of different views are the same but for rounding.
CONSTANT = 1e-4
# Share of the loss at chance below which a task is solved, and steps in which no task can be.
SOLVED, EARLY = 0.02, 100


class Alarms:
    """Looks at the figures of every step, and judges a window of them at a time.

    Args:
        objective: The pretexts.
        every: Steps of a window.
    """

    def __init__(self, objective: Objective, every: int):
        self.objective, self.every = objective, every
        self._window: list[Any] = []

    def __call__(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the figures of a step, `step` steps being done with it.

        Raises:
            UsageError: A pretext has collapsed.
        """
        self._window.append(metrics)
        if step % self.every:
            return
        window, self._window = jax.device_get(self._window), []
        for part in self.objective.parts:
            if part.begin >= step:
                continue
            alone = self.objective.plain
            losses = _finite(window, "train/loss" if alone else f"train/loss/{part.name}")
            spreads = _finite(window, f"train/spread/{part.name}")
            if spreads and max(spreads) < CONSTANT:
                raise Unfit(
                    f"The pretext {part.name} has collapsed: in all {len(spreads)} steps up to "
                    f"{step} every image had the same features (spread {max(spreads):.1e}); lower "
                    "config.optim.learning_rate, or add another pretext to config.pretext.name."
                )
            floor = SOLVED * part.pretext.chance(self.objective.group)[0]
            if losses and step <= max(EARLY, self.every) and np.mean(losses) < floor:
                raise Unfit(
                    f"The pretext {part.name} teaches nothing: its loss is {np.mean(losses):.4f} "
                    f"nats by step {step}, before anything could be learned; its images or labels "
                    f"give the answer away, so change them or leave {part.name} out of "
                    "config.pretext.name."
                )


def _finite(window: list[Any], name: str) -> list[float]:
    values = [float(metrics[name]) for metrics in window if name in metrics]
    return [value for value in values if math.isfinite(value)]
