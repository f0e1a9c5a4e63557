"""What a run does not do: reach the network, and keep secrets in its files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pretrain import write_patches

ROOT = Path(__file__).resolve().parents[1]
SECRETS = ("hunter2", "swordfish", "opensesame")
NOTE = f"from https://me:{SECRETS[0]}@example.org/set?size=3&access_token={SECRETS[1]}"
FINETUNE = (
    "configs/finetune.py:phantom_idrid_32px_x0.1",
    "--config.model.width=8",
    "--config.data.recipe=hyper512",
    "--config.data.size=32",
    "--config.train.epochs=1",
    "--config.train.batch=4",
    "--config.evaluate.resamples=20",
)
PRETRAIN = (
    "configs/swcl.py:swcl",
    "--config.data.patches=patches",
    "--config.data.size=16",
    "--config.model.width=8",
    "--config.train.batch=8",
    "--config.train.steps=2",
    "--config.optim.warmup_epochs=0",
)
# One process for all: what takes long is to start it.
ALL = """
import sys
from medinit_jax.main import main
for number, arguments in enumerate({runs!r}):
    sys.argv = ["main", *arguments]
    code = main()
    assert code == 0, (arguments, code)
"""


def isolated(command, folder):
    """Runs Python without a network, by the kernel where it lets users do so."""
    cut = ["unshare", "--user", "--map-root-user", "--net"]
    able = (
        shutil.which(cut[0]) and not subprocess.run([*cut, "true"], capture_output=True).returncode
    )
    notes = folder / "notes"
    done = subprocess.run(
        [*(cut if able else []), sys.executable, *command],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}/tests/no_network:{ROOT}",
            "NETWORK_NOTES": str(notes),
            "SERVICE_TOKEN": SECRETS[2],
            "XLA_FLAGS": "",
        },
        capture_output=True,
        text=True,
        timeout=540,
    )
    return done, notes.read_text().splitlines() if notes.exists() else []


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("socket.socket().connect(('192.0.2.1', 80))", "socket.connect 192.0.2.1"),
        ("urllib.request.urlopen('http://example.org')", "socket.getaddrinfo example.org"),
        ("socket.socket(type=2).sendto(b'x', ('192.0.2.1', 53))", "socket.sendto 192.0.2.1"),
        ("socket.getaddrinfo('localhost', 80)", None),
    ],
)
def test_the_network_is_out_of_bounds(tmp_path, statement, refused):
    done, notes = isolated(["-c", f"import socket, urllib.request; {statement}"], tmp_path)
    assert (done.returncode == 0) == (refused is None), done.stderr
    assert refused is None and not notes or refused in notes


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_patches(folder / "patches")
    common = (f"--config.note={NOTE}", f"--config.data.data_dir={folder}/data")
    runs = [
        (f"--config={ROOT}/{file}", *rest, *common)
        for file, *rest in (
            (*FINETUNE, "--config.model.name=resnet18"),
            (*PRETRAIN, "--config.model.name=resnet18"),
        )
    ]
    done, notes = isolated(["-c", ALL.format(runs=runs)], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not notes
    return folder


def test_pretraining_and_fine_tuning_run_without_a_network(workdir):
    found = {path.parent.name.partition("-")[0] for path in workdir.glob("runs/*/summary.json")}
    assert found == {"swcl", "finetune"}


def test_no_file_of_a_run_holds_a_secret(workdir):
    files = [path for path in (workdir / "runs").rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], path
    # The rest of the address is there, so that the notes were looked at.
    config = json.loads((workdir / "runs" / "swcl-swcl" / "config.json").read_text())
    assert config["config"]["note"] == ("from https://***@example.org/set?size=3&access_token=***")
