import json

import pytest
from ml_collections import ConfigDict

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import claim_workdir, write_json


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


def test_write_json_replaces_in_one_move(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
