import json
from pathlib import Path

import pytest
from fake_trees.drive import make_drive

from medinit_jax.core.errors import UsageError
from medinit_jax.data import shards
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.manifest import MANIFEST
from medinit_jax.data.prepare import prepare
from medinit_jax.data.tasks import make_builder
from medinit_jax.data.verification import unchecked_files, verify


@pytest.fixture
def builder(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_EXAMPLES", 2)
    tree = make_drive(tmp_path / "tree")
    made = MedinitDrive(data_dir=tmp_path / "data", strict_counts=False)
    prepare(made, tree, workers=0)
    return made


def shard(builder, split="train", number=0):
    return sorted(Path(builder.data_path).glob(f"*{split}.array_record*"))[number]


def test_a_whole_set_has_no_problems(builder):
    told = []
    assert verify(builder, report=lambda *counts: told.append(counts)) == []
    assert told[0] == (0, 7) and max(told) == (7, 7)


def test_every_kind_of_damage_is_named(builder):
    missing, flipped, cut = shard(builder), shard(builder, number=1), shard(builder, "test")
    missing.unlink()
    content = bytearray(flipped.read_bytes())
    # Within the first record; most of so small a shard is padding.
    content[2000] ^= 255
    flipped.write_bytes(bytes(content))
    cut.write_bytes(cut.read_bytes()[:100])
    stray = cut.with_name("medinit_drive-val.array_record-00000-of-00001")
    stray.write_bytes(b"")
    problems = verify(builder)
    text = "\n".join(problems)
    assert f"{missing.name} is missing" in text
    assert f"{flipped.name} has the sha256" in text and f"of {flipped.name} cannot be read" in text
    assert f"{cut.name} has the sha256" in text and f"{cut.name} cannot be opened" in text
    assert f"{stray.name} is not among the recorded shards" in text
    assert len(problems) == 6


def test_records_of_other_content_are_found_by_checksum_and_count(builder):
    one, other = shard(builder), shard(builder, "test", 1)
    one.write_bytes(other.read_bytes())
    problems = verify(builder)
    name = one.name
    held = len(builder.as_data_source("test")) - 1
    assert problems[0].startswith(f"{name} has the sha256")
    assert held == 2 or f"{name} holds" in problems[1]


def test_counts_that_contradict_each_other_are_named(builder):
    place = Path(builder.data_path) / MANIFEST
    manifest = json.loads(place.read_text())
    manifest["splits"]["train"] = 5
    place.write_text(json.dumps(manifest))
    problems = verify(builder)
    assert len(problems) == 2
    assert "train has 4 examples in dataset_info.json and 5 in the manifest" in problems[0]
    assert "shards hold 7 examples, its splits 8" in problems[1]


def test_every_file_beside_the_shards_is_checked(builder):
    folder = Path(builder.data_path)
    for place in sorted(folder.iterdir()):
        if place.name == MANIFEST or ".array_record-" in place.name:
            continue
        whole = place.read_bytes()
        place.write_bytes(whole.replace(b"unknown", b"both") + b" ")
        assert [p for p in verify(builder) if p.startswith(f"{place.name} has the sha256")]
        place.unlink()
        assert f"{place.name} is missing." in verify(builder)
        place.write_bytes(whole)
    assert verify(builder) == [] and unchecked_files(builder) == []
    stray = folder / "label.labels.txt"
    stray.write_text("healthy\n")
    assert verify(builder) == ["label.labels.txt is not among the recorded files."]


def test_of_older_sets_it_is_said_what_was_not_checked(builder):
    place = Path(builder.data_path) / MANIFEST
    manifest = json.loads(place.read_text())
    assert {"dataset_info.json", "eye.labels.txt", "features.json"} <= set(manifest["files"])
    names = [*manifest.pop("files")]
    place.write_text(json.dumps(manifest))
    assert verify(builder) == [] and unchecked_files(builder) == names


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_damaged_descriptions_are_named(builder, content):
    folder = Path(builder.data_path)
    (folder / "features.json").write_text(content)
    unreadable, changed = verify(builder)
    assert "features.json cannot be read" in unreadable
    assert changed.startswith("features.json has the sha256")
    (folder / "dataset_info.json").write_text(content)
    with pytest.raises(UsageError, match="dataset_info.json is damaged .*prepare the set again"):
        make_builder("medinit_drive", folder.parents[2])


def test_what_is_not_prepared_cannot_be_verified(tmp_path):
    with pytest.raises(UsageError, match="is not prepared; run: python -m medinit_jax.data"):
        verify(MedinitDrive(data_dir=tmp_path))
