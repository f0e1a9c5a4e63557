from pathlib import Path

import pytest
from ml_collections import ConfigDict

from medinit_jax.core.config import read_command_line, read_stages, unknown_variant
from medinit_jax.core.errors import UsageError

CONFIG = """
from ml_collections import ConfigDict, config_dict

from medinit_jax.core.config import unknown_variant

VARIANTS = {"": 100, "smoke": 2}


def get_config(argument=""):
    if argument not in VARIANTS:
        raise unknown_variant(argument, VARIANTS)
    config = ConfigDict()
    config.route = "fake"
    config.stages = ("train", "evaluate", "report")
    config.seed = 0
    config.preset = "stable"
    config.data = ConfigDict({"path": config_dict.placeholder(str), "size": 32})
    config.optimizer = ConfigDict(
        {"learning_rate": 0.1, "clip": True, "steps": VARIANTS[argument], "weight_decay": 0.0}
    )
    config.presets = ConfigDict(
        {
            "stable": {},
            "seed_paper": {"seed": 7, "optimizer": {"learning_rate": 0.01, "weight_decay": 0.5}},
        }
    )
    return config
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, variant=""):
        return read_command_line(["main", f"--config=configs/tiny.py{variant}", *arguments])

    return run


def message(read, *arguments, variant=""):
    with pytest.raises(UsageError) as caught:
        read(*arguments, variant=variant)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_workdir_is_named_after_config_and_variant(read):
    assert read().workdir == Path("runs/tiny")
    assert read(variant=":smoke").workdir == Path("runs/tiny-smoke")
    assert read("--workdir=elsewhere").workdir == Path("elsewhere")


def test_the_variant_and_the_overrides_reach_the_config(read):
    config = read(
        "--config.optimizer.learning_rate=3e-4",
        "--config.data.path=../images",
        "--noconfig.optimizer.clip",
        variant=":smoke",
    ).config
    assert config.optimizer.steps == 2
    assert config.optimizer.learning_rate == 3e-4 and not config.optimizer.clip
    assert config.data.path == "../images"
    assert config.is_locked


def test_a_flag_and_its_value_may_be_two_words(read):
    command = read_command_line(["main", "--config", "configs/tiny.py:smoke", "--config.seed", "4"])
    assert command.config.seed == 4 and command.workdir == Path("runs/tiny-smoke")


@pytest.mark.parametrize(
    ("short", "start", "path"),
    [("torch:a/b:c.pth", "torch", "a/b:c.pth"), ("random", "random", "")],
)
def test_a_start_and_its_path_may_be_one_word(short, start, path):
    folder = Path(__file__).resolve().parents[2] / "configs"
    command = ["main", f"--config={folder}/finetune.py:phantom_idrid_32px", "--config.seed=3"]
    config = read_command_line([*command, f"--config.init={short}"]).config
    assert (config.init.start, config.init.path, config.seed) == (start, path, 3)
    with pytest.raises(UsageError, match="no key 'init.start'"):
        read_command_line(["main", f"--config={folder}/hyper.py", f"--config.init={short}"])


def test_a_preset_sets_its_values_and_the_command_line_wins(read):
    config = read("--config.preset=seed_paper", "--config.optimizer.learning_rate=1.0").config
    assert config.seed == 7 and config.optimizer.weight_decay == 0.5
    assert config.optimizer.learning_rate == 1.0
    assert read("--config.preset=stable").config.seed == 0
    text = message(read, "--config.preset=paper")
    assert "'paper'" in text and "seed_paper, stable" in text


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimizer.learningrate=1", ["'optimizer.learningrate'", "mean optimizer.learn"]),
        ("--config.learning_rate=1", ["'learning_rate'", "did you mean optimizer.learning_rate"]),
        ("--config.sed=1", ["'sed'", "did you mean seed?"]),
        ("--config.optimizer.zzz=1", ["'optimizer.zzz'", "the keys there are optimizer.clip, opt"]),
        ("--config.nowhere.zzz=1", ["'nowhere.zzz'", "the keys there are data, optimizer"]),
        ("--config.seed.zzz=1", ["'seed.zzz'", "the keys there are data, optimizer"]),
        ("--config.data.zzz.a=1", ["'data.zzz.a'", "the keys there are data.path, data.size."]),
        ("--noconfig.clipp", ["'clipp'", "optimizer.clip"]),
    ],
)
def test_an_unknown_key_is_named_with_what_is_like_it(read, argument, words):
    text = message(read, argument)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.seed=abc"], ["config.seed", "abc"]),
        (["--workdri=x"], ["workdri", "workdir"]),
        (["report"], ["'report'"]),
    ],
)
def test_a_wrong_argument_is_named(read, arguments, words):
    text = message(read, *arguments)
    assert all(word in text for word in words), text


def test_an_unknown_variant_is_named(read):
    text = message(read, variant=":smok")
    assert "no variant 'smok'" in text and "'smoke'" in text
    assert "'a', 'b'" in str(unknown_variant("c", ["", "a", "b"]))


@pytest.mark.parametrize("argv", [["main"], ["main", "--config="], ["main", "--workdir=x"]])
def test_no_config(argv):
    with pytest.raises(UsageError, match="--config=FILE.py"):
        read_command_line(argv)


def test_a_config_file_that_is_not_there(read):
    with pytest.raises(UsageError, match=r"no config file configs/other\.py"):
        read_command_line(["main", "--config=configs/other.py:smoke"])


def test_help_prints_the_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        read_command_line(["main", "--help"], "How to use it.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "How to use it." in text and "--workdir" in text and "--config" in text


KNOWN = ("train", "evaluate", "report")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ((), KNOWN),
        (("--config.stages=report",), ("report",)),
        (("--config.stages=report,evaluate",), ("evaluate", "report")),
        (("--config.stages=('train', 'report')",), ("train", "report")),
        (("--config.stages=train", "--config.stages=evaluate"), ("train", "evaluate")),
    ],
)
def test_stages_run_in_their_order(read, argument, expected):
    assert read_stages(read(*argument).config, KNOWN) == expected


@pytest.mark.parametrize("stages", [("tain",), (), ("",)])
def test_an_unknown_stage_is_named(stages):
    with pytest.raises(UsageError, match="config.stages .*train,evaluate,report"):
        read_stages(ConfigDict({"stages": stages}), KNOWN)
