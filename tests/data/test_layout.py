import os
import shlex
import socket

import pytest
from fake_trees.drive import make_drive
from fake_trees.table import make_table

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.builders.table import MedinitTable
from medinit_jax.data.layout import DatasetLayoutError, Tree
from medinit_jax.data.prepare import prepare


def refusal(builder: Builder, folder) -> DatasetLayoutError:
    with pytest.raises(DatasetLayoutError) as raised:
        builder.checked_items(builder.locate(folder))
    return raised.value


@pytest.fixture
def drive(tmp_path):
    return MedinitDrive(data_dir=tmp_path / "data")


@pytest.fixture
def lenient(tmp_path):
    return MedinitDrive(data_dir=tmp_path / "data", strict_counts=False)


def command_in(fix: str) -> list[str]:
    return shlex.split(fix.partition("python -m medinit_jax.data ")[2])


def test_commands_in_messages_run_as_they_stand(drive, tmp_path):
    folder = tmp_path / "my $HOME's"
    folder.mkdir()
    archive = folder / "DRIVE (1).zip"
    archive.write_bytes(b"PK")
    assert command_in(refusal(drive, folder).fix) == ["unpack", str(archive)]
    archive.rename(folder / "a b.zip.001")
    words = shlex.split(refusal(drive, folder).fix)
    assert words[4:10] == ["cd", str(folder), "&&", "cat", "a b.zip.0*", ">"]
    tree = Tree("medinit_drive", folder)
    with pytest.raises(DatasetLayoutError) as raised:
        tree.file("x.csv")
    assert command_in(raised.value.fix) == ["info", "medinit_drive"]


def test_a_file_named_as_the_folder(drive, tmp_path):
    archive = tmp_path / "my DRIVE.zip"
    archive.write_bytes(b"PK")
    error = refusal(drive, archive)
    assert error.code == "E_ARCHIVE" and command_in(error.fix) == ["unpack", str(archive)]
    other = tmp_path / "21_training.tif"
    other.write_bytes(b"II*")
    error = refusal(drive, other)
    assert error.code == "E_MISSING_ROOT" and "is a file, not a folder" in str(error)
    assert error.fix.startswith("Name the folder") and "Download" not in error.fix


def test_a_table_that_is_missing(tmp_path):
    table = MedinitTable(data_dir=tmp_path / "data")
    error = refusal(table, tmp_path / "none.csv")
    assert error.code == "E_MISSING_ROOT" and "no such table" in str(error)
    assert "Name a table that exists" in error.fix
    for folder in (tmp_path / "none", tmp_path):
        assert refusal(table, folder).fix.startswith("Name the folder that holds these with --from")


def test_links_that_were_not_followed_are_named_where_something_is_missing(
    drive, lenient, tmp_path
):
    root, away = make_drive(tmp_path / "DRIVE"), tmp_path / "away"
    away.mkdir()
    image = root / "training/images/22_training.tif"
    image.rename(away / image.name)
    image.symlink_to(away / image.name)
    error = refusal(drive, root)
    assert error.code == "E_ORPHAN" and f"among them {image}" in error.fix
    (root / "training").rename(away / "training")
    (root / "training").symlink_to(away / "training")
    error = refusal(lenient, root)
    assert error.code == "E_MISSING_FILE" and f"among them {root}/training;" in error.fix
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "DRIVE").symlink_to(root)
    error = refusal(lenient, alone)
    assert error.code == "E_MISSING_ROOT" and "holds nothing that is read" in str(error)
    assert f"{alone}/DRIVE" in error.fix


def test_pipes_sockets_and_links_to_nothing_are_not_opened(lenient, tmp_path, monkeypatch):
    root = make_drive(tmp_path / "DRIVE")
    images = root / "training/images"
    for name in ("21_training.tif", "22_training.tif", "23_training.tif"):
        (images / name).unlink()
    os.mkfifo(images / "21_training.tif")
    (images / "22_training.tif").symlink_to("nothing.tif")
    # Paths of sockets are short.
    monkeypatch.chdir(images)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("23_training.tif")
    os.mkfifo(root / "pipe")
    (images / "linked.tif").symlink_to(root / "pipe")
    manifest = prepare(lenient, root, workers=0)
    assert manifest is not None and manifest["splits"] == {"train": 1, "test": 3}
    assert sorted(line.partition("DRIVE/")[2] for line in manifest["links_not_followed"]) == [
        "pipe (neither file nor folder)",
        "training/images/21_training.tif (neither file nor folder)",
        "training/images/22_training.tif (a link to nothing)",
        "training/images/23_training.tif (neither file nor folder)",
        "training/images/linked.tif (neither file nor folder)",
    ]
    table = make_table(tmp_path / "mine")
    os.mkfifo(table / "pipe.csv")
    own = MedinitTable(data_dir=tmp_path / "data")
    assert "no such table" in str(refusal(own, table / "pipe.csv"))


def test_a_folder_named_like_an_image_is_unreadable(lenient, tmp_path, monkeypatch):
    root = make_drive(tmp_path / "DRIVE")
    image = root / "training/images/21_training.tif"
    image.unlink()
    image.mkdir()
    with pytest.raises(DatasetLayoutError, match=r"21_training.tif cannot be read \(Is a dir") as e:
        prepare(lenient, root, workers=0)
    assert e.value.code == "E_DECODE"
    monkeypatch.setattr("medinit_jax.data.builders.base.MAX_SKIPPED", 0.2)
    skipping = MedinitDrive(data_dir=tmp_path / "s", strict_counts=False, on_corrupt="skip")
    manifest = prepare(skipping, root, workers=0)
    assert manifest is not None and [one["key"] for one in manifest["skipped"]] == ["train/21"]
