"""SWCL's studies: recipes of its tables, bad names, and a plan for real sets."""

import json
from pathlib import Path

import pytest

from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.study.conduct import conduct
from medinit_jax.study.studies import make_plan
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


def test_a_study_or_task_that_is_none_is_named():
    for name in (f"{STUDY}:swcl_table9", f"{STUDY.with_name('swcl_study.py')}:swcl_table9"):
        with pytest.raises(UsageError, match="no variant 'swcl_table9'; .*swcl_table2"):
            read_command_line(["test", f"--config={name}"])
    chain = f"{STUDY.with_name('swcl.py')}:phantom"
    config = read_command_line(["test", f"--config={chain}", "--config.task=nothing"]).config
    with pytest.raises(UsageError, match="config.task='nothing'; set it to one of: aptos_dr, "):
        make_plan(config)


def test_a_study_of_real_sets_is_planned_and_reported(tmp_path):
    command = [
        "test",
        f"--config={STUDY.with_name('swcl.py')}:chain",
        "--config.runner=commands",
        f"--config.jobs_dir={tmp_path / 'jobs'}",
    ]
    conduct(read_command_line(command).config, tmp_path / "study")
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert summary["size"] == "real" and summary["jobs_open"] > 3 and summary["notes"] == []
    assert (tmp_path / "study" / "report.html").is_file()


@pytest.mark.parametrize(("size", "drawn"), [("real", "torch_default"), ("mini", "random")])
def test_every_encoder_starts_as_its_network_does_at_random(size, drawn):
    """A BiT network as PyTorch leaves it, a ResNet as torchvision does."""
    command = ["test", f"--config={STUDY}:swcl_table2", f"--config.size={size}"]
    plan = make_plan(read_command_line(command).config)
    jobs = [job for job in plan.preparatory() if job.kind in ("swcl", "finetune")]
    assert len(jobs) == 8
    assert {job.config["init"]["start"] for job in jobs} == {drawn}
