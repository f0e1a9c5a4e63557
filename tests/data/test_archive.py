import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.data import archive as archives
from medinit_jax.data.archive import unpack

FILES = {"DRIVE/training/a.tif": b"a" * 3_000_000, "DRIVE/b.csv": b"x,y\n", "empty.txt": b""}


def make_zip(path, files, attributes=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (attributes or {}).get(name, 0)
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path, files, mode="w", **attributes):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(folder):
    places = [place for place in folder.rglob("*") if place.is_file()]
    return {place.relative_to(folder).as_posix(): place.read_bytes() for place in places}


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tgz"])
def test_unpacks_beside_the_archive(name, tmp_path):
    if name.endswith("zip"):
        archive = make_zip(tmp_path / name, {**FILES, "DRIVE/empty/": b""})
    else:
        mode = "w" if name.endswith("tar") else "w:gz"
        archive = make_tar(tmp_path / name, FILES, mode)
    told = []
    result = unpack(archive, report=lambda done, total: told.append((done, total)))
    assert result.place == tmp_path / "set" and read(result.place) == FILES
    assert (result.files, result.size, result.packed) == (3, 3_000_004, [])
    # Chunk by chunk, so that one large file moves the bar too.
    assert told[0] == (0, 3_000_004) and told[-1] == (3_000_004, 3_000_004) and len(told) > 4
    assert sorted(place.name for place in tmp_path.iterdir()) == ["set", name]
    with pytest.raises(UsageError, match="exists already"):
        unpack(archive)


def test_a_gz_becomes_the_file_beside_it(tmp_path):
    archive = tmp_path / "im0001.ppm.gz"
    archive.write_bytes(gzip.compress(b"P6"))
    result = unpack(archive)
    assert result.place.read_bytes() == b"P6" and result.place == tmp_path / "im0001.ppm"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["im0001.ppm", "im0001.ppm.gz"]


def test_archives_in_archives_are_named(tmp_path):
    # Photographs of STARE and volumes are read as they are.
    members = {"a/Base11.zip": b"PK", "b.csv.gz": b"x", "im0001.ppm.gz": b"x", "v.nii.gz": b"x"}
    packed = unpack(make_tar(tmp_path / "outer.tar", {**members, "c": b""})).packed
    assert packed == [tmp_path / "outer/a/Base11.zip", tmp_path / "outer/b.csv.gz"]


EVIL = ["/etc/x", "../x", "a/../../x", "a\\..\\..\\x", "\\x", "C:\\x", "C:/x"]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_leads_out(kind, name, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    make = make_zip if kind == "zip" else make_tar
    archive = make(folder / f"evil.{kind}", {"good.txt": b"1", name: b"2"})
    with pytest.raises(UsageError, match="is an absolute path|leads out of its folder"):
        unpack(archive)
    assert [place.name for place in tmp_path.rglob("*")] == ["in", f"evil.{kind}"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused_in_tars(kind, tmp_path):
    archive = make_tar(tmp_path / "evil.tar", {"link": b""}, type=kind, linkname="good.txt")
    with pytest.raises(UsageError, match="'link' is a link or a device"):
        unpack(archive)
    assert len(list(tmp_path.iterdir())) == 1


def test_links_are_refused_in_zips(tmp_path):
    attributes = {"link": (stat.S_IFLNK | 0o777) << 16}
    archive = make_zip(tmp_path / "evil.zip", {"link": b"/etc/passwd"}, attributes)
    with pytest.raises(UsageError, match="'link' is a link or a device"):
        unpack(archive)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_would_overwrite_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "double.zip", "w") as archive:
            archive.writestr("a", "1")
            archive.writestr("a", "2")
    with pytest.raises(UsageError, match="'a' occurs twice"):
        unpack(tmp_path / "double.zip")
    archive = make_tar(tmp_path / "both.tar", {"a": b"1", "a/b": b"2"})
    with pytest.raises(UsageError, match="'a' is a file and a folder"):
        unpack(archive)
    assert not (tmp_path / "double").exists() and not (tmp_path / "both").exists()


def test_limits_hold_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 1_000_000)
    zeros = {"zeros": bytes(12_000_000)}
    for archive in (
        make_zip(tmp_path / "bomb.zip", zeros),
        make_tar(tmp_path / "bomb.tar.gz", zeros, "w:gz"),
    ):
        with pytest.raises(UsageError, match=r"more than 0.01 GB.*--max-gb"):
            unpack(archive, max_size=10_000_000)
        with pytest.raises(UsageError, match=r"times its size.*--max-ratio"):
            unpack(archive)
    packed = tmp_path / "bomb.csv.gz"
    packed.write_bytes(gzip.compress(zeros["zeros"]))
    with pytest.raises(UsageError, match="--max-ratio"):
        unpack(packed)
    names = {place.name for place in tmp_path.iterdir()}
    assert names == {"bomb.zip", "bomb.tar.gz", "bomb.csv.gz"}
    assert unpack(packed, max_ratio=2000).size == 12_000_000


def test_a_member_longer_than_declared_is_not_written(tmp_path):
    archive = make_zip(tmp_path / "liar.zip", {"a": bytes(100_000)})
    content = archive.read_bytes()
    true, false = (100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    archive.write_bytes(content.replace(true, false))
    with pytest.raises(UsageError, match="is damaged"):
        unpack(archive)
    assert [place.name for place in tmp_path.iterdir()] == ["liar.zip"]


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.csv.gz"])
def test_damaged_archives_leave_nothing(name, tmp_path):
    noise = {"noise": os.urandom(300_000)}
    if name.endswith("zip"):
        archive = make_zip(tmp_path / name, noise)
    elif ".tar" in name:
        archive = make_tar(tmp_path / name, noise, "w:gz" if name.endswith("gz") else "w")
    else:
        archive = tmp_path / name
        archive.write_bytes(gzip.compress(noise["noise"]))
    archive.write_bytes(archive.read_bytes()[:150_000])
    with pytest.raises(UsageError, match="is damaged|cannot be unpacked"):
        unpack(archive)
    assert [place.name for place in tmp_path.iterdir()] == [name]


def test_a_flipped_byte_is_noticed(tmp_path):
    archive = make_zip(tmp_path / "set.zip", {"noise": os.urandom(300_000)})
    content = bytearray(archive.read_bytes())
    content[150_000] ^= 255
    archive.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="is damaged"):
        unpack(archive)
    assert [place.name for place in tmp_path.iterdir()] == ["set.zip"]


def test_what_is_no_archive_is_explained(tmp_path):
    (tmp_path / "train.zip.001").write_bytes(b"PK")
    for name in ("train.zip.001", "train.zip.003", "train.zip"):
        if name.endswith("003"):
            (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(UsageError, match=r"cat train.zip.0\* > train.zip"):
            unpack(tmp_path / name)
    (tmp_path / "span.zip").write_bytes(b"PK")
    (tmp_path / "span.z01").write_bytes(b"PK")
    with pytest.raises(UsageError, match="zip -s 0 span.zip --out whole.zip"):
        unpack(tmp_path / "span.zip")
    (tmp_path / "page.zip").write_text("<!DOCTYPE html>")
    with pytest.raises(UsageError, match="a web page"):
        unpack(tmp_path / "page.zip")
    (tmp_path / "set.7z").write_bytes(b"7z")
    with pytest.raises(UsageError, match="7z x set.7z"):
        unpack(tmp_path / "set.7z")
    with pytest.raises(UsageError, match="does not exist"):
        unpack(tmp_path / "none.zip")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        unpack(tmp_path / "folder")
