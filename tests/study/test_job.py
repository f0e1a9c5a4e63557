import json
import subprocess
import sys

import pytest

from medinit_jax.core.workdir import claim_workdir
from medinit_jax.study.job import Job

CONFIG = {
    "seed": 1,
    "note": "",
    "init": {"start": "hyper", "path": "job:first-0"},
    "data": {"data_dir": "data", "size": 32},
    "stages": ("a", "b"),
}


def job(**changes):
    return Job("finetune", "A name, s1", CONFIG | changes, {"seed": 1})


def test_the_id_is_the_same_in_every_process():
    code = (
        "import json, sys; from medinit_jax.study.job import Job;"
        "print(Job('finetune', 'A name, s1', json.loads(sys.argv[1]), {}).id)"
    )
    backwards = dict(reversed(CONFIG.items()))
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(backwards)], capture_output=True, text=True
    )
    assert out.stdout.strip() == job().id and job().id.startswith("a-name-s1-")


def test_the_id_follows_what_results_depend_on_and_nothing_else():
    same = [job(note="x"), job(data={"data_dir": "elsewhere", "size": 32}), job(cache_dir="c")]
    other = [
        job(seed=2),
        job(data={"data_dir": "data", "size": 64}),
        job(init={"start": "hyper", "path": "job:second-0"}),
    ]
    assert {one.id for one in same} == {job().id}
    assert len({one.id for one in [job(), *other]}) == 4


def test_a_reference_becomes_a_folder_wherever_the_jobs_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert job().needs == ("first-0",)
    config = job().resolved(tmp_path.relative_to(tmp_path) / "jobs")
    assert config.init.path == str(tmp_path / "jobs" / "first-0")
    assert config.stages == ("a", "b") and config.is_locked


@pytest.mark.parametrize("change", [{"seed": 2}, {"init": {"start": "hyper", "path": "/x/other"}}])
def test_a_folder_of_another_run_is_noticed(tmp_path, change):
    held = job(**change).resolved(tmp_path)
    claim_workdir(job().folder(tmp_path), held, "finetune")
    assert next(iter(change)) in job().disagreement(tmp_path)


def test_a_folder_may_be_moved_and_its_free_keys_may_differ(tmp_path):
    claim_workdir(job().folder(tmp_path), job(note="x").resolved(tmp_path / "old"), "finetune")
    assert job().disagreement(tmp_path) == ""
