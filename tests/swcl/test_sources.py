"""Which images of several sets are the same."""

import io
import pickle

import numpy as np
import pytest
from rich.console import Console
from tiny_pretrain import tiny, write_patches

from medinit_jax.data.tasks import make_builder
from medinit_jax.swcl import patch_pairs
from medinit_jax.swcl.sources import Firsts, KeptPairs, open_items

ODIR, EYEPACS = "phantom_odir_32px_x0.02", "phantom_eyepacs_dr_32px_x0.01"


def test_images_of_other_twins_are_others(tmp_path):
    """All of them count their patients anew."""
    console = Console(file=io.StringIO())
    firsts = Firsts(console)
    for name in (ODIR, EYEPACS, "phantom_aptos_dr"):
        builder = make_builder(name, str(tmp_path))
        assert firsts.of(builder, "train", ["1", "2"]).tolist() == [0, 1], name
    # Another size and share of one twin shows the same eyes.
    again = make_builder("phantom_odir_48px", str(tmp_path))
    assert firsts.of(again, "train", ["2", "3"]).tolist() == [1]
    assert "1 of 2 images of medinit_phantom train came before" in console.file.getvalue()


def test_whole_images_are_those_of_all_sets(tmp_path):
    def count(sets):
        config = tiny("simclr", tmp_path, f"--config.data.sets={sets}")
        return len(open_items(config, "whole", Console(file=io.StringIO())))

    both = count(f"{ODIR},{EYEPACS}")
    assert both == count(ODIR) + count(EYEPACS)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Returns 6 pairs of 24 px (3,456 bytes each), and the names that were decoded."""
    decoded = []

    def decode(path):
        decoded.append(path.stem)
        return read(path)

    read = patch_pairs.decode
    monkeypatch.setattr(patch_pairs, "decode", decode)
    return patch_pairs.open_pairs(str(write_patches(tmp_path / "patches", 6))), decoded


@pytest.mark.parametrize(("limit_mb", "held"), [(1.0, 6), (0.007, 2), (0.0, 0)])
def test_patches_that_fit_are_decoded_once(opened, limit_mb, held):
    pairs, decoded = opened
    kept = KeptPairs(pairs, limit_mb)
    first = [kept[i] for i in range(len(kept))]
    assert len(decoded) == 12
    for i, pair in enumerate(first):
        again = kept[i]
        np.testing.assert_array_equal(again["left"], pair["left"])
        np.testing.assert_array_equal(again["right"], pair["right"])
    assert len(decoded) == 12 + 2 * (6 - held)
    assert kept.table is pairs.table and kept.describe() == pairs.describe()


def test_a_copy_in_another_process_keeps_its_own(opened):
    kept = KeptPairs(opened[0], 1.0)
    whole = len(pickle.dumps(kept))
    kept[0]
    assert len(pickle.dumps(kept)) == whole
