"""Reading pairs: values, the threshold, and what is wrong with a table or its files."""

import pickle
import shutil

import numpy as np
import pytest
from made_patches import CROP, plan, scored
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.patch_pairs import abnormality, one_sided, open_pairs
from medinit_jax.swcl.patch_store import write_files, write_prepared
from medinit_jax.swcl.patch_table import Row, read_table, table_text


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a prepared set `mine` and the same pairs as PNG files in `patches`."""
    folder = tmp_path_factory.mktemp("patches")
    write_prepared(folder, "mine", plan(), scored, crop=CROP)
    write_files(folder / "patches", plan(), scored, crop=CROP, quality=0)
    return folder


@pytest.fixture
def files(written, tmp_path):
    """A copy of the files, to be spoiled."""
    return shutil.copytree(written / "patches", tmp_path / "patches")


def lines(folder):
    """Returns the table's lines."""
    return (folder / "labels.csv").read_text().splitlines()


def test_both_layouts_hold_the_same_pairs(written):
    prepared = open_pairs("retinal_swap/mine", str(written))
    files = open_pairs(str(written / "patches"))
    assert len(prepared) == len(files) == 30
    for index in range(30):
        one, other = prepared[index], files[index]
        assert set(one) == {"left", "right", "position", "patient", "scores"}
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])
        assert one["left"].shape == (CROP, CROP, 3) and one["left"].dtype == np.uint8
    # What the authors' table does not tell.
    assert set(prepared.table.labels.ravel()) == {-1, 0, 1}
    assert set(files.table.labels.ravel()) == {-1}


@pytest.mark.parametrize("kind", ["prepared", "files"])
def test_sources_travel_to_other_processes_and_describe_themselves(kind, written):
    place = "retinal_swap/mine" if kind == "prepared" else str(written / "patches")
    pairs = open_pairs(place, str(written))
    copy = pickle.loads(pickle.dumps(pairs))
    np.testing.assert_array_equal(copy[7]["right"], pairs[7]["right"])
    described = pairs.describe()
    assert described["count"] == 30 and len(described["sha256"]) == 64
    assert described["source"].startswith("prepared:retinal" if kind == "prepared" else "patches:/")


def test_labels_of_the_reference(tmp_path):
    held = swcl()
    (tmp_path / "labels.csv").write_text(str(held["lab_csv"]))
    table = read_table(tmp_path / "labels.csv")
    np.testing.assert_array_equal(abnormality(table.scores), held["lab_mt_abn"])
    np.testing.assert_array_equal(table.positions, held["lab_mt_pos"][:, 0])
    np.testing.assert_array_equal(table.patients, held["lab_patient"][:, 0])
    assert set(table.sources) == {"eyepacs", "oia-odir"}


def test_the_threshold_belongs_to_the_abnormal_side():
    scores = np.array([0.39999, 0.4, np.float32(0.4), 0.0, 1.0])
    assert abnormality(scores).tolist() == [0, 1, 1, 0, 1]
    assert abnormality(scores, 1.0).tolist() == [0, 0, 0, 0, 1]
    assert abnormality(scores, 0.0).tolist() == [1] * 5
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="threshold of abnormality is .*choose one there"):
            abnormality(scores, wrong)


def test_a_threshold_that_parts_nothing_is_told_with_a_histogram():
    scores = np.array([[0.05, 0.12], [0.19, 0.31]])
    assert one_sided(scores, 0.2) == ""
    text = one_sided(scores, 0.4)
    assert text.startswith("All 4 patches lie below the threshold 0.4")
    assert "0.0-0.1: 1, 0.1-0.2: 2, 0.2-0.3: 0, 0.3-0.4: 1, 0.4-0.5: 0" in text
    assert "All 4 patches lie above the threshold 0.05" in one_sided(scores, 0.05)


def test_tables_come_back_with_and_without_labels(tmp_path):
    third = float(np.float32(1 / 3))
    rows = [Row("mine_a_left_c", third, "mine_a_right_c", 0.0, 1, 0)]
    for labels in (True, False):
        (tmp_path / "t.csv").write_text(table_text(rows, labels))
        table = read_table(tmp_path / "t.csv")
        assert table.names == [("mine_a_left_c", "mine_a_right_c")]
        assert table.scores.tolist() == [[third, 0.0]]
        assert table.labels.tolist() == [[1, 0] if labels else [-1, -1]]
        assert table.patients.tolist() == [100_000] and table.positions.tolist() == [2]


SPOILED = {
    "a score above 1": (lambda row: [*row[:2], "1.5", *row[3:]], "left-score '1.5'; scores lie"),
    "no number": (lambda row: [*row[:4], "high"], "right-score 'high'; scores lie between 0 and 1"),
    "not a number": (lambda row: [*row[:4], "nan"], "right-score 'nan'; scores lie between"),
    "cut short": (lambda row: row[:4], "right-score None; scores lie between"),
    "no name": (
        lambda row: [row[0], "x.jpg", *row[2:]],
        "'x.jpg' is no name of a patch",
    ),
    "no position": (
        lambda row: [row[0], "eyepacs_1_left_up", *row[2:]],
        "'eyepacs_1_left_up' is no name of a patch",
    ),
    "the other eye": (
        lambda row: [row[0], row[3], *row[2:]],
        "as the patch of the left eye; put the original name back",
    ),
    "another patient": (
        lambda row: [*row[:3], row[3].replace("_2_", "_3_"), row[4]],
        "not the same place in both eyes of a patient",
    ),
}


@pytest.mark.parametrize("defect", SPOILED)
def test_a_wrong_row_is_named(defect, files):
    spoil, message = SPOILED[defect]
    table = lines(files)
    table[2] = ",".join(spoil(table[2].split(",")))
    (files / "labels.csv").write_text("\n".join(table))
    with pytest.raises(UsageError, match=f"Row 3 of .*labels.csv.*{message}"):
        open_pairs(str(files))


def test_a_repeated_row_is_named(files):
    table = lines(files)
    (files / "labels.csv").write_text("\n".join([*table, table[4]]))
    with pytest.raises(UsageError, match="Row 32 of .* repeats the patch .* of row 5; delete one"):
        open_pairs(str(files))


def test_labels_outside_their_range_are_named(written, tmp_path):
    folder = shutil.copytree(written / "retinal_swap", tmp_path / "retinal_swap")
    table = next(folder.rglob("pairs.csv"))
    rows = table.read_text().splitlines()
    table.write_text("\n".join([*rows[:-1], rows[-1][: rows[-1].rindex(",")] + ",2"]))
    with pytest.raises(UsageError, match="Row 31 of .*right-label '2'; it should be one of: -1, 0"):
        open_pairs("retinal_swap/mine", str(tmp_path))
    table.write_text("\n".join(rows[:-1]))
    with pytest.raises(UsageError, match="pairs.csv lists 29 pairs of 30; delete its folder"):
        open_pairs("retinal_swap/mine", str(tmp_path))
    # Two rows change places, so that labels are those of other records.
    table.write_text("\n".join([rows[0], rows[2], rows[1], *rows[3:]]))
    with pytest.raises(
        UsageError, match="Record 0 of retinal_swap/mine is .*, where .*pairs.csv has"
    ):
        open_pairs("retinal_swap/mine", str(tmp_path))[0]
    table.write_text("\n".join(rows))
    shard = next(folder.rglob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match="is missing or cut short; delete the folder"):
        open_pairs("retinal_swap/mine", str(tmp_path))


def test_missing_files_are_counted_and_named(files):
    for name in ("eyepacs_2_left_c", "oia-odir_1_right_br"):
        (files / f"{name}.png").unlink()
    with pytest.raises(UsageError, match="lacks 2 of the 60 patches .*eyepacs_2_left_c.png"):
        open_pairs(str(files))


def test_an_unreadable_file_is_named(files):
    place = files / "eyepacs_1_left_tl.png"
    place.write_bytes(place.read_bytes()[:40])
    with pytest.raises(UsageError, match="eyepacs_1_left_tl.png cannot be read .*write the set"):
        open_pairs(str(files))[0]


def test_what_is_no_set_is_explained(files, tmp_path):
    with pytest.raises(UsageError, match="labels.csv cannot be read .*name the folder of a set"):
        open_pairs(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="retinal_swap/default is not prepared in"):
        open_pairs("retinal_swap", str(tmp_path))
    header, *rest = lines(files)
    (files / "labels.csv").write_text("\n".join([header.replace("left-score", "score"), *rest]))
    with pytest.raises(UsageError, match="has no column 'left-score'; its header should be id,"):
        open_pairs(str(files))
    (files / "labels.csv").write_text(header)
    with pytest.raises(UsageError, match="lists no patches; write the set again"):
        open_pairs(str(files))


def test_a_workdir_without_patches_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is no finished run of configs/patches.py"):
        open_pairs(str(tmp_path))
