"""Table II of SWCL has one recipe for all segmentations, and one for all classifications."""

from pathlib import Path

import pytest

from medinit_jax.core.config import read_command_line
from medinit_jax.study.swcl_paper import TASKS_OF_TABLE2

STUDY = Path(__file__).resolve().parents[2] / "configs" / "study.py"


@pytest.mark.parametrize(
    ("kind", "recipe", "batch", "epochs", "patience", "weight_decay"),
    [(True, "swcl384", 8, 300, 50, 5e-4), (False, "swcl224", 64, 120, 20, 1e-3)],
)
def test_tasks_of_a_kind_are_trained_alike(kind, recipe, batch, epochs, patience, weight_decay):
    config = read_command_line(["test", f"--config={STUDY}:swcl_table2"]).config
    tasks = [task for task in TASKS_OF_TABLE2 if task.endswith("_seg") == kind]
    assert len(tasks) == (4 if kind else 3)
    for task in tasks:
        held = config.base.finetune[task]
        train, optim = held.train, held.optim
        assert (held.data.recipe, train.batch, train.epochs) == (recipe, batch, epochs), task
        assert (train.patience, optim.weight_decay) == (patience, weight_decay), task
        assert (optim.name, optim.schedule, optim.nesterov) == ("sgd", "constant", True), task
        assert (held.model.output_stride, held.model.decoder) == ((8, "swcl") if kind else (0, ""))
