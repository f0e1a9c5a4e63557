"""What holds for the builders of all datasets."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fake_trees.catalog import FAKE_TREES

from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.drawn import Drawn
from medinit_jax.data.builders.retinal_swap import RetinalSwap
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare

CONFIGS = [(name, config) for name, fake in FAKE_TREES.items() for config in fake.counts]
DEFECTS = [(name, code) for name, fake in FAKE_TREES.items() for code in fake.defects]


def test_every_builder_has_a_fake_tree():
    assert set(FAKE_TREES) == {
        name for name, builder in BUILDERS.items() if not issubclass(builder, (Drawn, RetinalSwap))
    }


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Whole trees, made once."""
    made = {}

    def tree(name):
        if name not in made:
            made[name] = FAKE_TREES[name].make(tmp_path_factory.mktemp(name), 0)
        return made[name]

    return tree


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_prepared_as_published(name, config, trees, tmp_path):
    builder = BUILDERS[name](data_dir=tmp_path, config=config, strict_counts=False)
    manifest = prepare(builder, trees(name), workers=0)
    assert manifest["splits"] == FAKE_TREES[name].counts[config]
    seen = set()
    for split, count in manifest["splits"].items():
        source = tfds.builder_from_directory(builder.data_path).as_data_source(split)
        examples = [source[i] for i in range(count)]
        for example in examples:
            image = example["image"]
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
            dark = example["image_id"].decode() in FAKE_TREES[name].dark
            assert (image.min() < image.max()) != dark
        patients = {example["patient_id"] for example in examples} - {b""}
        if not config.startswith("paper"):
            assert not patients & seen
        seen |= patients


@pytest.mark.parametrize("name", [name for name in FAKE_TREES if BUILDERS[name].COUNTS])
def test_small_copies_are_refused_unless_told_otherwise(name, trees, tmp_path):
    builder = BUILDERS[name](data_dir=tmp_path)
    with pytest.raises(DatasetLayoutError) as raised:
        builder.checked_items(builder.locate(trees(name)))
    assert raised.value.code == "E_COUNT" and "--any-count" in raised.value.fix


@pytest.mark.parametrize(("name", "code"), DEFECTS)
def test_every_defect_has_its_own_error(name, code, tmp_path):
    root = FAKE_TREES[name].make(tmp_path / "tree", 1, (code,))
    # Labels without files are only left out where the published numbers are not asked for.
    builder = BUILDERS[name](data_dir=tmp_path / "data", strict_counts=code == "E_ORPHAN")
    with pytest.raises(DatasetLayoutError) as raised:
        prepare(builder, root, workers=0)
    error = raised.value
    assert error.code == code
    lines = str(error).splitlines()
    assert len(lines) == 4 and code in lines[0] and error.fix in lines[3]
    # It comes back whole from a worker process.
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
