"""Studies of SWCL's paper: plans at all sizes, and what each start asks of its jobs."""

import functools

import ml_collections
import pytest

from medinit_jax.finetune.network import make_network
from medinit_jax.models.encoder import body
from medinit_jax.study.job import REFERENCE
from medinit_jax.study.studies import make_plan
from medinit_jax.study.swcl_paper import PRINTED, TABLE3
from medinit_jax.swcl.settings import make_look, make_method

STUDIES = ("swcl_table2", "swcl_table3", "swcl_compare", "swcl_chain")
SIZES = ("mini", "phantom", "real")
# Table III: what is left of a label when something is taken away.
LOSSES = {
    "swcl_t03": ("all", 0.3),
    "swcl": ("all", 0.4),
    "swcl_t05": ("all", 0.5),
    "swcl_no_position": ("abnormality-patient", 0.4),
    "swcl_no_abnormality": ("position-patient", 0.4),
    "swcl_no_patient": ("position-abnormality", 0.4),
    "swcl_only_patient": ("patient", 0.4),
    "swcl_only_abnormality": ("abnormality", 0.4),
    "swcl_only_position": ("position", 0.4),
}


@pytest.fixture
def planned(study):
    return lambda name, size, *more: make_plan(study(name, f"--config.size={size}", *more))


@functools.cache
def program(model, size, kind):
    return make_network(dict(model), size, 2, kind).program


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_plans_at_every_size(planned, tmp_path, name, size):
    """Jobs come after those that they need, and every method gets what it reads and no more."""
    plan = planned(name, size)
    seen = set()
    for job in plan.known(tmp_path):
        assert seen.issuperset(job.needs), job.name
        seen.add(job.id)
        if job.kind == "swcl":
            config = ml_collections.ConfigDict(job.config)
            method = make_method(config)
            make_look(config, method)
            assert (method.images == "pairs") == config.data.patches.startswith(REFERENCE)
            assert config.optim.warmup_epochs < config.train.epochs
    assert any(not plan.absent(cell) for cell in plan.cells)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_encoder_fits_the_networks_that_start_from_it(planned, name, size):
    """Each tensor of the encoder has its place, of its shape, in the network of the cell."""
    plan, checked = planned(name, size), 0
    for cell in plan.cells:
        jobs = [] if plan.absent(cell) else plan.starts[cell.start].jobs(plan, cell)
        if not jobs or jobs[-1].kind not in ("swcl", "finetune"):
            continue
        made = jobs[-1].config["model"]
        encoder = body(program(tuple(made.items()), 64, "classification")).parameter_shapes()
        config = plan.job(cell, 42, plan.grid[0], plan.folds(cell)[0]).config
        assert config["init"]["start"] == "encoder"
        assert config["init"]["path"] == f"{REFERENCE}{jobs[-1].id}"
        segments = cell.task.endswith("_seg")
        kind = "segmentation" if segments else "classification"
        shapes = program(tuple(config["model"].items()), 64, kind).parameter_shapes()
        prefix = "encoder." if segments else ""
        for module, leaves in encoder.items():
            assert shapes[f"{prefix}{module}"] == leaves, (cell.name, module)
        checked += 1
    assert checked


@pytest.mark.parametrize("size", SIZES)
def test_table3_takes_labels_away_as_the_paper_does(planned, size):
    plan = planned("swcl_table3", size)
    found, ids = {}, set()
    for cell in plan.cells:
        assert cell.task == "refuge_cls" and cell.model == "resnet18"
        assert cell.paper == TABLE3[cell.start]
        jobs = [] if plan.absent(cell) else plan.starts[cell.start].jobs(plan, cell)
        if jobs:
            labeler, patches, own = jobs
            found[cell.start] = own.config["loss"]["scheme"], own.config["loss"]["threshold"]
            # All share one labeler and its patches.
            ids |= {labeler.id, patches.id}
            assert patches.config["labeler"] == f"{REFERENCE}{labeler.id}"
            assert own.config["data"]["patches"] == f"{REFERENCE}{patches.id}"
            if size == "real":
                assert own.config["train"]["batch"] == 512 and own.config["train"]["epochs"] == 40
    assert found == LOSSES and len(ids) == 2


def test_table2_has_the_papers_starts_and_tasks(planned):
    plan = planned("swcl_table2", "real")
    assert len(plan.cells) == 77
    assert {cell.start for cell in plan.cells} == set(PRINTED)
    methods, sets = {}, {}
    for cell in plan.cells:
        jobs = [] if plan.absent(cell) else plan.starts[cell.start].jobs(plan, cell)
        for job in jobs:
            if job.kind == "swcl":
                methods[cell.start] = job.config["method"]
            if job.kind == "finetune":
                sets[cell.start] = job.config["task"], job.config["labels"]
    same = ("swcl", "swcl_image", "multitask", "simclr", "byol", "dino")
    assert methods == {name: name for name in same}
    assert sets == {
        "odir": ("medinit_oia_odir/default", "abnormal"),
        "eyepacs": ("medinit_eyepacs/pretrain448", "abnormal"),
    }
    # Both published starts need their file.
    lacking = {cell.start: plan.absent(cell) for cell in plan.cells if plan.absent(cell)}
    assert lacking == {n: f"no file was given with config.{n}" for n in ("bit_s", "bit_m")}
    plan = planned("swcl_table2", "real", "--config.bit_s=S.npz", "--config.bit_m=M.npz")
    paths = {
        cell.start: plan.job(cell, 42, plan.grid[0], -1).config["init"]["path"]
        for cell in plan.cells
        if cell.start.startswith("bit")
    }
    assert paths == {"bit_s": "S.npz", "bit_m": "M.npz"}
