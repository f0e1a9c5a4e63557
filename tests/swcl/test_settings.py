"""Settings of pretraining that are refused before anything is read."""

import pytest
from tiny_pretrain import tiny

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.settings import make_method


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        ("swcl", "loss.temperature=0.0"),
        ("simclr", "loss.temperature=-0.1"),
        ("swcl", "loss.base_temperature=-1.0"),
        ("multitask", "loss.position_weight=-0.1"),
        ("dino", "loss.prototypes=1"),
        ("byol", "train.ema=1.5"),
        ("dino_official", "train.frozen_epochs=-1"),
    ],
)
def test_numbers_out_of_their_range_are_named(variant, setting):
    with pytest.raises(UsageError, match=f"^config.{setting}; set it to .*[.]$"):
        make_method(tiny(variant, "data", f"--config.{setting}"))


def test_numbers_at_the_ends_of_their_ranges_are_taken():
    assert make_method(tiny("dino", "data", "--config.loss.prototypes=2")).prototypes == 2
    assert make_method(tiny("byol", "data", "--config.train.ema=1.0")).averaged
