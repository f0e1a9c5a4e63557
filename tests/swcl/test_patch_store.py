"""What is written of patches, and that a stopped writer ends with the same bytes."""

import io
import os
import time

import numpy as np
import pytest
from made_patches import CROP, SIDE, content, eyes, plan, scored, shown
from ml_collections import ConfigDict
from oracles import swcl
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.retinal_swap import RetinalSwap
from medinit_jax.data.catalog import open_splits
from medinit_jax.data.commands import COMMANDS
from medinit_jax.data.tasks import make_builder
from medinit_jax.data.verification import verify
from medinit_jax.swcl import patch_plan, patch_store
from medinit_jax.swcl.patch_geometry import CUTS, POSITIONS, boxes, parse_name
from medinit_jax.swcl.patch_pairs import open_pairs
from medinit_jax.swcl.patch_plan import Eye, places, plan_pairs
from medinit_jax.swcl.patch_store import write_files, write_prepared
from medinit_jax.swcl.patch_table import Row, read_table, table_text

KINDS = ("prepared", "files")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Makes parts of two patients, so that a few of them make several parts."""
    monkeypatch.setattr(patch_plan, "PART", 2)
    monkeypatch.setattr(patch_store, "PART", 2)


def write(kind, folder, score=scored, **options):
    """Writes three patients of two sets in a layout; returns the folder of the result."""
    options = {"crop": CROP, "workers": 2, **options}
    if kind == "files":
        write_files(folder / "patches", plan(), score, **options)
        return folder / "patches"
    write_prepared(folder, "mine", plan(), score, **options)
    return folder / "retinal_swap" / "mine" / "1.0.0"


def test_every_pair_holds_its_patches_scores_and_labels(tmp_path):
    write("prepared", tmp_path)
    pairs = open_pairs("retinal_swap/mine", str(tmp_path))
    of_name = {(e.source, e.patient, e.eye): e for e in eyes()}
    assert len(pairs) == 2 * 3 * 5
    builder = make_builder("retinal_swap/mine", tmp_path)
    for index, record in enumerate(builder.as_data_source("train")):
        pair, names = pairs[index], [parse_name(name) for name in pairs.table.names[index]]
        for eye, name, image in zip(
            ("left", "right"), names, ("image", "image_right"), strict=True
        ):
            whose = of_name[name.source, name.patient, eye]
            photograph, scores = shown(whose)
            # A right eye is cut where its mirror image has the name, and mirrored.
            cut = name.position
            if eye == "right":
                cut = {"tl": "tr", "tr": "tl", "bl": "br", "br": "bl", "c": "c"}[cut]
            top, left = boxes(SIDE, CROP)[cut]
            patch = photograph[top : top + CROP, left : left + CROP]
            patch = patch[:, ::-1] if eye == "right" else patch
            np.testing.assert_array_equal(pair[eye], patch)
            np.testing.assert_array_equal(record[image], patch)
            expected = 0.0 if whose.label == 0 else float(scores[CUTS.index(cut)])
            found = pair["scores"][("left", "right").index(eye)]
            assert found == expected
            ending = "" if eye == "left" else "_right"
            assert record[f"score{ending}"] == np.float32(expected)
            assert record[f"abnormal{ending}"] == whose.label
        assert POSITIONS[pair["position"]] == names[0].position == names[1].position
        assert builder.info.features["position"].int2str(record["position"]) == names[0].position
        assert record["patient_id"].decode() == f"{names[0].source}_{names[0].patient}"
        offset = {"eyepacs": 0, "oia-odir": 44352}[names[0].source]
        assert pair["patient"] == int(names[0].patient) + offset
    assert (pairs.table.scores == 0).any() and (pairs.table.labels == -1).any()


def test_the_name_may_be_that_of_the_default_set(tmp_path):
    write_prepared(tmp_path, "default", plan(), scored, crop=CROP, origin="a labeler")
    pairs = open_pairs("retinal_swap", str(tmp_path))
    assert len(pairs) == 30 and pairs[0]["left"].shape == (CROP, CROP, 3)
    # Other crops, though of the default side, are not taken for them.
    with pytest.raises(UsageError, match="prepared with other options of the same name"):
        write_prepared(tmp_path, "default", plan(), scored, crop=CROP, origin="another one")
    assert verify(make_builder("retinal_swap/default", tmp_path)) == []


def test_the_builder_knows_the_positions(tmp_path):
    assert make_builder("retinal_swap", tmp_path).info.features["position"].names == [*POSITIONS]


def test_the_files_are_those_of_the_authors_code(tmp_path):
    folder = write("files", tmp_path)
    photograph, scores = shown(eyes()[1])
    top, left = boxes(SIDE, CROP)["tl"]
    buffer = io.BytesIO()
    patch = Image.fromarray(photograph[top : top + CROP, left : left + CROP][:, ::-1])
    patch.save(buffer, "JPEG", quality=75)
    # Cut above on the left from a right eye, which makes it tr.
    assert (folder / "eyepacs_1_right_tr.jpg").read_bytes() == buffer.getvalue()
    names = {f"{name}.jpg" for pair in read_table(folder / "labels.csv").names for name in pair}
    assert {path.name for path in folder.iterdir()} == names | {"labels.csv", "plan.txt"}
    lines = (folder / "labels.csv").read_text().splitlines()
    assert lines[0] == "id,left-patch,left-score,right-patch,right-score"
    assert len(names) == 60 and len(lines) == 31
    assert [line.split(",")[0] for line in lines[1:4]] == ["0", "2", "4"]
    row = next(line for line in lines if "eyepacs_1_right_tr" in line).split(",")
    assert float(row[4]) == float(scores[0]) and row[1] == "eyepacs_1_left_tr"


def test_the_table_of_the_reference_is_written_to_the_letter(tmp_path):
    text = str(swcl()["lab_csv"])
    (tmp_path / "labels.csv").write_text(text)
    table = read_table(tmp_path / "labels.csv")
    joined = zip(table.names, table.scores.tolist(), strict=True)
    rows = [Row(left, one, right, other) for (left, right), (one, other) in joined]
    assert table_text(rows, labels=False) == text


def test_rows_are_in_the_order_of_the_authors_batches():
    """Of 32 photographs at a time, by position and then by patient."""
    found = list(places(18))
    assert found[:17] == [(number, "tl") for number in range(16)] + [(0, "tr")]
    assert found[16 * 4 : 16 * 5] == [(number, "c") for number in range(16)]
    assert found[80:] == [(number, cut) for cut in CUTS for number in (16, 17)]


def test_patients_with_one_eye_are_counted(tmp_path):
    kept = [e for e in eyes() if (e.source, e.patient, e.eye) != ("eyepacs", "2", "left")]
    found = plan_pairs(kept)
    assert len(found.pairs) == 5 and len(found.unpaired) == 1
    manifest = write_prepared(tmp_path, "mine", found, scored, crop=CROP)
    assert manifest["ignored"] == ["eyepacs 2: only the right eye"]
    assert manifest["notes"] == ["1 patients with one eye are left out"]
    assert manifest["splits"] == {"train": 25}


def test_plans_that_cannot_be_are_explained():
    one, other = Eye("eyepacs", "1", "left", 0), Eye("eyepacs", "1", "left", 7)
    with pytest.raises(UsageError, match="Photographs 0 and 7 of eyepacs both show the left eye"):
        plan_pairs([one, other])
    with pytest.raises(UsageError, match="None of 1 photographs has one of the patient's other"):
        plan_pairs([one])
    with pytest.raises(UsageError, match="the eye 'unknown' and the label -1"):
        plan_pairs([one._replace(eye="unknown")])
    with pytest.raises(UsageError, match="the eye 'left' and the label 2"):
        plan_pairs([one._replace(label=2)])


class Stop(Exception):
    """Stands for whatever kills a writer."""


def stopping_at(number, seen):
    """Returns `scored`, which stops before the photograph of this number in the whole order."""

    def score(wanted):
        for eye in wanted:
            if len(seen) == number:
                raise Stop
            seen.append(eye)
            yield shown(eye)

    return score


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 3, 4, 9])
def test_a_stopped_writer_goes_on_and_ends_with_the_same_bytes(kind, number, tmp_path):
    expected = content(write(kind, tmp_path / "whole"))
    before, after = [], []
    with pytest.raises(Stop):
        write(kind, tmp_path / "stopped", stopping_at(number, before))
    result = write(kind, tmp_path / "stopped", stopping_at(-1, after))
    assert content(result) == expected
    # Six pairs in three parts; a part that was written is not scored again.
    assert len(after) == 12 - number // 4 * 4
    assert sorted(os.listdir(result.parent)) == [result.name]
    # A third call finds all of it.
    assert content(write(kind, tmp_path / "stopped", stopping_at(0, []))) == expected


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("prepared", "write_shard"),
        *((kind, step) for kind in KINDS for step in ("write_text", "rename", "cut_pair")),
    ],
)
def test_wherever_it_is_stopped(kind, step, tmp_path, monkeypatch):
    expected = content(write(kind, tmp_path / "whole"))
    calls = []
    place = patch_store.os if step == "rename" else patch_store
    plain = getattr(place, step)

    def failing(*arguments, **options):
        calls.append(arguments)
        # The last renaming is that of the finished folder.
        last = step == "rename" and str(arguments[1]).endswith(("patches", "1.0.0"))
        if last or (step != "rename" and len(calls) == 2):
            raise Stop
        return plain(*arguments, **options)

    monkeypatch.setattr(place, step, failing)
    with pytest.raises(Stop):
        write(kind, tmp_path / "stopped")
    monkeypatch.setattr(place, step, plain)
    assert content(write(kind, tmp_path / "stopped")) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(kind, tmp_path):
    expected = content(write(kind, tmp_path / "one", workers=1))
    assert content(write(kind, tmp_path / "five", workers=5)) == expected


def test_progress_counts_what_earlier_calls_have_written(tmp_path):
    with pytest.raises(Stop):
        write("files", tmp_path, stopping_at(9, []))
    told = []
    write("files", tmp_path, report=lambda *counts: told.append(counts))
    # Two parts of two patients were written.
    assert told == [(4, 6), (5, 6), (6, 6)]


def test_parts_need_not_be_written_in_their_order(tmp_path):
    expected = content(write("prepared", tmp_path / "whole"))
    with pytest.raises(Stop):
        write("prepared", tmp_path / "stopped", stopping_at(9, []))
    work = tmp_path / "stopped" / "retinal_swap" / "mine" / "1.0.0.incomplete"
    (work / "rows-000000.json").unlink()
    again = []
    result = write("prepared", tmp_path / "stopped", stopping_at(-1, again))
    # The first and the last part, in one stream.
    assert [eye.index for eye in again] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert content(result) == expected


def test_scoring_runs_ahead_but_not_away(tmp_path, monkeypatch):
    """While a slow thread encodes, the next photographs are scored, and then it waits."""
    monkeypatch.setattr(patch_plan, "PART", 50)
    ahead, given, cut = [], [], []
    plain = patch_store.cut_pair

    def slow(*arguments):
        time.sleep(0.01)
        cut.append(arguments)
        return plain(*arguments)

    def score(wanted):
        for eye in wanted:
            given.append(eye)
            ahead.append(len(given) / 2 - len(cut))
            yield shown(eye)

    monkeypatch.setattr(patch_store, "cut_pair", slow)
    write_files(tmp_path / "patches", plan(20), score, crop=CROP, workers=1)
    assert len(cut) == 40 and 2 <= max(ahead) <= 4


def test_other_images_or_scores_under_the_same_name_are_not_taken_for_these(tmp_path):
    write("prepared", tmp_path, origin="labeler 1")
    with pytest.raises(UsageError, match="prepared with other options of the same name .origin"):
        write("prepared", tmp_path, origin="labeler 2")
    with pytest.raises(UsageError, match="prepared with other options of the same name"):
        write_prepared(tmp_path, "mine", plan(2), scored, crop=CROP, origin="labeler 1")
    write("files", tmp_path)
    with pytest.raises(UsageError, match="patches exists and holds something else than these"):
        write("files", tmp_path, quality=0)
    # What was only begun is written anew.
    with pytest.raises(Stop):
        write("files", tmp_path / "other", stopping_at(9, []), origin="labeler 1")
    again = []
    write("files", tmp_path / "other", stopping_at(-1, again), origin="labeler 2")
    assert len(again) == 12


@pytest.mark.parametrize("value", [np.nan, 1.01, -0.01])
def test_a_labeler_that_diverged_is_named(value, tmp_path):
    def score(wanted):
        for eye in wanted:
            image, scores = shown(eye)
            yield image, np.full_like(scores, value) if eye.index == 2 else scores

    with pytest.raises(UsageError, match="the left eye of patient 2 of eyepacs the scores"):
        write("prepared", tmp_path, score)
    with pytest.raises(UsageError, match="side 14 cannot be cut from photographs of side 13"):
        write("files", tmp_path, crop=14)


def test_it_is_listed_opens_as_a_prepared_set_and_is_whole(tmp_path, capsys):
    write("prepared", tmp_path)
    data = ConfigDict(
        {
            "source": "prepared",
            "name": "retinal_swap/mine",
            "data_dir": str(tmp_path),
            "size": CROP,
            "splits": (0.5, 0.25, 0.25),
            "split_seed": 0,
            "fit": "crop",
            "label": "position",
            "cache_mb": 1.0,
        }
    )
    splits = open_splits(data)
    assert sum(len(source) for source in splits.values()) == 30
    patients = [{source[i]["patient"] for i in range(len(source))} for source in splits.values()]
    assert not patients[0] & patients[1] and not patients[1] & patients[2]
    example = splits["train"][0]
    assert example["image"].shape == (CROP, CROP, 3) and 0 <= example["label"] < 5
    assert COMMANDS["list"](str(tmp_path)) == 0
    assert "mine (prepared)" in capsys.readouterr().out
    assert verify(make_builder("retinal_swap/mine", tmp_path)) == []


def test_it_is_not_prepared_from_a_download(tmp_path, capsys):
    builder = make_builder("retinal_swap", tmp_path)
    assert isinstance(builder, RetinalSwap) and builder.builder_config.crop == 224
    with pytest.raises(UsageError, match="retinal_swap is not prepared from files: a trained"):
        builder.locate(tmp_path)
    COMMANDS["info"]("retinal_swap", str(tmp_path))
    assert "Write it: a trained labeler scores the photographs" in capsys.readouterr().out
    with pytest.raises(UsageError, match="'a b' is no name for patches"):
        write_prepared(tmp_path, "a b", plan(), scored, crop=CROP)
    with pytest.raises(UsageError, match="quality 101 cannot be stored"):
        write_prepared(tmp_path, "mine", plan(), scored, crop=CROP, quality=101)
