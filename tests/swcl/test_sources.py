"""Which images of several sets are the same."""

import io

from rich.console import Console
from tiny_pretrain import tiny

from medinit_jax.data.tasks import make_builder
from medinit_jax.swcl.sources import Firsts, open_items

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
