"""Networks of SWCL's authors: the same logits from the same weights.

Their weights are not stored; each is drawn from its PyTorch name. Hence a test holds names, layout
and forward pass together.
"""

import dataclasses

import jax
import numpy as np
import pytest
from oracles import swcl
from reference_weights import state_of
from state_trees import tree

from medinit_jax.downstream.cam import last_map, run_with_map
from medinit_jax.interop.layouts import from_state
from medinit_jax.models import zoo
from medinit_jax.models.network import Network

SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def held():
    return swcl()


# Model of the authors: name here, classes, options, tasks, outputs.
CASES = {
    "dlv3p_50x1": (
        "deeplabv3plus_resnetv2_50x1_bit", 2, {"output_stride": 8, "decoder": "swcl"}, {},
        ["logits"],
    ),
    "dlv3p_joint": (
        "deeplabv3plus_resnetv2_50x1_bit", 4, {"output_stride": 8, "decoder": "swcl"},
        {"optic disc": 2, "optic cup": 2}, ["optic_disc", "optic_cup"],
    ),
    "dlv3p_r18": (
        "deeplabv3plus_resnet18", 2, {"output_stride": 8, "decoder": "swcl"}, {}, ["logits"],
    ),
    "unet_r18": ("unet_resnet18", 2, {"decoder": "swcl"}, {}, ["logits"]),
    "unet_default": ("unet", 2, {"decoder": "swcl"}, {}, ["logits"]),
    "joint_idrid": (
        "resnetv2_50x1_bit", 8, {}, {"retinopathy-grade": 5, "macular-edema-risk": 3},
        ["retinopathy-grade", "macular-edema-risk"],
    ),
    "cls": ("resnetv2_50x1_bit", 2, {}, {}, ["logits"]),
    "labeler34rs": ("resnet34", 2, {"last_stride": 1}, {}, ["logits"]),
}  # fmt: skip


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def without_norm(variables, name):
    """Returns variables by which one batch normalization hands on what it gets."""
    held = variables["batch_stats"][f"{name}.stats"]
    plain = {"scale": np.sqrt(held["var"] + 1e-5), "bias": held["mean"]}
    return {**variables, "params": {**variables["params"], name: plain}}


@pytest.mark.parametrize("model", CASES)
def test_logits(model, held):
    name, classes, options, tasks, outputs = CASES[model]
    network = zoo.build(name, classes, SHAPE, **options)
    found_in = from_state(name, network.program, state_of(model), "authors", tasks)
    assert not (found_in.missing or found_in.misshapen or found_in.unused)
    params, statistics = tree(found_in.params), tree(found_in.statistics)
    expected = np.concatenate([held[f"net_{model}_{output}"] for output in outputs], 1)
    if expected.ndim == 4:
        expected = expected.transpose(0, 2, 3, 1)
    images = held["net_x"].transpose(0, 2, 3, 1)[: len(expected)]
    variables = {"params": params, "batch_stats": statistics}
    apply = jax.jit(network.apply)
    near(apply(variables, images), expected)
    if f"net_{model}_logits_b1" in held:
        # Of an image alone the authors leave out one norm; here it is made to do nothing.
        variables = without_norm(variables, "aspp.convs.4.2")
        near(apply(variables, images)[:1], held[f"net_{model}_logits_b1"].transpose(0, 2, 3, 1))
    if f"net_{model}_feat" in held and model.startswith("dlv3p"):
        calls = network.program.calls
        encoder = next(i for i, call in enumerate(calls) if call.prefix.startswith("aspp"))
        inner = Network(dataclasses.replace(network.program, calls=calls[:encoder]))
        found = jax.jit(inner.apply)(variables, images)
        near(found, held[f"net_{model}_feat"].transpose(0, 2, 3, 1))
    if model == "labeler34rs":
        assert last_map(network.program)
        features = jax.jit(lambda x: run_with_map(network, params, statistics, x)[1])(images)
        near(features, held[f"net_{model}_feat"].transpose(0, 2, 3, 1))
