import sys

import numpy as np
import pytest
from fake_trees.drive import make_drive

from medinit_jax.core.errors import UsageError
from medinit_jax.data.beam import prepare_with_beam
from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare
from medinit_jax.data.verification import verify

# Beam's own warnings are not ours to mend.
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    pytest.importorskip("apache_beam", reason="needs the [beam] extra")
    return make_drive(tmp_path_factory.mktemp("drive"))


def drive(data_dir, **options):
    return MedinitDrive(data_dir=data_dir, strict_counts=False, **options)


@quiet
def test_the_same_examples_and_manifest_as_without_beam(tree, tmp_path):
    plain, beam = drive(tmp_path / "plain"), drive(tmp_path / "beam", beam=True)
    expected, found = prepare(plain, tree, workers=0), prepare_with_beam(beam, tree)
    for key in expected:
        assert found[key] == expected[key] or key == "shards"
    assert verify(beam) == []
    for split in ("train", "test"):
        examples = [
            {one["image_id"]: one["image"] for one in builder.as_data_source(split)}
            for builder in (plain, beam)
        ]
        assert examples[0].keys() == examples[1].keys()
        for name, image in examples[0].items():
            np.testing.assert_array_equal(image, examples[1][name])
    with pytest.raises(UsageError, match="exists; delete it"):
        prepare_with_beam(drive(tmp_path / "beam", beam=True), tree)


@quiet
def test_skipped_files_are_counted_and_listed(tree, tmp_path, monkeypatch):
    root = make_drive(tmp_path / "tree", defects=("E_DECODE",))
    builder = drive(tmp_path / "data", beam=True, on_corrupt="skip")
    with pytest.raises(DatasetLayoutError, match="1 of 7 files cannot be read"):
        prepare_with_beam(builder, root)
    monkeypatch.setattr("medinit_jax.data.builders.base.MAX_SKIPPED", 0.2)
    builder = drive(tmp_path / "data", beam=True, on_corrupt="skip")
    manifest = prepare_with_beam(builder, root)
    assert manifest["splits"] == {"train": 3, "test": 3}
    assert [one["key"] for one in manifest["skipped"]] == ["train/21"]


def test_without_beam_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UsageError, match=r"pip install medinit_jax\[beam\]"):
        prepare_with_beam(drive(tmp_path, beam=True), tmp_path)
