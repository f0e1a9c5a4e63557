"""Studies with routes that take no time."""

from pathlib import Path

import ml_collections
import pytest

from medinit_jax import main as main_lib
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import claim_workdir, write_json

ROOT = Path(__file__).resolve().parents[2]


def summary_of(config) -> dict:
    """What a fine-tuning with this configuration leaves: figures that follow from it."""
    start = {"hyper": 0.1, "matched": 0.05}.get(config["init"]["start"], 0.0)
    # Of three rates the middle one is best.
    rate = {0.003: 0.0, 0.01: 0.02, 0.05: 0.01}[config["optim"]["learning_rate"]]
    best = 0.5 + start + rate + 0.001 * (config["seed"] - 42)
    test = {"metric": best - 0.05, "low": best - 0.1, "high": best}
    row = {"epoch": 2, "validation": best, "test": test}
    epochs = [{"epoch": 1, "step": 1, "loss": 1.0, "validation": 0.96 * best if start else 0.3}]
    return {
        "best": row,
        "last": row,
        "epochs": [*epochs, {"epoch": 2, "step": 2, "loss": 0.9, "validation": best}],
        "metric": "AUC",
        "cam": None,
        "diverged": False,
        "seconds": 1.0,
    }


class Routes:
    """Stands in for the routes; `on` may raise, or change what is written."""

    def __init__(self):
        self.calls: list[str] = []
        self.on = lambda config, summary: None

    def finetune(self, config, workdir):
        self.calls.append(workdir.name)
        claim_workdir(workdir, config, "finetune")
        if config.init.path and not Path(config.init.path).is_dir():
            raise UsageError(f"There is no {config.init.path}.")
        summary = summary_of(config)
        self.on(config, summary)
        write_json(workdir / "summary.json", summary)

    def hyper(self, config, workdir):
        self.calls.append(workdir.name)
        claim_workdir(workdir, config, "hyper")
        self.on(config, {})
        (workdir / "initializer").mkdir(exist_ok=True)
        write_json(workdir / "initializer" / "initializer.json", {})


@pytest.fixture
def routes(monkeypatch):
    made = Routes()
    monkeypatch.setitem(main_lib.ROUTES, "finetune", made.finetune)
    monkeypatch.setitem(main_lib.ROUTES, "hyper", made.hyper)
    return made


@pytest.fixture
def study(tmp_path):
    """Returns a function: (variant, *overrides) to the configuration of a study."""

    def read(variant: str = "hyper_fig4", *overrides: str) -> ml_collections.ConfigDict:
        argv = ["main", f"--config={ROOT}/configs/study.py:{variant}"]
        argv += [f"--config.jobs_dir={tmp_path}/jobs", *overrides]
        return read_command_line(argv).config

    return read
