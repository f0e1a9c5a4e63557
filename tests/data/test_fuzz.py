"""Damaged files end in a result, a listed skip or an error of ours, within 5 s and 1 GiB.

A fixed part runs always: 172 files by number (86 more with DICOM) and 30 made by hand. Many,
1,200 of each kind, take some minutes:

    python -m pytest -n0 -m slow -s tests/data/test_fuzz.py
"""

import collections
import importlib.util
import sys

import damage
import pytest

FEW, MANY = 86, 1200
GOOD = {"read", "UsageError", "DatasetLayoutError", "DecodeError", "MaskError"}
MAKERS = {"images": damage.damaged_image, "tables": damage.damaged_table}
MAKERS["dicom"] = damage.damaged_dicom
NO_DICOM = pytest.mark.skipif(
    importlib.util.find_spec("medinit_jax.data.dicom") is None, reason="DICOM is not read here"
)
KINDS = ["images", "tables", pytest.param("dicom", marks=NO_DICOM)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")


@pytest.fixture(scope="module")
def worker():
    worker = damage.Worker()
    yield worker
    worker.close()


def outcome(worker, folder, name, content):
    """Reads a file in a folder of its own."""
    folder.mkdir()
    place = folder / name
    place.write_bytes(content)
    result = worker.read(place)
    place.unlink()
    return result


def check(kind, first, count, worker, tmp_path):
    ends, bad = collections.defaultdict(collections.Counter), []
    for number in range(first, first + count):
        file = MAKERS[kind](number)
        result = outcome(worker, tmp_path / str(number), file.name, file.content)
        ends[f"{file.name.rpartition('.')[2]}: {file.damage.partition(',')[0]}"][result.how] += 1
        if result.how not in GOOD:
            bad.append(f"{file.name} ({file.damage}): {result}")
    total = sum(ends.values(), collections.Counter())
    for name in sorted(ends):
        print(f"{name:24s} {dict(ends[name])}")
    print(f"{kind}: {dict(total)}")
    assert not bad, "\n".join(bad)
    # Some damage does no harm, most does.
    assert total["read"] and total["DatasetLayoutError"] + total["DecodeError"] > count / 4


@pytest.mark.parametrize("kind", KINDS)
def test_some_damaged_files(kind, worker, tmp_path):
    check(kind, 0, FEW, worker, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind, worker, tmp_path):
    check(kind, 1000, MANY, worker, tmp_path)


READABLE = {"utf16.csv", "utf32.csv", "latin.csv", "bom.csv", "commas.csv"}


@pytest.mark.parametrize("name", damage.HOSTILE)
def test_files_that_want_too_much(name, worker, tmp_path):
    result = outcome(worker, tmp_path / "folder", name, damage.HOSTILE[name]())
    assert result.how in GOOD, result
    assert (result.how == "read") == (name in READABLE), result


def test_the_worker_finds_what_is_wrong(worker, tmp_path):
    (tmp_path / "a.csv").mkdir()
    assert worker.read(tmp_path / "a.csv").how == "crash"
