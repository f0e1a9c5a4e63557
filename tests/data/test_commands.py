import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from fake_trees.drive import make_drive
from fake_trees.table import make_table
from ml_collections import ConfigDict
from processes import await_that, outcome

from medinit_jax.core.errors import UsageError
from medinit_jax.data import commands
from medinit_jax.data.__main__ import main
from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.base import MAX_SKIPPED
from medinit_jax.data.catalog import open_splits
from medinit_jax.data.manifest import MANIFEST
from medinit_jax.data.tasks import TASKS, make_builder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_drive(tmp_path_factory.mktemp("drive"))


@pytest.fixture
def run(tmp_path, capfd):
    """Runs a command in a data_dir of its own: exit code, stdout, stderr."""

    def run(*arguments):
        if arguments[0] != "unpack":
            arguments += ("--data-dir", str(tmp_path / "data"))
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def test_list_shows_all_sets_and_tasks(run, tree):
    code, out, _ = run("list")
    assert code == 0 and "(prepared)" not in out
    for name in (*BUILDERS, *TASKS):
        assert f" {name} " in out
    drive = BUILDERS["medinit_drive"]
    for text in ("fundus", drive.SIZE, drive.HOMEPAGE, "default", "train_only"):
        assert text in out
    # It may be broken into lines.
    assert all(word in out for word in drive.LICENSE.split())
    arguments = ("--from", tree, "--any-count", "--workers", 0, "--split-seed", 3)
    run("prepare", "medinit_drive/train_only", *arguments)
    out = run("list")[1]
    assert "train_only_seed3 (prepared)" in out and "default (prepared)" not in out


def test_info_says_how_to_get_a_set_and_then_what_it_holds(run, tree):
    code, out, _ = run("info", "drive_seg")
    assert code == 0
    for text in (
        "Not prepared: ",
        "https://drive.grand-challenge.org/",
        "Expected tree: training/ and test/",
        "Published numbers: train 20, test 20",
        "python -m medinit_jax.data prepare medinit_drive/default --from DIR",
        "License: Registration on the site; no redistribution. https://drive.grand-challenge.org/",
        "unet: random 0.6853, hyper 0.7079",
    ):
        assert text in out
    out = run("info", "medinit_rsna_ihd/brain1_paper10_seed3")[1]
    assert "Published numbers: train 60224, test 15056" in out
    run("prepare", "drive_seg", "--from", tree, "--any-count", "--workers", 0)
    out = run("info", "medinit_drive")[1]
    for text in ("Prepared: ", "Examples: train 4, test 3", "Left out: none", "not followed: none"):
        assert text in out
    assert re.search(r"eye\W+unknown\W+4\W+3\W", out)


def test_prepare_tells_what_it_did(run, tree, tmp_path):
    arguments = ("prepare", "medinit_drive", "--from", tree, "--any-count", "--workers", 0)
    code, out, err = run(*arguments, "--hosts", 2, "--host", 1)
    assert code == 0 and "Host 1 of 2 is done" in out
    assert "Begun, not finished" in run("info", "medinit_drive")[1]
    code, out, err = run(*arguments, "--hosts", 2)
    assert code == 0 and "Prepared " in out and "Examples: train 4, test 3" in out
    assert "4/4 images" in err
    code, out, _ = run(*arguments)
    assert code == 0 and "is prepared already" in out


def test_prepare_lists_what_it_left_out(run, tmp_path, monkeypatch):
    assert MAX_SKIPPED == 0.001
    monkeypatch.setattr("medinit_jax.data.builders.base.MAX_SKIPPED", 0.2)
    root = make_drive(tmp_path / "tree", defects=("E_DECODE",))
    arguments = ("prepare", "medinit_drive", "--from", root, "--any-count", "--workers", 0)
    code, out, err = run(*arguments)
    assert (
        code == 2
        and "E_DECODE" in err
        and "--on-corrupt=skip" in err
        and len(err.splitlines()) >= 4
    )
    (root / "training/images/outside.tif").symlink_to("/etc/hostname")
    code, out, err = run(*arguments, "--on-corrupt", "skip")
    assert code == 0 and "cannot be read: 1\n  train/21" in out
    assert "not followed: 1\n" in out and "outside.tif" in out


def test_without_from_the_download_lies_in_the_data_dir(run, tmp_path):
    code, _, err = run("prepare", "medinit_drive")
    assert code == 2 and str(tmp_path / "data/downloads/manual/medinit_drive") in err
    make_drive(tmp_path / "data/downloads/manual/medinit_drive")
    assert run("prepare", "medinit_drive", "--any-count", "--workers", 0)[0] == 0


def test_verify_and_show(run, tree, tmp_path):
    assert run("verify", "drive_seg")[0] == 2
    run("prepare", "drive_seg", "--from", tree, "--any-count", "--workers", 0)
    code, out, _ = run("verify", "drive_seg")
    assert code == 0 and "is whole: every file, record and count" in out
    place = next((tmp_path / "data").rglob(MANIFEST))
    manifest = json.loads(place.read_text())
    del manifest["files"]
    place.write_text(json.dumps(manifest))
    code, out, _ = run("verify", "drive_seg")
    assert code == 0 and "is whole: every shard, record and count" in out
    assert "Not checked, for an older version recorded no sha256 of them: LICENSE, " in out
    sheet = tmp_path / "sheet.png"
    code, out, _ = run("show", "drive_seg", "--split", "test", "--count", 2, "--out", sheet)
    assert code == 0 and "2 images" in out and sheet.read_bytes()[1:4] == b"PNG"
    shard = next((tmp_path / "data").rglob("*train.array_record*"))
    shard.unlink()
    code, out, _ = run("verify", "drive_seg")
    assert code == 1 and f"{shard.name} is missing" in out and "1 problems" in out


def test_drawn_sets(run, tmp_path):
    name = "medinit_phantom_pretrain/fundus_32px_val_2"
    data = {"source": "phantom", "name": "fundus", "data_dir": str(tmp_path / "data"), "size": 32}
    data |= {"render_size": 32, "patients": {"val": 2}, "label": "", "cache_mb": 0.0}
    out = run("info", name)[1]
    for text in ("Not prepared: ", "Numbers: val 4", f"medinit_jax.data prepare {name}"):
        assert text in out
    open_splits(ConfigDict(data), ("val",))
    assert "fundus_32px_val_2" in run("list")[1]
    out = run("info", name)[1]
    assert "Examples: val 4" in out and "Modality: fundus" in out
    assert re.search(r"eye\W+left\W+2\W", out) and re.search(r"any_dr\W+dr\W+\d\W", out)
    assert run("verify", name)[0] == 0
    code, out, _ = run("show", name, "--out", tmp_path / "sheet.png")
    assert code == 0 and "4 images" in out
    code, out, _ = run("prepare", name)
    assert code == 0 and "is prepared already" in out


def test_unpack(run, tmp_path):
    shutil.make_archive(str(tmp_path / "DRIVE"), "zip", make_drive(tmp_path / "tree"))
    (tmp_path / "tree").rename(tmp_path / "original")
    code, out, _ = run("unpack", tmp_path / "DRIVE.zip")
    assert code == 0 and f"to {tmp_path / 'DRIVE'}" in out
    arguments = ("prepare", "medinit_drive", "--from", tmp_path / "DRIVE", "--any-count")
    assert run(*arguments, "--workers", 0)[0] == 0
    code, _, err = run("unpack", tmp_path / "DRIVE.zip")
    assert code == 2 and "exists already" in err


def test_exit_codes(run, monkeypatch):
    code, _, err = run("info", "medinit_drvie")
    assert code == 2 and "Perhaps one of: medinit_drive" in err
    with pytest.raises(SystemExit) as raised:
        main(["prepare", "medinit_drive", "--on-corrupt", "maybe"])
    assert raised.value.code == 2

    def stopped(**options):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "list", stopped)
    code, _, err = run("list")
    assert code == 130 and "Stopped" in err


# What starts the tests in the background may ignore the signal, and children inherit that.
COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("medinit_jax.data", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_images_are_drawn_is_a_sentence(tmp_path, number, code):
    words = ["prepare", "medinit_phantom/phantom_eyepacs_dr_64px", "--workers=2"]
    command = [sys.executable, "-c", COMMAND, *words, f"--data-dir={tmp_path}"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    await_that(lambda: list(tmp_path.rglob("*.tmp")), [started])
    # As a terminal and SLURM do, to all processes of the command.
    os.killpg(started.pid, number)
    ((found, _, error),) = outcome([started])
    assert found == code and "Traceback" not in error
    assert error.splitlines()[-1] == "Stopped; prepare goes on from the finished shards."


def test_what_disks_refuse_is_a_sentence(run, tree, tmp_path, monkeypatch, capfd):
    arguments = ("prepare", "drive_seg", "--from", tree, "--any-count", "--workers", 0)

    def refused(*words, **patch):
        with monkeypatch.context() as patched:
            for name, value in patch.items():
                patched.setattr(os, name, value)
            code, _, err = run(*words)
        assert code == 2 and "Traceback" not in err
        return err

    (tmp_path / "data").touch()
    assert "Not a directory; name a folder where one is needed" in refused(*arguments)
    (tmp_path / "data").unlink()

    def deny(path, *rest, **more):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def read_only(path, *rest, **more):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    assert f"{tree} cannot be read or written: Permission denied; change its permissions" in (
        refused(*arguments, scandir=deny)
    )
    assert "Read-only file system; name another place" in refused(*arguments, mkdir=read_only)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
    try:
        assert "write() failed: File too large; put that right" in refused(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert run(*arguments)[0] == 0
    (tmp_path / "folder.png").mkdir()
    show = ("show", "drive_seg", "--out")
    assert "Is a directory; name a file" in refused(*show, tmp_path / "folder.png")
    (tmp_path / "file").touch()
    assert "name a folder where one is needed" in refused(*show, tmp_path / "file/sheet.png")
    os.mkfifo(tmp_path / "pipe.zip")
    assert "is no regular file" in refused("unpack", tmp_path / "pipe.zip")


@pytest.mark.parametrize("damage", [b"", None])
def test_show_sends_a_damaged_set_to_verify(run, tree, tmp_path, damage):
    run("prepare", "drive_seg", "--from", tree, "--any-count", "--workers", 0)
    shard = next((tmp_path / "data").rglob("*train.array_record*"))
    shard.unlink() if damage is None else shard.write_bytes(damage)
    code, _, err = run("show", "drive_seg", "--out", tmp_path / "sheet.png")
    assert code == 2 and "medinit_jax.data verify medinit_drive/default` says what" in err


def test_numbers_that_mean_nothing_are_usage_errors(run, tree, capfd):
    for words in (
        ("prepare", "drive_seg", "--split-seed", "-1"),
        ("verify", "drive_seg", "--workers", "two"),
        ("unpack", "a.zip", "--max-gb", "nan"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(words)
        assert raised.value.code == 2
        assert f"argument {words[2]}: {words[3]} is no " in capfd.readouterr()[1]
    with pytest.raises(UsageError, match="split seed is -1"):
        make_builder("drive_seg", split_seed=-1)
    for share in ("1.2.3", ".", "1" * 5000):
        code, _, err = run("prepare", f"phantom_drive_seg_x{share}")
        assert code == 2 and "has no config" in err


def test_a_table_of_ones_own(run, tmp_path):
    root = make_table(tmp_path / "mine")
    columns = "image=image,labels=label|edema,classes=,patient=person,eye=side,split=part,mask=mask"
    arguments = ("prepare", "medinit_table/mine", "--from", root, "--workers", 0)
    code, _, err = run(*arguments, "--columns", "picture=file")
    assert code == 2 and "'picture=file' is none of these" in err
    code, _, err = run("prepare", "medinit_drive", "--from", root, "--columns", columns)
    assert code == 2 and "Columns belong to medinit_table/NAME" in err
    code, out, _ = run("info", "medinit_table")
    assert code == 0 and "Draw it" not in out
    assert "prepare medinit_table/NAME --from DIR_OR_TABLE --columns image=file" in out
    code, _, err = run("prepare", "medinit_table", "--from", root, "--workers", 0)
    assert code == 0, err
    code, _, err = run(*arguments, "--columns", "labels=dx")
    assert code == 2 and "no column is named dx" in err and "--columns" in err
    code, out, err = run(*arguments, "--split-seed", 3, "--columns", "labels=label")
    assert code == 0 and "Prepared " in out and "medinit_table/mine_seed3" in out, err
    assert "Seed of our own divisions: 3" in run("info", "medinit_table/mine_seed3")[1]
    code, out, err = run(*arguments, "--columns", columns)
    assert code == 0 and "Prepared " in out, err
    assert run("verify", "medinit_table/mine")[0] == 0
    found = run("info", "medinit_table/mine")[1]
    counts = re.search(r"Examples: (.*)", found)
    assert counts and {part.split()[0] for part in counts[1].split(", ")} == {
        "train",
        "validation",
        "test",
    }
    assert run("show", "medinit_table/mine", "--out", tmp_path / "mine.png")[0] == 0
