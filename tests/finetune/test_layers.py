"""Who learns, how fast, and what decays."""

import numpy as np
import pytest
from oracles import swcl
from reference_weights import bit, classifier, held_keys
from reference_weights import resnet as resnet_name

from medinit_jax.core.errors import UsageError
from medinit_jax.finetune import layers
from medinit_jax.models import resnet, unet, zoo

CLASSIFIER = resnet.resnet(resnet.Variant((1, 1), False), (32, 32, 3), 3, "small", 8)
SEGMENTER = unet.unet(None, (16, 16, 3), 2, width=4, levels=1)


def test_each_block_away_from_the_head_learns_more_slowly():
    found = layers.rate_factors(CLASSIFIER, (), 0.5)
    assert found["fc"] == 1
    assert found["layer2.0.conv1"] == found["layer2.0.bn2"] == 0.5
    assert found["layer1.0.conv1"] == 0.25
    assert found["conv1"] == 0.125
    assert set(found) == set(CLASSIFIER.parameter_shapes())
    assert set(layers.rate_factors(CLASSIFIER, (), 1.0).values()) == {1.0}


def test_a_linear_probe_freezes_all_but_the_head():
    frozen = layers.frozen_modules(CLASSIFIER, "encoder")
    assert set(CLASSIFIER.parameter_shapes()) - set(frozen) == {"fc"}
    found = layers.rate_factors(CLASSIFIER, frozen, 1.0)
    assert {name for name, factor in found.items() if factor} == {"fc"}


def test_of_a_segmenter_the_decoder_learns():
    frozen = layers.frozen_modules(SEGMENTER, "encoder")
    assert frozen and all(name.startswith("encoder.") for name in frozen)
    assert "head" not in frozen


def test_prefixes_are_whole_names():
    frozen = layers.frozen_modules(CLASSIFIER, "layer1, conv1")
    assert frozen == tuple(
        n for n in CLASSIFIER.parameter_shapes() if n == "conv1" or n.startswith("layer1.")
    )
    assert layers.frozen_modules(CLASSIFIER, "none") == ()
    with pytest.raises(UsageError, match="names 'layer', but no module is called so"):
        layers.frozen_modules(CLASSIFIER, "layer")
    with pytest.raises(UsageError, match="leaves nothing to learn"):
        layers.frozen_modules(CLASSIFIER, "conv1,bn1,layer1,layer2,fc")


def test_updates_are_scaled_by_module():
    updates = {"a": {"kernel": np.ones(2)}, "b": {"kernel": np.ones(2), "bias": np.ones(1)}}
    found = layers.scaled(updates, {"a": 1.0, "b": 0.5})
    np.testing.assert_array_equal(found["a"]["kernel"], 1)
    np.testing.assert_array_equal(found["b"]["bias"], 0.5)


def test_scales_and_biases_do_not_decay():
    params = {"conv1": {"kernel": 1, "bias": 1}, "bn1": {"scale": 1, "bias": 1}}
    assert layers.decay_mask(params) == {
        "conv1": {"kernel": True, "bias": False},
        "bn1": {"scale": False, "bias": False},
    }


@pytest.mark.parametrize(
    ("model", "name", "rename"),
    [
        ("cls", "resnetv2_50x1_bit", bit),
        ("swcl50x1", "resnetv2_50x1_bit", bit),
        ("labeler34rs", "resnet34", resnet_name),
        ("resnet50", "resnet50", resnet_name),
    ],
)
def test_what_decays_of_an_encoder_is_the_authors(model, name, rename):
    swcl()
    groups = held_keys("weight_decay_groups")[model]
    program = zoo.build(name, 2, (64, 64, 3)).program
    shapes = dict(program.parameter_shapes())
    del shapes[program.head]
    found = {"decay": set(), "no_decay": set()}
    for module, leaves in layers.decay_mask(shapes).items():
        for leaf, decays in leaves.items():
            end = "bias" if leaf == "bias" else "weight"
            place = f"{classifier(rename)(module)}.{end}"
            found["decay" if decays else "no_decay"].add(place)
    for group, names in groups.items():
        assert found[group] == {name for name in names if name.startswith("encoder.")}
