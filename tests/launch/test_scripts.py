"""Scripts, manifest and container file: what a machine without cloud or daemon can tell of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci" / "run"]


def executable(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def ran(script, *arguments, **environment):
    return subprocess.run(
        [script, *arguments],
        env={**os.environ, **environment},
        cwd=environment.get("HERE"),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    found = Path(sys.executable).with_name("shellcheck")
    assert found.is_file(), "install the test extra"
    done = subprocess.run([found, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "local.sh"])
def test_help_is_the_head_of_the_script(script):
    done = ran(LAUNCH / script, "--help")
    shown = done.stdout + done.stderr
    assert shown.startswith("Runs medinit_jax") and "set -" not in shown


def test_a_release_is_written_beside_no_other(tmp_path):
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "release.sh"
    script.write_bytes((LAUNCH / "release.sh").read_bytes())
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "medinit-fundus-0.1.0.zip").touch()
    executable(tmp_path / "git", "echo $CHANGES")
    path = f"{tmp_path}:{os.environ['PATH']}"
    refused = ran("bash", script, "dist", PATH=path, CHANGES="M README.md")
    assert refused.returncode == 2 and "not committed" in refused.stderr
    refused = ran("bash", script, "dist", PATH=path, CHANGES="")
    assert refused.returncode == 2 and "dist holds a release" in refused.stderr


def test_a_release_has_an_initializer_of_each_modality(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / ".ci").mkdir()
    script = tmp_path / "launch" / "release.sh"
    script.write_bytes((LAUNCH / "release.sh").read_bytes())
    for name in ("git", "python", ".ci/wheel"):
        executable(tmp_path / name, f'echo "{name} $*" >>"$CALLS"')
    calls = tmp_path / "calls"
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert ran("bash", script, "out", "runs", PATH=path, CALLS=str(calls)).returncode == 0
    asked = calls.read_text().splitlines()[1:]
    assert [line.partition(" --workdir=runs/")[2].split()[0] for line in asked[:-1:2]] == [
        "fundus", "xray", "ct",
    ]  # fmt: skip
    assert [line.split("--name=")[1] for line in asked[1:-1:2]] == [
        "medinit-fundus --out=out", "medinit-xray --out=out", "medinit-ct --out=out",
    ]  # fmt: skip
    assert asked[-1] == ".ci/wheel out"


@pytest.fixture
def slurm(tmp_path):
    """Returns (code of the run, nodes) -> (exit code, what SLURM was asked)."""
    executable(tmp_path / "srun", 'echo "srun $*" >>calls; exit "$CODE"')
    executable(tmp_path / "scontrol", 'echo "scontrol $*" >>calls')

    def run(code, nodes):
        given = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CODE": str(code),
            "HERE": str(tmp_path),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_NNODES": str(nodes),
            "SLURM_JOB_ID": "7",
        }
        done = ran(LAUNCH / "slurm.sh", "--config=x", **given)
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (130, True)])
def test_slurm_takes_a_job_again_that_was_stopped(slurm, code, again):
    returned, asked = slurm(code, 1)
    assert returned == code
    assert ("scontrol requeue 7" in asked) == again
    assert asked[0].endswith(".venv/bin/python -m medinit_jax.main --config=x")


def test_nodes_of_slurm_find_each_other(slurm):
    assert slurm(0, 2)[1][0].endswith("medinit_jax.main --cluster=auto --config=x")


def local(tmp_path, body, *options):
    executable(tmp_path / "python", body)
    return ran(LAUNCH / "local.sh", *options, "--config=x", PORT="9", GRACE="0", HERE=str(tmp_path),
               PYTHON=str(tmp_path / "python"))  # fmt: skip


def test_local_starts_every_process_with_its_number(tmp_path):
    body = 'echo "$* gpu=${CUDA_VISIBLE_DEVICES-}"'
    done = local(tmp_path, body, "--gpus", "3")
    assert done.returncode == 0, done.stderr
    given = "-m medinit_jax.main --coordinator=127.0.0.1:9 --processes=3 --process={0} --config=x"
    said = sorted(done.stdout.splitlines())
    assert said == [f"{given.format(i)} gpu={i}" for i in range(3)]


def test_local_ends_all_when_one_fails(tmp_path):
    # The others would wait for a minute, but are told to stop, and save.
    body = """case "$*" in
    *--process=1*) until [ -e ready ]; do sleep 0.05; done; exit 2 ;;
esac
trap 'touch saved; kill $!; exit 130' TERM
sleep 60 &
touch ready
wait"""
    done = local(tmp_path, body, "2")
    assert done.returncode == 2
    assert (tmp_path / "saved").exists()


def test_the_jobset_has_a_host_for_every_four_chips():
    job = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["spec"]["failurePolicy"]["maxRestarts"] > 0
    (train,) = job["spec"]["replicatedJobs"]
    spec = train["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips == 4
    assert spec["parallelism"] == spec["completions"] == int(rows) * int(columns) // chips
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    # What outlives a pod lies on the mounted storage.
    assert any(a.startswith(f"--workdir={mounted['storage']}/") for a in container["args"])
    assert "--cluster=auto" in container["args"]


def instructions():
    text = (LAUNCH / "Containerfile").read_text()
    assert "\\\n" not in text, "instructions are one line each"
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def test_the_container_file_copies_what_is_there_and_ends_as_a_user():
    said = instructions()
    assert said[0][0] == "FROM" and re.fullmatch(r"\S+:3\.11-\S+", said[0][1])
    allowed = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT"}
    assert {word for word, _ in said} == allowed
    for word, rest in said:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
    assert [word for word, _ in said][-2:] == ["USER", "ENTRYPOINT"]
    assert said[-1][1] == '["python", "-m", "medinit_jax.main"]'


def test_the_container_file_installs_by_hashes_alone():
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    free = [line for line in installs if "$JAX" not in line]
    assert len(installs) == len(free) + 1
    for line in free:
        assert "--require-hashes" in line or "--no-index" in line
