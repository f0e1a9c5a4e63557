"""What the script for TPU VMs asks of the cloud, by a stand-in that writes it down."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"


GCLOUD = r"""#!/usr/bin/env bash
cd "$(dirname "$0")"
{ printf '%s\037' "$@"; echo; } >>calls
case "$*" in
    *"$(cat fails)"*) echo "ERROR: (gcloud)" >&2; exit 1 ;;
    *networkEndpoints*) cat hosts ;;
    *" describe "*)
        # The next state; none is left where there is no VM.
        [ -s states ] || exit 1
        head -n 1 states; tail -n +2 states >rest; mv rest states ;;
esac
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git checkout of the scripts alone, as the tests may run without one."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "launch", folder / "launch")
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@y.z")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "x")):
        subprocess.run((*git, *command), cwd=folder, check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, checkout):
    """Returns (arguments, answers) -> (process, what gcloud was asked)."""
    fake = tmp_path / "gcloud"
    fake.write_text(GCLOUD)
    fake.chmod(0o755)

    def run(*arguments, hosts=1, states=(), fails="nothing"):
        (tmp_path / "hosts").write_text(f"{hosts}")
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "fails").write_text(fails)
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            [checkout / "launch" / "tpu_vm.sh", *arguments],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = (tmp_path / "calls").read_text().splitlines()
        # Without "compute tpus", and what ends a line.
        return done, [line.split("\x1f")[2:-1] for line in lines]

    return run


def test_up_makes_installs_and_starts(cloud):
    done, calls = cloud("up", "vm", "--zone=z", "--", "--config=a b.py", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    kinds = [call[1] for call in calls]
    assert kinds == ["create", "scp", *["ssh"] * 4, "describe", "ssh", "ssh"]
    options = ["--accelerator-type=v5litepod-4", "--version=v2-alpha-tpuv5-lite"]
    assert calls[0] == ["tpu-vm", "create", "vm", "--zone=z", *options]
    assert all("--zone=z" in call for call in calls)
    assert all("--worker=all" in call for call in calls if call[1] in ("ssh", "scp"))
    assert "constraints.txt" in calls[5][-1] and '"jax[tpu]"' in calls[5][-1]
    # A word with a space stays one word in the shell there; one host needs no cluster.
    assert r"medinit_jax.main --config=a\ b.py --config.seed=1 >>run.log" in calls[-1][-1]


def test_several_hosts_find_each_other_after_the_setup(cloud):
    done, calls = cloud("run", "vm", "--setup=mount it", "--", "--workdir=/nfs/x", hosts=4)
    assert done.returncode == 0, done.stderr
    assert calls[1][-1] == "--command=mount it"
    assert "medinit_jax.main --cluster=auto --workdir=/nfs/x >>" in calls[-1][-1]


def test_a_spot_vm_may_be_queued_for(cloud):
    done, calls = cloud(
        "create", "vm", "--spot", "--queued", "--wait=0",
        states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "NEVER ASKED"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [call[:2] for call in calls] == [
        ["queued-resources", "create"],
        *[["queued-resources", "describe"]] * 3,
    ]
    assert {"--spot", "--node-id=vm", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(calls[0])
    assert "vm waits: PROVISIONING" in done.stdout


@pytest.mark.parametrize("states", [["WAITING_FOR_RESOURCES", "FAILED"], []])
def test_a_request_that_fails_or_is_gone_ends_the_wait(cloud, states):
    done, calls = cloud("create", "vm", "--queued", "--wait=0", states=states)
    assert done.returncode == 2 and "another zone" in done.stderr
    assert len(calls) == 2 + bool(states)


def test_a_vm_that_is_there_resumes_without_installing(cloud):
    done, calls = cloud("resume", "vm", "--", "--config=x", states=["READY"])
    assert done.returncode == 0, done.stderr
    assert [call[1] for call in calls] == ["describe", "describe", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("states", "first"), [(["PREEMPTED"], ["delete", "create"]), ([], ["create"])]
)
def test_a_vm_that_was_taken_away_is_made_anew(cloud, states, first):
    done, calls = cloud("resume", "vm", "--spot", "--", "--config=x", states=states)
    assert done.returncode == 0, done.stderr
    assert [call[1] for call in calls[1 : 1 + len(first)]] == first
    assert "--spot" in calls[len(first)]
    assert "medinit_jax.main --config=x" in calls[-1][-1]


@pytest.mark.parametrize(
    ("fails", "last"), [("create", "create"), ("scp", "scp"), ("uv venv", "ssh")]
)
def test_nothing_goes_on_after_a_command_that_failed(cloud, fails, last):
    done, calls = cloud("up", "vm", "--", "--config=x", fails=fails)
    assert done.returncode != 0
    assert calls[-1][1] == last
    assert "medinit_jax.main" not in str(calls)


def test_a_dry_run_asks_for_nothing_and_prints_everything(cloud):
    done, calls = cloud("up", "vm", "--dry-run", "--queued", "--", "--config=x")
    assert done.returncode == 0 and calls == []
    printed = [line for line in done.stdout.splitlines() if line.startswith("+")]
    assert len(printed) == 9
    assert "queued-resources create vm" in printed[0]
    assert "--cluster" not in done.stdout
    done, _ = cloud("run", "vm", "--dry-run", "--type=v5litepod-16", "--", "--config=x")
    assert "--cluster=auto --config=x" in done.stdout


def test_logs_stop_and_delete(cloud):
    assert cloud("logs", "vm")[1][0][-1] == "--command=tail -n 100 -F medinit_jax/run.log"
    assert "kill -TERM" in cloud("stop", "vm")[1][0][-1]
    assert cloud("delete", "vm")[1] == [["tpu-vm", "delete", "vm", "--zone=us-west4-a", "--quiet"]]
    assert cloud("delete", "vm", "--queued")[1][0][:2] == ["queued-resources", "delete"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up"], "name of a VM"),
        (["fly", "vm"], "no command fly"),
        (["up", "vm", "--fast"], "no option --fast"),
        (["logs", "vm", "--", "--config=x"], "no arguments"),
    ],
)
def test_mistakes_are_named_before_anything_happens(cloud, arguments, sentence):
    done, calls = cloud(*arguments)
    assert done.returncode == 2 and sentence in done.stderr and calls == []
