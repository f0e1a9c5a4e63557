"""Names and forms of other libraries: key sets by their authors, round trips, what is refused."""

import numpy as np
import pytest
from oracles import swcl
from reference_weights import held_keys
from state_trees import assert_same, tree

from medinit_jax.core.errors import UsageError
from medinit_jax.interop.layouts import (
    COUNTER,
    LAYOUTS,
    family_of,
    from_state,
    names_of,
    to_state,
)
from medinit_jax.interop.places import parameter_places
from medinit_jax.interop.unfit import strangers
from medinit_jax.models import bit, resnet, unet, zoo
from medinit_jax.models.encoder import body
from medinit_jax.models.statistics import initial_statistics

SHAPE = (64, 64, 3)
# What each checkpoint of SWCL's authors is here: name, classes, options, tasks.
AUTHORS = {
    "labeler34rs": ("resnet34", 2, {"last_stride": 1}, {}),
    "resnet18": ("resnet18", 2, {}, {}),
    "resnet50": ("resnet50", 2, {}, {}),
    "swcl50x1": ("resnetv2_50x1_bit", 2, {}, {}),
    "byol_online": ("resnetv2_50x1_bit", 2, {}, {}),
    "byol_target": ("resnetv2_50x1_bit", 2, {}, {}),
    "dino": ("resnetv2_50x1_bit", 2, {}, {}),
    "joint_idrid": (
        "resnetv2_50x1_bit", 8, {}, {"retinopathy-grade": 5, "macular-edema-risk": 3},
    ),
    "cls": ("resnetv2_50x1_bit", 2, {}, {}),
    "dlv3p_50x1": (
        "deeplabv3plus_resnetv2_50x1_bit", 2, {"output_stride": 8, "decoder": "swcl"}, {},
    ),
    "dlv3p_joint": (
        "deeplabv3plus_resnetv2_50x1_bit", 4, {"output_stride": 8, "decoder": "swcl"},
        {"optic disc": 2, "optic cup": 2},
    ),
    "dlv3p_r18": ("deeplabv3plus_resnet18", 2, {"output_stride": 8, "decoder": "swcl"}, {}),
    "unet_r18": ("unet_resnet18", 2, {"decoder": "swcl"}, {}),
    "unet_default": ("unet", 2, {"decoder": "swcl"}, {}),
}  # fmt: skip
SMALL_BIT = bit.bit(bit.Variant((1, 2), width=8), (32, 32, 3), 5)
SMALL_RESNET = resnet.resnet(resnet.Variant((1, 1), False), (32, 32, 3), 5, width=8)


def values(program, seed=0):
    """Parameters and statistics, at random."""
    rng = np.random.default_rng(seed)
    shapes = program.parameter_shapes(), initial_statistics(program)
    return tuple(
        {
            module: {
                leaf: rng.normal(size=getattr(one, "shape", one)).astype(np.float32)
                for leaf, one in leaves.items()
            }
            for module, leaves in held.items()
        }
        for held in shapes
    )


def heads_of(keys):
    """Shapes of heads on pooled features, in our form, from the authors' keys."""
    shapes = {}
    for name, shape in keys.items():
        module, _, end = name.rpartition(".")
        if name.startswith(("projection", "predictor")) and end != "weight_g":
            leaf = "bias" if end == "bias" else "kernel" if len(shape) == 2 else "scale"
            shapes.setdefault(module, {})[leaf] = tuple(shape[::-1])
    return shapes


@pytest.mark.parametrize("model", AUTHORS)
def test_checkpoints_of_the_authors_are_read_and_written_back(model):
    """Every key there is, no other, with its shape and its values."""
    swcl()
    keys = held_keys("state_dict")[model]
    state = {
        k: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for k, shape in keys.items()
    }
    state |= {k: np.zeros((), np.int64) for k in keys if k.endswith(COUNTER)}
    state |= {k: np.ones(shape, np.float32) for k, shape in keys.items() if k.endswith("weight_g")}
    name, classes, options, tasks = AUTHORS[model]
    program = zoo.build(name, classes, SHAPE, **options).program
    found = from_state(name, program, state, heads=tasks, others=heads_of(keys))
    assert found.layout == "authors" and not found.unused and not found.misshapen
    headless = not any(key.startswith("out.") for key in keys)
    own = {f"{program.head}/{leaf}" for leaf in ("kernel", "bias")}
    assert set(found.missing) == (own if headless else set())
    params, statistics = tree(found.params), tree(found.statistics)
    assert_same(to_state(name, program, params, statistics, "authors", tasks), state)


def test_all_models_of_the_authors_are_here():
    swcl()
    assert set(AUTHORS) == set(held_keys("state_dict"))


def test_names_of_the_published_bit_network_in_three_layouts():
    swcl()
    program = bit.bit("resnetv2_50x1_bit", SHAPE, 2)
    held = {}
    for layout in ("authors", "timm", "bit"):
        names = names_of("resnetv2_50x1_bit", program, layout)
        held[layout] = {
            (module, leaf): (places[0].name, list(places[0].shape))
            for module, leaf, _, places in parameter_places(program, names, {})
            if module != program.head
        }
    found = {
        name: {"timm": held["timm"][own][0], "bit_npz": held["bit"][own][0], "shape": shape}
        for own, (name, shape) in held["authors"].items()
    }
    assert found == held_keys("resnetv2_50x1_name_map")
    for own, (_, shape) in held["authors"].items():
        assert held["timm"][own][1] == shape
        hwio = [shape[i] for i in (2, 3, 1, 0)] if len(shape) == 4 else shape
        assert held["bit"][own][1] == hwio


# Written by hand, for this network.
ARCHIVE = {
    "resnet/root_block/standardized_conv2d/kernel": ("stem.conv", "kernel"),
    "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (
        "stages.0.blocks.0.downsample.conv", "kernel",
    ),
    "resnet/block2/unit02/b/standardized_conv2d/kernel": ("stages.1.blocks.1.conv2", "kernel"),
    "resnet/block2/unit01/c/group_norm/gamma": ("stages.1.blocks.0.norm3", "scale"),
    "resnet/block2/unit02/a/group_norm/beta": ("stages.1.blocks.1.norm1", "bias"),
    "resnet/group_norm/gamma": ("norm", "scale"),
    "resnet/group_norm/beta": ("norm", "bias"),
    "resnet/head/conv2d/bias": ("head.fc", "bias"),
}  # fmt: skip


def test_archives_of_bit_hold_kernels_as_ours():
    params, _ = values(SMALL_BIT)
    state = to_state("resnetv2_50x1_bit", SMALL_BIT, params, {}, "bit")
    for name, (module, leaf) in ARCHIVE.items():
        np.testing.assert_array_equal(state[name], params[module][leaf])
    head = state["resnet/head/conv2d/kernel"]
    np.testing.assert_array_equal(head, params["head.fc"]["kernel"][None, None])
    found = from_state("resnetv2_50x1_bit", SMALL_BIT, state)
    assert found.layout == "bit" and not found.missing and not found.unused
    assert_same(found.params, {f"{m}/{k}": v for m, p in params.items() for k, v in p.items()})


def test_forms_are_those_of_pytorch():
    """Against transpositions written out, one of each kind."""
    params, statistics = values(SMALL_RESNET)
    state = to_state("resnet18", SMALL_RESNET, params, statistics, "torchvision")
    kernel = params["layer1.0.conv1"]["kernel"]
    for i, o, h, w in ((0, 1, 2, 0), (7, 3, 0, 2)):
        assert state["layer1.0.conv1.weight"][o, i, h, w] == kernel[h, w, i, o]
    assert state["fc.weight"][4, 2] == params["fc"]["kernel"][2, 4]
    assert state["bn1.running_var"][3] == statistics["bn1.stats"]["var"][3]
    assert state["bn1.num_batches_tracked"].dtype == np.int64
    program = unet.unet(None, (32, 32, 3), 2, width=4, levels=1)
    params, statistics = values(program)
    state = to_state("unet", program, params, statistics, "torchvision")
    up, own = state["decoder.0.up.weight"], params["decoder.0.up"]["kernel"]
    assert up.shape == (8, 4, 2, 2) and up[5, 1, 0, 1] == own[0, 1, 5, 1]
    assert state["head.weight"].shape == (2, 4, 1, 1)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_tensor_has_a_place_of_its_own_in_every_layout(name):
    program = zoo.build(name, 3, (64, 64, 3)).program
    shapes = program.parameter_shapes()
    decodes = len(program.shapes[-1]) == 3
    held = []
    for layout in LAYOUTS:
        try:
            names = names_of(name, program, layout)
        except UsageError as error:
            assert "flax" in str(error)
            continue
        held.append(layout)
        places = list(parameter_places(program, names, {}))
        found = [place.name for *_, parts in places for place in parts]
        assert len(set(found)) == len(found)
        for _, _, shape, parts in places:
            assert np.prod(shape) == sum(np.prod(place.shape) for place in parts)
        inner = {m for m in shapes if m.startswith("encoder.")} if decodes else None
        if names.encoder_only:
            expected = inner or set(body(program).parameter_shapes())
        else:
            expected = set(shapes)
        assert {module for module, *_ in places} == expected
    assert "flax" in held and ("torchvision" in held) == (family_of(name) != "bit")
    assert ("bit" in held) == (family_of(name) == "bit")


def test_an_encoder_goes_from_file_to_network_whatever_surrounds_it():
    """A classifier's weights start a U-Net, a U-Net's a classifier, below any usual module."""
    name, program = "unet_resnet18", unet.unet(SMALL_RESNET, (32, 32, 3), 2)
    params, statistics = values(SMALL_RESNET)
    state = to_state("resnet18", SMALL_RESNET, params, statistics, "torchvision")
    wanted = {f"{m}/{k}": v for m, p in params.items() for k, v in p.items() if m != "fc"}
    for prefix in ("", "encoder.", "backbone.", "model."):
        found = from_state(name, program, {f"{prefix}{k}": v for k, v in state.items()})
        assert_same(found.params, {f"encoder.{k}": v for k, v in wanted.items()})
        assert found.unused == (f"{prefix}fc.bias", f"{prefix}fc.weight")
        assert "encoder.bn1.stats/mean" in found.statistics
        # A head is no sign of another network.
        assert not strangers(found, list(found.params))
    theirs = to_state(name, program, *values(program), "torchvision")
    back = from_state("resnet18", SMALL_RESNET, theirs)
    assert set(back.params) == set(wanted)
    for module in ("conv1", "layer2.0.downsample.0"):
        own = theirs[f"encoder.{module}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(back.params[f"{module}/kernel"], own)
    # The authors' U-Nets name encoders otherwise, their pretraining as their DeepLabv3+.
    encoder = to_state("resnet18", SMALL_RESNET, params, statistics, "authors")
    found = from_state(name, program, encoder)
    assert_same(found.params, {f"encoder.{k}": v for k, v in wanted.items()})


def test_what_a_layout_cannot_hold_is_a_sentence_with_what_can():
    params, statistics = values(SMALL_RESNET)
    arguments = "resnet18", SMALL_RESNET, params, statistics
    with pytest.raises(UsageError, match="no layout 'keras'; choose one of torchvision, timm, au"):
        to_state(*arguments, "keras")
    with pytest.raises(UsageError, match="resnet18 is no BiT .* fits into torchvision, timm, auth"):
        to_state(*arguments, "bit")
    with pytest.raises(UsageError, match="adds 1e-5 to variances where mobilenet_v3_large adds"):
        names_of("mobilenet_v3_large", zoo.build("mobilenet_v3_large", 2).program, "timm")
    large = zoo.build("vgg11", 2, (256, 256, 3)).program
    with pytest.raises(UsageError, match=r"vgg11 pools after .* on images of \(256, 256\)"):
        names_of("vgg11", large, "timm")
    own = unet.unet(SMALL_RESNET, (32, 32, 3), 2)
    with pytest.raises(UsageError, match="decoder=swcl is, U-Nets on ResNets only"):
        names_of("unet_resnet18", own, "authors")
    with pytest.raises(UsageError, match="the heads a, b have 3 classes in sum, and resnet18 has"):
        to_state(*arguments, "authors", {"a": 1, "b": 2})
    with pytest.raises(UsageError, match="there is no network 'resnet20'"):
        family_of("resnet20")
    beside = params | {"projection_network.out.0": {"bias": np.zeros(3)}}
    with pytest.raises(UsageError, match="no place for projection_network.out.0; leave them out"):
        to_state("resnet18", SMALL_RESNET, beside, statistics, "timm")
    with pytest.raises(UsageError, match=r"1 tensors of resnet18 are not there, such as bn1.stats"):
        held = statistics | {"bn1.stats": {"mean": statistics["bn1.stats"]["mean"]}}
        to_state("resnet18", SMALL_RESNET, params, held, "timm")


def test_prototypes_of_other_lengths_are_refused():
    others = {"projection_network.last_layer": {"kernel": (4, 6)}}
    state = {
        "projection_network.last_layer.weight_v": np.zeros((6, 4), np.float32),
        "projection_network.last_layer.weight_g": np.full((6, 1), 2.0, np.float32),
    }
    with pytest.raises(UsageError, match="weight_g is not 1 everywhere"):
        from_state("resnet18", SMALL_RESNET, state, "authors", others=others)


def test_our_own_form_is_that_of_a_runs_folder():
    params, statistics = values(SMALL_RESNET)
    state = to_state("resnet18", SMALL_RESNET, params, statistics, "flax")
    assert state["params/layer1.0.conv1/kernel"] is not None
    np.testing.assert_array_equal(state["params/fc/kernel"], params["fc"]["kernel"])
    np.testing.assert_array_equal(
        state["batch_stats/bn1.stats/mean"], statistics["bn1.stats"]["mean"]
    )
    assert not any(name.endswith(COUNTER) for name in state)
    assert from_state("resnet18", SMALL_RESNET, state).layout == "flax"
