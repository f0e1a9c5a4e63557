"""Every variant of the route's configurations builds, is locked and names what there is."""

import ml_collections
import pytest
from tiny_pretrain import CONFIGS

from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.finetune import recipes
from medinit_jax.finetune.network import make_network
from medinit_jax.main import ROUTES
from medinit_jax.study.studies import make_plan
from medinit_jax.swcl.settings import make_look, make_method
from medinit_jax.swcl.triplet import TRIPLETS

METHODS = ("swcl", "swcl_image", "multitask", "simclr", "byol", "dino", "dino_official")
VARIANTS = {
    "swcl": ("", *METHODS, "chain", "phantom"),
    "labeler": ("", "paper", "phantom"),
    "patches": ("", "authors", "phantom"),
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def read(name, variant, *more):
    chosen = f"--config={CONFIGS}/{name}.py" + (f":{variant}" if variant else "")
    return read_command_line(["test", chosen, *more]).config


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_variant_is_locked_and_has_a_route(name, variant):
    config = read(name, variant)
    assert config.is_locked and config.route in ROUTES
    with pytest.raises((AttributeError, KeyError)):
        config.nothing = 1
    with pytest.raises(UsageError, match="'nothing'"):
        read(name, variant, "--config.nothing=1")


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_variant_names_the_known_ones(name):
    with pytest.raises(UsageError, match=VARIANTS[name][-1]):
        read(name, "nothing")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_views_and_settings(method):
    """Defaults are read or left alone, so that none of them is refused."""
    config = read("swcl", method)
    made = make_method(config)
    look = make_look(config, made)
    assert len(look.recipe.views) == made.views and look.size == 224
    assert bool(look.recipe.local) == (method == "dino_official")
    assert made.images == ("pairs" if method in METHODS[:3] else "whole")
    assert config.train.epochs == (40 if method in METHODS[:3] else 200)


def test_the_papers_pretraining():
    config = read("swcl", "")
    assert config == read("swcl", "swcl")
    assert config.model.name == "resnetv2_50x1_bit"
    assert (config.train.batch, config.train.epochs, config.seed) == (496, 40, 42)
    assert (config.optim.name, config.optim.learning_rate) == ("adamw", 1e-3)
    assert (config.optim.weight_decay, config.optim.warmup_epochs) == (1e-4, 5)
    assert (config.loss.temperature, config.loss.threshold, config.loss.scheme) == (0.1, 0.4, "all")
    # Of 493,470 patches an epoch has 995 batches, and 40 epochs have 39,800.
    assert -(-493_470 // config.train.batch) * config.train.epochs == 39_800


def test_weight_decay_of_official_dino_grows():
    optim = read("swcl", "dino_official").optim
    assert (optim.weight_decay, optim.weight_decay_end) == (0.04, 0.4)
    assert all(read("swcl", m).optim.weight_decay_end == 0 for m in METHODS if m != METHODS[-1])


def test_the_papers_labeler():
    config = read("labeler", "")
    assert config == read("labeler", "paper")
    assert (config.train.batch, config.train.epochs, config.train.accumulate) == (256, 200, 4)
    assert (config.optim.learning_rate, config.optim.weight_decay) == (0.03, 1e-3)
    assert (config.optim.name, config.optim.nesterov, config.optim.momentum) == ("sgd", True, 0.9)
    assert config.optim.milestones == (140, 160, 180) and config.optim.decay == 0.1
    assert (config.s4l.unlabelled_batch, config.s4l.views) == (256, 4)
    assert config.s4l.triplet == next(iter(TRIPLETS)) and config.s4l.margin == 0.5
    recipe = recipes.RECIPES[config.data.recipe]
    assert (recipe.size, recipe.kept) == (384, 448)
    # Maps of 28 x 28 at 448 pixels.
    network = make_network(config.model, 448, 2, "classification")
    assert network.program.shapes[-2] == (28, 28, 512)


@pytest.mark.parametrize("variant", ["chain", "phantom"])
def test_the_chain_is_a_study(variant):
    config = read("swcl", variant)
    assert config.size == {"chain": "real", "phantom": "mini"}[variant]
    plan = make_plan(ml_collections.ConfigDict(config.to_dict()))
    kinds = [job.kind for job in plan.preparatory()]
    assert kinds == ["labeler", "patches", "swcl"]
    assert {cell.start for cell in plan.cells} == {"swcl", "random"}
