import json
import os
import shlex
import subprocess

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.study.batch import command, levels, run_on_ray, write_commands, write_slurm
from medinit_jax.study.job import Job

ARGV = ["main.py", "--config=configs/study.py:hyper_fig4", "--config.note=it's"]


def job(name, *needs):
    return Job("fake", name, {"name": name, "needs": {str(i): f"job:{n}" for i, n in
               enumerate(needs)}}, {})  # fmt: skip


@pytest.fixture
def chain():
    first = job("first")
    second = job("second", first.id)
    return [first, second, job("third", second.id, first.id), job("apart")]


def names(found):
    return [[one.name for one in level] for level in found]


def test_levels_need_only_those_before(tmp_path, chain):
    assert names(levels(chain, tmp_path)) == [["first", "apart"], ["second"], ["third"]]
    chain[0].folder(tmp_path).mkdir()
    (chain[0].folder(tmp_path) / "summary.json").write_text("{}")
    assert names(levels(chain, tmp_path)) == [["second", "apart"], ["third"]]


@pytest.mark.parametrize(
    "runner", [["--config.runner=slurm"], ["--config.runner", "slurm"], ["-config.only=x"]]
)
def test_a_command_is_the_studys_own_with_one_job(chain, runner):
    words = shlex.split(command(chain[0], [ARGV[0], *runner, *ARGV[1:]]))
    assert words[1:] == ["-m", "medinit_jax.main", *ARGV[1:], f"--config.only={chain[0].id}"]


def test_commands_stand_in_levels(tmp_path, chain):
    text = write_commands(chain, tmp_path, tmp_path, ARGV).read_text()
    found = [[shlex.split(line)[-1] for line in part.split("\n")] for part in
             text.strip().split("\n\n")]  # fmt: skip
    wanted = [[0, 3], [1], [2]]
    assert found == [[f"--config.only={chain[i].id}" for i in level] for level in wanted]


def test_slurm_scripts_run_each_job_once_and_wait(tmp_path, chain):
    """Runs them with a stand-in for sbatch, and for the program."""
    submit = write_slurm(chain, tmp_path, tmp_path, ARGV)
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sbatch").write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n'
    )
    (fake / "sbatch").chmod(0o755)
    path = f"{fake}:{os.environ['PATH']}"
    subprocess.run(["bash", str(submit)], check=True, env={"PATH": path})
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1].startswith("--dependency") for call in calls] == [False, True, True]
    assert "--dependency=afterany:1 " in calls[1] and "--dependency=afterany:2 " in calls[2]
    script = tmp_path / "slurm" / "level0.sbatch"
    assert "--array=0-1\n" in script.read_text()
    echo = script.read_text().replace('eval "', 'eval "echo ')
    for task, one in enumerate((chain[0], chain[3])):
        out = subprocess.run(
            ["bash", "-c", echo], env={"SLURM_ARRAY_TASK_ID": str(task)}, capture_output=True
        )
        words = out.stdout.decode().split()
        assert words[-1] == f"--config.only={one.id}" and "--config.note=it's" in words


def test_without_ray_the_extra_is_named(tmp_path, chain):
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"medinit_jax\[ray\]"):
            run_on_ray(chain, tmp_path, lambda outcomes, name: None)
    else:
        pytest.skip("Ray is installed")


RAY = """
import json, sys
from pathlib import Path
import ray
from medinit_jax.study.batch import run_on_ray
from medinit_jax.study.job import Job

def worker_setup():
    from medinit_jax import main
    from medinit_jax.core.errors import UsageError
    from medinit_jax.core.workdir import claim_workdir, write_json
    def fake(config, workdir):
        if config.name == "bad":
            raise UsageError("No.")
        claim_workdir(workdir, config, "fake")
        write_json(workdir / "summary.json", {"diverged": False})
    main.ROUTES["fake"] = fake

ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False,
         runtime_env={"worker_process_setup_hook": worker_setup})
first = Job("fake", "first", {"name": "first"}, {})
bad = Job("fake", "bad", {"name": "bad"}, {})
jobs = [first, bad, Job("fake", "good", {"name": "good", "path": f"job:{first.id}"}, {}),
        Job("fake", "not", {"name": "not", "path": f"job:{bad.id}"}, {})]
found = run_on_ray(jobs, Path(sys.argv[1]), lambda outcomes, name: None, 1.0)
print(json.dumps([found[job.id][0] for job in jobs]))
"""


def test_ray_runs_what_can_be_run(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'medinit_jax[ray]'")
    assert ray.__version__
    import sys

    words = [sys.executable, "-c", RAY, str(tmp_path)]
    out = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert out.stdout.strip(), out.stderr
    assert json.loads(out.stdout.strip().splitlines()[-1]) == ["done", "failed", "done", "blocked"]
