import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import write_json
from medinit_jax.hyper.selection import probes
from medinit_jax.study import hyper_starts
from medinit_jax.study.plan import Cell, Point, task_name
from medinit_jax.study.studies import make_plan

CELL = Cell("F4", "eyepacs_dr", "resnet18", "random")
RATES = ("--config.sizes.mini.learning_rates=(0.003, 0.01, 0.05)",)


def plan(config):
    return make_plan(config)


def leave(job, jobs_dir: Path, validation, diverged=False):
    job.folder(jobs_dir).mkdir(parents=True, exist_ok=True)
    best = {"validation": validation}
    write_json(job.folder(jobs_dir) / "summary.json", {"best": best, "diverged": diverged})


@pytest.mark.parametrize(
    ("validation", "diverged", "wanted"),
    [
        ((0.5, 0.7, 0.6), (), 0.01),
        ((0.5, 0.7, 0.7), (), 0.01),
        ((0.5, None, 0.7), (), 0.05),
        # The figure of a run that diverged later does not count.
        ((0.5, 0.6, 0.9), (2,), 0.01),
        ((0.5, 0.6, 0.9), (0, 1, 2), None),
    ],
)
def test_the_grid_is_decided_on_validation(study, tmp_path, validation, diverged, wanted):
    found = plan(study("hyper_fig4", *RATES))
    assert found.chosen(CELL, tmp_path) is None and found.finals(CELL, tmp_path) == []
    for i, job in enumerate(found.grid_jobs(CELL)):
        leave(job, tmp_path, validation[i], i in diverged)
    assert found.chosen(CELL, tmp_path) == (None if wanted is None else Point(wanted, 1e-4))
    if wanted:
        finals = found.finals(CELL, tmp_path)
        assert [job.facts["seed"] for job in finals] == [42, 43]
        assert {job.config["optim"]["learning_rate"] for job in finals} == {wanted}
        # The seed of the grid is not run twice.
        assert finals[0].id in {job.id for job in found.grid_jobs(CELL)}


def test_one_point_needs_no_grid(study, tmp_path):
    found = plan(study())
    assert found.chosen(CELL, tmp_path) == Point(0.01, 1e-4)
    assert len(found.known(tmp_path)) == len({job.id for job in found.known(tmp_path)})


def test_needs_come_first(study, tmp_path):
    found = plan(study("hyper_table2", "--config.starts=('hyper', 'rotnet', 'probe', 'random')"))
    seen = set()
    for job in found.known(tmp_path):
        assert seen.issuperset(job.needs)
        seen.add(job.id)
    assert sum(job.kind == "hyper" for job in found.known(tmp_path)) == 3


def test_table2_has_the_papers_eleven_entries(study):
    cells = plan(study("hyper_table2")).cells
    entries = {(cell.experiment, cell.task, cell.model) for cell in cells}
    assert len(entries) == 11 and len(cells) == 44
    assert ("T2d", "drive_seg", "unet") in entries


def test_figure_2_lowers_the_share_of_labels(study, tmp_path):
    found = plan(study("hyper_fig2"))
    job = next(job for job in found.known(tmp_path) if job.facts.get("fraction") == 0.25)
    assert job.config["protocol"]["fraction"] == 0.25 and job.config["train"]["epochs"] == 3
    found = plan(study("hyper_fig2", "--config.budget=steps"))
    job = next(job for job in found.known(tmp_path) if job.facts.get("fraction") == 0.25)
    assert job.config["train"]["epochs"] == 12


def test_studies_share_the_runs_that_they_have_in_common(study, tmp_path):
    ids = [
        {job.id for job in plan(study(name)).known(tmp_path)}
        for name in ("hyper_table2", "hyper_fig2")
    ]
    common = ids[0] & ids[1]
    # Three initializers, and five entries of Table 2 from three starts with two seeds: the figures
    # take a RegNet on EyePACS too, which Table 2 has as well.
    assert len(common) == 3 + 6 * 3 * 2


def test_starts_reach_the_fine_tuning(study):
    found = plan(study())
    inits = {
        start: found.job(CELL._replace(start=start), 42, found.grid[0], -1).config
        for start in ("random", "hyper", "matched", "untrained", "rotnet", "probe")
    }
    assert inits["random"]["init"]["path"] == ""
    assert inits["probe"]["train"]["freeze"] == "encoder"
    assert (
        inits["probe"]["init"]["start"] == "hyper" and inits["hyper"]["train"]["freeze"] == "none"
    )
    assert inits["rotnet"]["init"]["start"] == "encoder"
    assert inits["rotnet"]["init"]["path"].startswith("job:rotnet-")
    same = [inits[start]["init"]["path"] for start in ("hyper", "matched", "untrained")]
    assert len(set(same)) == 1 and same[0].startswith("job:initializer-fundus-")
    assert hyper_starts.rotation(found, CELL).config["data"]["target"] == "rotation"


def test_one_setting_of_every_fine_tuning_can_be_changed(study):
    config = study(
        "hyper_fig4", "--config.finetune.train.epochs=5", "--config.finetune.optim.name=adamw"
    )
    plan = make_plan(config)
    changed = plan.grid_jobs(plan.cells[0])[0].config
    config = study("hyper_fig4")
    plain = make_plan(config).grid_jobs(plan.cells[0])[0].config
    assert changed["train"] == {**plain["train"], "epochs": 5}
    assert changed["optim"] == {**plain["optim"], "name": "adamw"}
    assert changed["data"] == plain["data"] and None not in plain["train"].values()


def test_what_cannot_be_run_says_why(study):
    found = plan(study())
    assert "config.imagenet.resnet18" in found.absent(CELL._replace(start="imagenet"))
    unet = Cell("T2d", "drive_seg", "unet", "rotnet")
    assert "segments" in found.absent(unet)
    assert found.absent(CELL) == ""


def test_real_initializers_see_no_evaluation_images_unless_told(study):
    real = ("--config.size=real",)
    job = hyper_starts.initializer(plan(study("hyper_fig4", *real)), "xray")
    assert job.config["data"]["source"] == "prepared" and job.config["data"]["name"] == "rsna_cxr"
    with pytest.raises(UsageError, match=r"config\.images\.xray"):
        hyper_starts.initializer(
            plan(study("hyper_fig4", *real, "--config.include_eval_images=True")), "xray"
        )
    job = hyper_starts.initializer(
        plan(study("hyper_fig4", *real, "--config.images.xray=/x")), "xray"
    )
    assert (job.config["data"]["source"], job.config["data"]["path"]) == ("folder", "/x")


@pytest.mark.parametrize("size", ["mini", "phantom", "real"])
def test_no_label_decides_on_the_papers_initializers(study, size):
    """Which also asks for no validation, of which `mini` has none."""
    job = hyper_starts.initializer(plan(study("hyper_fig4", f"--config.size={size}")), "fundus")
    assert not probes(ConfigDict(job.config)) and job.config["train"]["trials"] == 1
    assert (job.config["pretext"]["name"], job.config["hyper"]["tiling"]) == ("rotation", "repeat")
    if size == "real":
        assert job.config["pretext"]["mode"] == "four"
        assert not job.config["train"]["first_architectures"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.starts=('hyper', 'hypr')", "hypr"),
        ("--config.size=tiny", "mini, phantom, real"),
        ("--config.budget=time", "epochs or steps"),
    ],
)
def test_unknown_words_are_refused(study, tmp_path, override, words):
    with pytest.raises(UsageError, match=words):
        plan(study("hyper_fig2", override)).known(tmp_path)


def test_names_of_tasks():
    size = {"phantom": True, "pixels": 64, "shares": {"aptos_dr": 0.05}}
    assert task_name("aptos_dr", size) == "phantom_aptos_dr_64px_x0.05"
    assert task_name("drive_seg", size | {"pixels": 256}) == "phantom_drive_seg"
    assert task_name("drive_seg", {"phantom": False}) == "drive_seg"


def test_plans_are_plain_json(study, tmp_path):
    for job in plan(study("hyper_fig3")).known(tmp_path):
        assert json.loads(json.dumps(job.config)) == job.config


@pytest.mark.parametrize("size", ["mini", "phantom", "real"])
@pytest.mark.parametrize("name", ["hyper_table2", "hyper_fig2", "hyper_fig3", "hyper_fig4"])
def test_every_study_plans_at_every_size(study, tmp_path, name, size):
    config = study(name, f"--config.size={size}")
    assert config.is_locked
    found = plan(config)
    jobs = found.known(tmp_path)
    assert jobs and any(not found.absent(cell) for cell in found.cells)
    seen = set()
    for job in jobs:
        assert seen.issuperset(job.needs)
        seen.add(job.id)
