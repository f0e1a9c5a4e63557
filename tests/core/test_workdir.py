import errno
import io
import json
import os
import socket
import subprocess
import sys

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import claim_workdir, claimed, is_finished, locked, write_json


def make_config(**changes):
    config = ConfigDict(
        {
            "stages": ("train", "report"),
            "seed": 0,
            "optimizer": {"learning_rate": 0.01, "name": "adamw"},
            "sizes": (1, 2),
            "path": None,
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def test_the_first_run_writes_the_config_sorted(tmp_path):
    assert claim_workdir(tmp_path / "a" / "run", make_config(), "hyper") is False
    text = (tmp_path / "a" / "run" / "config.json").read_text()
    held = json.loads(text)
    assert held["name"] == "hyper" and held["config"]["optimizer"]["learning_rate"] == 0.01
    assert list(held["config"]) == sorted(held["config"])
    assert [p.name for p in (tmp_path / "a" / "run").iterdir()] == ["config.json"]


def test_the_same_config_resumes_and_stages_may_differ(tmp_path):
    assert not claim_workdir(tmp_path, make_config(), "hyper")
    before = (tmp_path / "config.json").read_bytes()
    (tmp_path / "metrics.jsonl").write_text("")
    assert claim_workdir(tmp_path, make_config(), "hyper")
    assert claim_workdir(tmp_path, make_config(stages=("report",)), "hyper", ("stages",))
    assert (tmp_path / "config.json").read_bytes() == before


def test_another_config_is_refused_with_both_values_and_nothing_changes(tmp_path):
    claim_workdir(tmp_path, make_config(), "hyper:smoke")
    before = (tmp_path / "config.json").read_bytes()
    other = make_config(**{"optimizer.learning_rate": 0.1, "sizes": (1, 3)})
    other.extra = 1
    with pytest.raises(UsageError) as caught:
        claim_workdir(tmp_path, other, "hyper")
    message = str(caught.value)
    assert str(tmp_path) in message and "hyper:smoke" in message and "--workdir=" in message
    assert "optimizer.learning_rate is 0.01 there and 0.1 here" in message
    assert "sizes is [1, 2] there and [1, 3] here" in message
    assert "extra is absent there and 1 here" in message
    assert "seed" not in message and "\n" not in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_free_keys_cover_what_is_below_them(tmp_path):
    claim_workdir(tmp_path, make_config(), "hyper")
    other = make_config(**{"optimizer.name": "sgd"})
    assert claim_workdir(tmp_path, other, "hyper", free=("optimizer",))
    with pytest.raises(UsageError):
        claim_workdir(tmp_path, other, "hyper", free=("optim",))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no config.json.*--workdir="):
        claim_workdir(tmp_path, make_config(), "hyper")
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        claim_workdir(tmp_path / "run", make_config(), "hyper")


@pytest.mark.parametrize("content", ['{"name": "hy', "[]", "{}"])
def test_a_config_file_cut_short_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        claim_workdir(tmp_path, make_config(), "hyper")
    assert (tmp_path / "config.json").read_text() == content


def test_a_workdir_is_held_while_a_run_lasts(tmp_path):
    config, words = make_config(), rf"in use by process {os.getpid()} on {socket.gethostname()};"
    with claimed(tmp_path, config, "hyper"):
        with pytest.raises(UsageError, match=words):
            with claimed(tmp_path, config, "hyper"):
                pass
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with claimed(tmp_path, config, "hyper"):
        pass


def test_a_run_that_is_refused_at_once_gives_the_folder_back(tmp_path):
    with pytest.raises(UsageError, match="lower seed"), claimed(tmp_path, make_config(), "hyper"):
        raise UsageError("lower seed")
    with claimed(tmp_path, make_config(seed=1), "hyper"):
        (tmp_path / "metrics.jsonl").touch()
    # What it left belongs to its settings.
    with pytest.raises(UsageError, match="raise it"):
        with claimed(tmp_path, make_config(seed=1), "hyper"):
            raise UsageError("raise it")
    with pytest.raises(UsageError, match="seed is 1 there and 2 here"):
        with claimed(tmp_path, make_config(seed=2), "hyper"):
            pass


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_breaks_or_is_stopped_keeps_the_folder(tmp_path, error):
    with pytest.raises(error), claimed(tmp_path, make_config(), "hyper"):
        raise error
    with pytest.raises(UsageError, match="another configuration"):
        with claimed(tmp_path, make_config(seed=1), "hyper"):
            pass


def test_what_is_no_home_of_the_run_is_not_touched(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no config.json"):
        with claimed(tmp_path, make_config(), "hyper"):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_lock_that_a_first_moment_left_is_no_file_of_something_else(tmp_path):
    (tmp_path / "lock").write_text("")
    assert not claim_workdir(tmp_path, make_config(), "hyper")


HOLD = """
import sys, time
from medinit_jax.core.workdir import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def test_another_process_is_named_and_lets_go_when_it_is_killed(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"in use by process {other.pid} on .*--workdir=\.$"):
            with claimed(tmp_path, make_config(), "hyper"):
                pass
        assert not (tmp_path / "config.json").exists()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with claimed(tmp_path, make_config(), "hyper"):
        pass


def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path, make_config(), "hyper"):
        pass
    assert "cannot be locked" in capsys.readouterr().err


def test_a_summary_ends_a_run(tmp_path):
    console = Console(file=io.StringIO())
    assert not is_finished(tmp_path, console) and not console.file.getvalue()
    (tmp_path / "summary.json").write_text("{}")
    assert is_finished(tmp_path, console) and "is finished" in console.file.getvalue()


def test_write_json_replaces_in_one_move(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
