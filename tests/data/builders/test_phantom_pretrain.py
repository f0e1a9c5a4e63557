"""Phantom sets for pretraining: the same pixels and labels whoever draws them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from medinit_jax.core.errors import UsageError
from medinit_jax.data import shards
from medinit_jax.data.builders.phantom_pretrain import (
    FIRST_SEED,
    MAX_PATIENTS,
    MedinitPhantomPretrain,
    pretrain_config,
)
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.data.prepare import prepare
from medinit_jax.data.prepared import PreparedSource
from medinit_jax.data.tasks import make_builder

VIEWS = ("AP", "PA")


def builder_of(folder, *options):
    return MedinitPhantomPretrain(data_dir=folder, config=pretrain_config(*options))


@pytest.mark.parametrize("phantom", PHANTOMS)
def test_a_set_holds_what_is_drawn(phantom, tmp_path):
    builder, kind = builder_of(tmp_path, phantom, 40, "test", 3), PHANTOMS[phantom]
    manifest = prepare(builder, workers=0)
    count = 3 * len(kind.eyes)
    assert manifest["splits"] == {"test": count} == builder.published(builder.locate())
    source = tfds.builder_from_directory(builder.data_path).as_data_source("test")
    seen = set()
    for example in (source[i] for i in range(count)):
        patient = example["patient_id"].decode()
        seed, eye = int(patient.rpartition("-")[2]), (-1, 1, 0)[example["eye"]]
        seen.add((seed, eye))
        drawn = kind.render(seed, eye, 40)
        np.testing.assert_array_equal(example["image"], drawn["image"])
        assert patient == drawn["patient"] and example["orig_size"].tolist() == [40, 40]
        for name, value in drawn["labels"].items():
            wanted = VIEWS.index(value) if name == "view" else value
            assert example[name] == pytest.approx(wanted, rel=1e-6)
    first = FIRST_SEED["test"]
    assert seen == {(seed, eye) for seed in range(first, first + 3) for eye in kind.eyes}


@pytest.mark.parametrize("phantom", PHANTOMS)
def test_all_labels_but_a_ratio_can_be_learned(phantom, tmp_path):
    kind = PHANTOMS[phantom]
    builder = builder_of(tmp_path, phantom, 16, "train", 2)
    prepare(builder, workers=0)
    labels = kind.render(0, kind.eyes[0], 16)["labels"]
    assert kind.label in labels
    for name in labels:
        if name == "vcdr":
            with pytest.raises(UsageError, match="no label 'vcdr'; set data.label to one of"):
                PreparedSource(builder, "train", 16, label=name)
        else:
            assert PreparedSource(builder, "train", 16, label=name)[0]["label"] >= 0


def test_processes_draw_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_EXAMPLES", 4)
    one, two = (
        prepare(builder_of(tmp_path / str(workers), "fundus", 24, "train", 5), workers=workers)
        for workers in (0, 2)
    )
    assert one == two and len(one["shards"]) == 3
    digests = [shard["sha256"] for shard in one["shards"]]
    assert len(set(digests)) == 3


def test_splits_share_no_patient():
    spans = sorted((first, first + MAX_PATIENTS) for first in FIRST_SEED.values())
    assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_a_name_tells_the_config_and_the_folder_the_drawing(tmp_path):
    config = pretrain_config("xray", 128, "val", 50)
    builder = make_builder(f"medinit_phantom_pretrain/{config.name}", tmp_path)
    assert builder.builder_config == config and config.name == "xray_128px_val_50"
    assert builder.modality == "X-ray"
    versions = ".".join(str(PHANTOMS[name].version) for name in ("fundus", "xray", "ct"))
    assert builder.data_path.parts[-3:] == ("medinit_phantom_pretrain", config.name, versions)
    listed = [one.name for one in MedinitPhantomPretrain.BUILDER_CONFIGS]
    assert listed == ["ct_64px_train_2000", "fundus_64px_train_2000", "xray_64px_train_2000"]
    with pytest.raises(UsageError, match="has no config 'fundus_64px'; use one of: ct_64px"):
        make_builder("medinit_phantom_pretrain/fundus_64px", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mri_64px_train_5", "no phantom 'mri'; set data.name to one of: ct, fundus, xray"),
        ("fundus_64px_dev_5", "no split 'dev'; use one of: train, val, test"),
        ("fundus_64px_train_0", "0 patients in data.patients.train make no set"),
        ("fundus_64px_val_1000000001", "choose 1 to 1000000000"),
        ("fundus_4px_train_5", "sizes from 16 to 4096 pixels, not 4; change data.render_size"),
        ("fundus_4097px_train_5", "not 4097"),
    ],
)
def test_impossible_sets_are_refused(name, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        make_builder(f"medinit_phantom_pretrain/{name}", tmp_path)
    assert not list(tmp_path.iterdir())
