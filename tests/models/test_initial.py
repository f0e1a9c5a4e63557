"""PyTorch's default start: its spread, what norms start with, and what a value depends on."""

import jax
import numpy as np
import pytest

from medinit_jax.models import bit, unet, vit
from medinit_jax.models.initial import initial_parameters, torch_default_parameters

KEY = jax.random.key(0)


def assert_uniform(values, bound):
    values = np.asarray(values)
    assert np.abs(values).max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert abs(values.mean()) < 5 * bound / (3 * values.size) ** 0.5


def test_kernels_and_biases_are_uniform_within_the_root_of_the_inputs():
    program = bit.bit(bit.Variant((1, 1), width=64), (32, 32, 3), 500)
    params = torch_default_parameters(program, KEY)
    assert_uniform(params["stem.conv"]["kernel"], (7 * 7 * 3) ** -0.5)
    assert_uniform(params["stages.0.blocks.0.conv2"]["kernel"], (3 * 3 * 64) ** -0.5)
    assert_uniform(params["head.fc"]["kernel"], 512**-0.5)
    assert_uniform(params["head.fc"]["bias"], 512**-0.5)
    norm = params["stages.0.blocks.0.norm1"]
    np.testing.assert_array_equal(norm["scale"], 1)
    np.testing.assert_array_equal(norm["bias"], 0)


def test_a_transposed_convolution_counts_its_outputs():
    """PyTorch's second axis is that of the outputs there, and they are half as many."""
    program = unet.unet(None, (64, 64, 3), 2, width=32, levels=2)
    steps = {c.module(s.name): s for c in program.calls for s in c.block.steps if s.name}
    (name, *_) = [module for module, step in steps.items() if step.kind == "conv_t"]
    shape = program.parameter_shapes()[name]["kernel"]
    assert shape[2] == 2 * shape[3]
    kernel = torch_default_parameters(program, KEY)[name]["kernel"]
    assert_uniform(kernel, (shape[0] * shape[1] * shape[3]) ** -0.5)


def test_what_pytorch_has_no_layer_for_starts_as_always():
    program = vit.vit(vit.Variant(16, 2, 2, 8), (32, 32, 3), 3)
    params = torch_default_parameters(program, KEY)
    own = initial_parameters(program, KEY)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, dict(own))
    assert np.std(params["pos_embed"]["embedding"]) == pytest.approx(0.02, rel=0.2)
    np.testing.assert_array_equal(params["cls_token"]["token"], 0)


def test_a_value_depends_on_key_name_and_shape_alone():
    small, large = (bit.bit(bit.Variant(d, width=8), (32, 32, 3), 2) for d in ((1, 1), (2, 1)))
    first, second = (torch_default_parameters(program, KEY) for program in (small, large))
    shared = set(first) & set(second)
    assert "stages.1.blocks.0.conv1" in shared and "stages.0.blocks.1.conv1" not in shared
    for name in shared:
        jax.tree.map(np.testing.assert_array_equal, first[name], second[name])
    other = torch_default_parameters(small, jax.random.key(1))
    assert (other["stem.conv"]["kernel"] != first["stem.conv"]["kernel"]).all()
    alike = [second[f"stages.0.blocks.{block}.conv2"]["kernel"] for block in (0, 1)]
    assert alike[0].shape == alike[1].shape and (alike[0] != alike[1]).all()


@pytest.mark.torch
def test_the_bounds_are_pytorchs():
    nn = pytest.importorskip("torch.nn")
    layers = (nn.Conv2d(12, 64, 3, groups=2), nn.ConvTranspose2d(32, 64, 2), nn.Linear(50, 400))
    for layer, inputs in zip(layers, (9 * 6, 4 * 64, 50), strict=True):
        for tensor in (layer.weight, layer.bias):
            values = tensor.detach().numpy()
            bound = inputs**-0.5
            assert 0.9 * bound < np.abs(values).max() <= bound
