import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from medinit_jax import main as main_lib
from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import Preempted
from medinit_jax.core.workdir import claim_workdir

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
from ml_collections import ConfigDict


def get_config(argument="full"):
    return ConfigDict(
        {"route": "fake", "learning_rate": 0.1, "variant": argument, "stages": ("train",)}
    )
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return "--config=tiny.py"


@pytest.fixture
def calls(monkeypatch):
    made = []

    def route(config, workdir):
        made.append((config, workdir, jax.config.jax_compilation_cache_dir))
        claim_workdir(workdir, config, "tiny")

    monkeypatch.setitem(main_lib.ROUTES, "fake", route)
    return made


def test_it_is_short():
    assert len((ROOT / "medinit_jax" / "main.py").read_text().splitlines()) < 80


def test_it_hands_over_config_and_workdir_with_the_cache_on(config, calls):
    assert main_lib.main(["main", f"{config}:smoke", "--config.learning_rate=0.5"]) == 0
    ((given, workdir, cache),) = calls
    assert given.variant == "smoke" and given.learning_rate == 0.5
    assert workdir == Path("runs/tiny-smoke")
    assert cache and Path(cache).is_dir()


def test_an_unknown_key_ends_in_one_sentence(config, calls, capsys):
    assert main_lib.main(["main", config, "--config.lrr=1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'lrr'" in error and "learning_rate" in error
    assert not calls


def test_a_workdir_of_another_config_ends_in_one_sentence(config, calls, capsys):
    assert main_lib.main(["main", config, "--workdir=run"]) == 0
    assert main_lib.main(["main", config, "--workdir=run"]) == 0
    assert main_lib.main(["main", config, "--workdir=run", "--config.learning_rate=0.2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "learning_rate is 0.1 there and 0.2 here" in error and "--workdir=" in error


def test_an_unknown_route_is_named(config, calls, capsys):
    assert main_lib.main(["main", config, "--config.route=hiper"]) == 2
    assert "'hiper'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("Do this instead."), 2), (KeyboardInterrupt(), 130), (Preempted(), 75)],
)
def test_what_a_route_raises_for_the_user_is_printed(config, monkeypatch, capsys, error, code):
    def route(config, workdir):
        raise error

    monkeypatch.setitem(main_lib.ROUTES, "fake", route)
    assert main_lib.main(["main", config]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_defect_keeps_its_traceback(config, monkeypatch):
    monkeypatch.setitem(main_lib.ROUTES, "fake", lambda config, workdir: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main_lib.main(["main", config])


def test_the_exit_code_and_the_sentence_leave_the_process(config, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "medinit_jax.main", config, "--config.lrr=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "The config has no key 'lrr'; the keys there are " + (
        "learning_rate, route, stages, variant.\n"
    )
    assert not (tmp_path / "runs").exists()
