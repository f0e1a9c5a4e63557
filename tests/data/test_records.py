import json
import pickle

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.data import records
from medinit_jax.data.record_source import RecordSource
from medinit_jax.data.records import PhantomSet, decode_record, encode_record, write_phantoms

SMALL = PhantomSet("fundus", "train", 5, 32)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(records, "SHARD_IMAGES", 4)


def test_record_round_trip_is_lossless():
    wanted = PhantomSet("fundus", "test", 1, 48, ("disc_cup", "lesions"))
    example = wanted.example(1)
    read = decode_record(encode_record(example, wanted.masks))
    np.testing.assert_array_equal(read["image"], example["image"])
    for name in wanted.masks:
        np.testing.assert_array_equal(read["masks"][name], example["masks"][name])
    assert read["labels"] == example["labels"]
    assert (read["eye"], read["patient"]) == (-1, example["patient"])


def test_written_set_is_the_drawn_set(tmp_path):
    counts = []
    listing = write_phantoms(tmp_path, SMALL, progress=lambda n, of: counts.append((n, of)))
    assert counts == [(4, 10), (8, 10), (10, 10)]
    source = RecordSource(listing)
    assert len(source) == 10
    for i in range(10):
        drawn, read = SMALL.example(i), source[i]
        np.testing.assert_array_equal(read["image"], drawn["image"])
        assert read["label"] == drawn["labels"]["any_dr"]
        assert read["eye"] == (1 if i % 2 == 0 else -1)
    assert not list(tmp_path.rglob("*.part"))
    assert source.describe()["count"] == 10 and len(source.describe()["sha256"]) == 64


def test_second_call_draws_nothing(tmp_path, monkeypatch):
    listing = write_phantoms(tmp_path, SMALL)
    before = listing.stat().st_mtime_ns
    monkeypatch.setattr(PhantomSet, "example", lambda self, index: pytest.fail("drew again"))
    assert write_phantoms(tmp_path, SMALL) == listing
    assert listing.stat().st_mtime_ns == before


def test_interrupted_writing_goes_on_with_the_missing_shards(tmp_path, monkeypatch):
    whole = json.loads(write_phantoms(tmp_path / "whole", SMALL).read_text())
    drawn, example = [], PhantomSet.example

    def interrupted(self, index):
        drawn.append(index)
        if len(drawn) == 7:
            raise KeyboardInterrupt
        return example(self, index)

    monkeypatch.setattr(PhantomSet, "example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "part", SMALL)
    assert not list((tmp_path / "part").rglob("*.json"))
    listing = write_phantoms(tmp_path / "part", SMALL)
    assert drawn[7:] == [4, 5, 6, 7, 8, 9]
    assert json.loads(listing.read_text())["sha256"] == whole["sha256"]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_shard_cut_short_is_noticed_and_written_anew(tmp_path, keep):
    listing = write_phantoms(tmp_path, SMALL)
    content = json.loads(listing.read_text())
    shard = listing.parent / content["shards"][1]["file"]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UsageError, match="missing or cut short"):
        RecordSource(listing)
    write_phantoms(tmp_path, SMALL)
    assert json.loads(listing.read_text())["sha256"] == content["sha256"]
    assert len(RecordSource(listing)) == 10


def test_processes_draw_the_same_set(tmp_path):
    alone = json.loads(write_phantoms(tmp_path / "alone", SMALL, workers=0).read_text())
    two = json.loads(write_phantoms(tmp_path / "two", SMALL, workers=2).read_text())
    assert two["sha256"] == alone["sha256"]


def test_splits_share_no_patient(tmp_path):
    first, last = records.FIRST_SEED, records._MAX_PATIENTS
    spans = sorted((start, start + last) for start in first.values())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    patients = [
        {PhantomSet("xray", split, 3, 16).example(i)["patient"] for i in range(3)}
        for split in first
    ]
    assert len(set.union(*patients)) == 9


def test_source_reduces_chooses_labels_and_survives_pickling(tmp_path):
    listing = write_phantoms(tmp_path, SMALL)
    source = pickle.loads(pickle.dumps(RecordSource(listing, size=16, label="grade")))
    assert source[3]["image"].shape == (16, 16, 3)
    assert source[3]["label"] == SMALL.example(3)["labels"]["grade"]
    mean = SMALL.example(3)["image"].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(source[3]["image"] - mean).max() <= 1
    with pytest.raises(UsageError, match="no label 'sex'; set data.label"):
        RecordSource(listing, label="sex")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phantom": "mri"}, "no phantom 'mri'; set data.name to one of: ct, fundus, xray"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"patients": 0}, "make no set"),
        ({"size": 4}, "sizes from 16"),
        ({"masks": ("lungs",)}, "has the masks vessels"),
    ],
)
def test_impossible_sets_are_refused(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        write_phantoms(tmp_path, SMALL._replace(**change))
    assert not list(tmp_path.iterdir())


def test_unreadable_listing_is_a_sentence(tmp_path):
    place = tmp_path / "train-10.json"
    with pytest.raises(UsageError, match="cannot be opened"):
        RecordSource(place)
    place.write_text("{")
    with pytest.raises(UsageError, match="cannot be opened"):
        RecordSource(place)
