import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from fake_trees.drive import make_drive
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data import prepare as preparing
from medinit_jax.data import shards
from medinit_jax.data.__main__ import main
from medinit_jax.data.builders.config import Config
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.manifest import MANIFEST, read_manifest
from medinit_jax.data.prepare import prepare
from medinit_jax.data.tasks import make_builder

SLOW = """
import signal, sys, time
from pathlib import Path
from medinit_jax.data import shards
from medinit_jax.data.__main__ import main
from medinit_jax.data.builders.drive import MedinitDrive

# What starts the tests in the background may ignore it, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
shards.SHARD_EXAMPLES = 1
DATA, TREE, PLACE, AFTER, WORKERS = sys.argv[1:]
decode = MedinitDrive.example

def example(self, item):
    # Stops for good once some shards are done.
    if len(list(Path(DATA).rglob("*.array_record*.json"))) >= int(AFTER):
        Path(PLACE, str(__import__("os").getpid())).touch()
        time.sleep(600)
    return decode(self, item)

MedinitDrive.example = example
if __name__ == "__main__":
    code = main(
        ["prepare", "medinit_drive", "--any-count", "--data-dir", DATA, "--from", TREE]
        + ["--workers", WORKERS]
    )
    sys.exit(code)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_drive(tmp_path_factory.mktemp("drive"))


@pytest.fixture
def one_each(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_EXAMPLES", 1)


def drive(data_dir, config="default", **options):
    return MedinitDrive(data_dir=data_dir, config=config, strict_counts=False, **options)


def contents(folder):
    return {place.name: place.read_bytes() for place in Path(folder).iterdir()}


def stuck(tmp_path, tree, after, workers, processes):
    """Starts a preparation in a process of its own and waits until it stops by itself."""
    script, place = tmp_path / "slow.py", tmp_path / "stuck"
    script.write_text(SLOW)
    place.mkdir()
    arguments = [str(tmp_path / "data"), str(tree), str(place), str(after), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, script, *arguments], env=environment)
    until = time.monotonic() + 120
    while len(list(place.iterdir())) < processes:
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    return started, [int(one.name) for one in place.iterdir()]


def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(tree, tmp_path, one_each):
    process, _ = stuck(tmp_path, tree, after=3, workers=0, processes=1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    builder = drive(tmp_path / "data")
    work = Path(f"{builder.data_path}.incomplete")
    done = {p.name: p.stat() for p in work.glob("*.array_record-?????-of-?????")}
    assert len(done) == 3 and list(work.glob("*.tmp"))
    told = []
    prepare(builder, tree, workers=0, report=lambda *counts: told.append(counts))
    assert told == [(3, 7), (4, 7), (5, 7), (6, 7), (7, 7)]
    for name, before in done.items():
        after = Path(builder.data_path, name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    whole = drive(tmp_path / "whole")
    prepare(whole, tree, workers=0)
    assert contents(builder.data_path) == contents(whole.data_path)
    assert not work.exists() and len(list(Path(builder.data_path).parent.iterdir())) == 1


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_the_process_that_started_them(tree, tmp_path):
    process, workers = stuck(tmp_path, tree, after=0, workers=2, processes=2)
    assert process.pid not in workers and all(running(pid) for pid in workers)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 30
    while any(running(pid) for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_interrupted_preparation_does_not_wait_for_its_shards(tree, tmp_path):
    process, workers = stuck(tmp_path, tree, after=0, workers=2, processes=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not any(running(pid) for pid in workers)


def test_processes_write_the_same_bytes(tree, tmp_path):
    # A config made by hand, for another seed, travels too.
    alone, many = (
        make_builder("medinit_drive/train_only", tmp_path / name, 3, strict_counts=False)
        for name in ("alone", "many")
    )
    told = []
    prepare(alone, tree, workers=0)
    prepare(many, tree, workers=2, report=lambda *counts: told.append(counts))
    assert contents(alone.data_path) == contents(many.data_path)
    assert told[0] == (0, 4) and told[-1] == (4, 4)


def test_two_hosts_in_one_folder(tree, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "medinit_jax.data", "prepare", "drive_seg", "--any-count"]
    command += ["--data-dir", str(tmp_path / "data"), "--from", str(tree), "--hosts", "2"]
    hosts = [
        subprocess.Popen(
            [*command, "--host", str(host)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for host in range(2)
    ]
    outputs = [host.communicate(timeout=120)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    assert any("Prepared" in output for output in outputs)
    whole = drive(tmp_path / "whole")
    prepare(whole, tree, workers=0)
    assert contents(drive(tmp_path / "data").data_path) == contents(whole.data_path)


def test_the_last_host_finishes(tree, tmp_path, one_each):
    assert prepare(drive(tmp_path), tree, workers=0, host=0, hosts=3) is None
    assert prepare(drive(tmp_path), tree, workers=0, host=2, hosts=3) is None
    manifest = prepare(drive(tmp_path), tree, workers=0, host=1, hosts=3)
    assert manifest["splits"] == {"train": 4, "test": 3} and len(manifest["shards"]) == 7
    assert prepare(drive(tmp_path), tree, workers=0, host=0, hosts=3) == manifest
    with pytest.raises(UsageError, match="host 3 of 3 hosts: count them from 0 to 2"):
        prepare(drive(tmp_path / "other"), tree, host=3, hosts=3)


def test_hosts_that_finish_at_the_same_moment(tree, tmp_path, monkeypatch):
    barrier, found = threading.Barrier(2, timeout=60), {}
    write, make = preparing.write_shards, preparing.make_manifest

    def write_shards(*arguments):
        write(*arguments)
        barrier.wait()

    def make_manifest(*arguments):
        barrier.wait()
        return make(*arguments)

    monkeypatch.setattr(preparing, "write_shards", write_shards)
    monkeypatch.setattr(preparing, "make_manifest", make_manifest)

    def run(host):
        found[host] = prepare(drive(tmp_path), tree, workers=0, host=host, hosts=2)

    threads = [threading.Thread(target=run, args=(host,)) for host in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    target = Path(drive(tmp_path).data_path)
    assert found[0] == found[1] == read_manifest(target)
    assert [place.name for place in target.parent.iterdir()] == [target.name]
    shown = {shard["file"] for shard in found[0]["shards"]}
    assert shown < set(contents(target)) and not list(target.glob("*.tmp"))


def test_a_host_that_comes_too_late_leaves_nothing(tree, tmp_path, monkeypatch):
    check, manifests = MedinitDrive.checked_items, []

    def checked_items(self, found):
        if not manifests:
            manifests.append(None)
            manifests.append(prepare(drive(tmp_path), tree, workers=0))
        return check(self, found)

    monkeypatch.setattr(MedinitDrive, "checked_items", checked_items)
    late = drive(tmp_path)
    assert prepare(late, tree, workers=0, host=1, hosts=2) == manifests[1]
    assert len(list(Path(late.data_path).parent.iterdir())) == 1


def test_a_set_that_another_process_wrote_meanwhile_is_read(tmp_path, tree):
    early = drive(tmp_path)
    manifest = prepare(drive(tmp_path), tree, workers=0)
    assert not early.info.splits
    assert prepare(early, tree, workers=0) == manifest
    assert len(early.as_data_source(split="train")) == early.info.splits["train"].num_examples > 0


def test_other_options_begin_anew_but_not_under_another_host(tree, tmp_path, one_each, caplog):
    prepare(drive(tmp_path), tree, workers=0, host=0, hosts=2)
    other = drive(tmp_path, on_corrupt="skip")
    with pytest.raises(UsageError, match="start all hosts with the same command"):
        prepare(other, tree, workers=0, host=1, hosts=2)
    assert prepare(other, tree, workers=0)["splits"] == {"train": 4, "test": 3}
    assert "is written anew: it was begun with other files or options" in caplog.text


def test_files_that_changed_between_two_calls_begin_anew(tree, tmp_path, one_each, caplog):
    tree = shutil.copytree(tree, tmp_path / "tree")
    prepare(drive(tmp_path / "data"), tree, workers=0, host=0, hosts=2)
    for name, number in (("training", 21), ("test", 1)):
        place = tree / f"{name}/images/{number:02d}_{name}.tif"
        with Image.open(place) as image:
            image.point(lambda level: 255 - level).save(place)
    with pytest.raises(UsageError, match="files of the download .* changed .* the same files"):
        prepare(drive(tmp_path / "data"), tree, workers=0, host=1, hosts=2)
    prepare(drive(tmp_path / "data"), tree, workers=0)
    assert "is written anew: the files of the download" in caplog.text
    prepare(drive(tmp_path / "whole"), tree, workers=0)
    assert contents(drive(tmp_path / "data").data_path) == contents(
        drive(tmp_path / "whole").data_path
    )


def test_a_download_may_move_between_two_calls(tree, tmp_path, one_each):
    prepare(drive(tmp_path), tree, workers=0, host=0, hosts=2)
    work = Path(f"{drive(tmp_path).data_path}.incomplete")
    done = {place: place.stat().st_ino for place in work.glob("*.array_record-?????-of-?????")}
    moved = shutil.copytree(tree, tmp_path / "moved")
    assert prepare(drive(tmp_path), moved, workers=0, host=1, hosts=2) is not None
    target = Path(drive(tmp_path).data_path)
    assert len(done) == 4
    assert all((target / place.name).stat().st_ino == inode for place, inode in done.items())


def test_what_was_skipped_too_often_is_tried_again(tmp_path, one_each):
    root = make_drive(tmp_path / "tree", defects=("E_DECODE",))
    builder = drive(tmp_path / "data", on_corrupt="skip")
    with pytest.raises(DatasetLayoutError, match="1 of 7 files cannot be read") as raised:
        prepare(builder, root, workers=0)
    assert raised.value.path == str(root)
    assert raised.value.found[0].startswith("21_training.tif cannot be read (")
    make_drive(root)
    assert prepare(builder, root, workers=0)["splits"] == {"train": 4, "test": 3}


def test_skipped_files_are_counted_and_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("medinit_jax.data.builders.base.MAX_SKIPPED", 0.2)
    root = make_drive(tmp_path / "tree", defects=("E_DECODE",))
    manifest = prepare(drive(tmp_path, on_corrupt="skip"), root, workers=0)
    assert manifest["splits"] == {"train": 3, "test": 3}
    (skipped,) = manifest["skipped"]
    assert skipped["key"] == "train/21" and "21_training.tif cannot be read" in skipped["reason"]


def test_another_seed_has_a_folder_of_its_own(tree, tmp_path):
    ids = {}
    for seed in range(4):
        builder = make_builder(
            "medinit_drive/train_only", tmp_path, split_seed=seed, strict_counts=False
        )
        prepare(builder, tree, workers=0)
        ids[seed] = builder.as_data_source("test")[0]["image_id"]
    folders = sorted(place.name for place in (tmp_path / "medinit_drive").iterdir())
    assert folders == ["train_only", *(f"train_only_seed{seed}" for seed in (1, 2, 3))]
    assert len(set(ids.values())) > 1


def test_labels_are_counted(tree, tmp_path):
    manifest = prepare(drive(tmp_path), tree, workers=0)
    assert manifest["labels"]["test"] == {
        "eye": {"left": 0, "right": 0, "unknown": 3},
        "fov_source": {"computed": 0, "file": 3},
    }
    assert json.loads(Path(drive(tmp_path).data_path, MANIFEST).read_text()) == manifest


def test_what_others_wrote_is_left_alone(tree, tmp_path):
    target = Path(drive(tmp_path).data_path)
    target.mkdir(parents=True)
    with pytest.raises(UsageError, match="was not written by this command"):
        prepare(drive(tmp_path), tree, workers=0)
    (target / MANIFEST).write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        prepare(drive(tmp_path), tree, workers=0)


def test_a_set_made_under_weaker_checks_is_not_taken_for_a_whole_one(tree, tmp_path, capsys):
    manifest = prepare(drive(tmp_path), tree, workers=0)
    assert manifest["accepted"] == ["train has 4 of 20", "test has 3 of 20"]
    with pytest.raises(UsageError, match=r"with --any-count .*train has 4 of 20.*delete it"):
        prepare(MedinitDrive(data_dir=tmp_path), tree, workers=0)
    assert prepare(drive(tmp_path), tree, workers=0) == manifest
    command = ["prepare", "medinit_drive", "--data-dir", str(tmp_path), "--from", str(tree)]
    assert main(command) == 2
    assert "was prepared with --any-count" in capsys.readouterr().err
    assert main([*command, "--any-count"]) == 0
    assert "is prepared already" in capsys.readouterr().out
    assert main(["info", "medinit_drive", "--data-dir", str(tmp_path)]) == 0
    assert "accepted with --any-count: 2\n  train has 4 of 20" in capsys.readouterr().out


def test_a_whole_set_is_taken_whatever_it_was_made_with(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(MedinitDrive, "COUNTS", {"default": {"train": 4, "test": 3}})
    manifest = prepare(drive(tmp_path, on_corrupt="skip"), tree, workers=0)
    assert manifest["accepted"] == manifest["skipped"] == []
    assert prepare(MedinitDrive(data_dir=tmp_path), tree, workers=0) == manifest
    assert prepare(drive(tmp_path, on_corrupt="skip"), tree, workers=0) == manifest


def test_a_set_that_lacks_unreadable_files_is_not_taken_for_one_without(tmp_path, monkeypatch):
    monkeypatch.setattr("medinit_jax.data.builders.base.MAX_SKIPPED", 0.2)
    root = make_drive(tmp_path / "tree", defects=("E_DECODE",))
    manifest = prepare(drive(tmp_path, on_corrupt="skip"), root, workers=0)
    assert prepare(drive(tmp_path, on_corrupt="skip"), root, workers=0) == manifest
    with pytest.raises(UsageError, match=r"--on-corrupt=skip and lacks 1 files .*\(train/21\)"):
        prepare(drive(tmp_path), root, workers=0)
    monkeypatch.setattr(MedinitDrive, "KNOWN_CORRUPT", frozenset({"train/21"}))
    assert prepare(drive(tmp_path), root, workers=0) == manifest


def test_missing_files_that_were_accepted_are_listed(tmp_path):
    root = make_drive(tmp_path / "tree", defects=("E_ORPHAN",))
    accepted = prepare(drive(tmp_path), root, workers=0)["accepted"]
    assert any(re.fullmatch(r"1 of \d have no .*", one) for one in accepted)


@pytest.mark.parametrize(
    "other", [{"shorter": 24}, {"square": 16}, {"split_seed": 3}, {"rule": "train_only"}]
)
def test_configs_of_one_name_are_not_taken_for_each_other(other, tree, tmp_path):
    mine = Config(name="mine", description="First.")
    prepare(drive(tmp_path, mine), tree, workers=0)
    with pytest.raises(UsageError, match=rf"other options of the same name \({[*other][0]}\)"):
        drive(tmp_path, dataclasses.replace(mine, **other))
    assert drive(tmp_path, dataclasses.replace(mine, description="Second.")) is not None
