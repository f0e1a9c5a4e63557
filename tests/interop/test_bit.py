"""BiT's archives: every name of the published networks, values, and what is refused."""

import jax
import numpy as np
import pytest
from medinit_jax.interop.bit import bit_name, read_bit
from oracles import swcl
from reference_weights import bit as authors_name
from reference_weights import held_keys

from medinit_jax.core.errors import UsageError
from medinit_jax.models import bit, resnet
from medinit_jax.models.encoder import body
from medinit_jax.models.features import encoder_params, features
from medinit_jax.models.initial import torch_default_parameters
from medinit_jax.models.network import Network

PROGRAM = bit.bit(bit.Variant((1, 2), width=8), (32, 32, 3), 5)
# The layout of an archive, written by hand for this network.
NAMES = {
    "resnet/root_block/standardized_conv2d/kernel": ("stem.conv", "kernel"),
    "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (
        "stages.0.blocks.0.downsample.conv",
        "kernel",
    ),
    "resnet/block2/unit02/b/standardized_conv2d/kernel": ("stages.1.blocks.1.conv2", "kernel"),
    "resnet/block2/unit01/c/group_norm/gamma": ("stages.1.blocks.0.norm3", "scale"),
    "resnet/block2/unit02/a/group_norm/beta": ("stages.1.blocks.1.norm1", "bias"),
    "resnet/group_norm/gamma": ("norm", "scale"),
    "resnet/group_norm/beta": ("norm", "bias"),
}


def random_params():
    params = torch_default_parameters(PROGRAM, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), params)


def archive(params):
    held = {
        bit_name(module, leaf): value
        for module, leaves in encoder_params(PROGRAM, params).items()
        for leaf, value in leaves.items()
    }
    held["resnet/head/conv2d/kernel"] = np.zeros((1, 1, 64, 21843), np.float32)
    held["resnet/head/conv2d/bias"] = np.zeros(21843, np.float32)
    return held


@pytest.fixture
def written(tmp_path):
    """Returns a function: arrays -> path of an archive with them."""

    def write(held):
        np.savez(tmp_path / "BiT.npz", **held)
        return tmp_path / "BiT.npz"

    return write


def test_a_written_network_is_read_back_and_gives_its_features(written):
    params = random_params()
    held = archive(params)
    assert set(NAMES) <= set(held)
    for name, (module, leaf) in NAMES.items():
        np.testing.assert_array_equal(held[name], params[module][leaf])
    found = read_bit(written(held), PROGRAM)
    jax.tree.map(np.testing.assert_array_equal, found, encoder_params(PROGRAM, params))
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda p: features(Network(PROGRAM), {"params": p}, images).pooled)
    np.testing.assert_array_equal(run(found), run(params))


def test_every_name_of_the_published_network_is_known():
    swcl()
    expected = held_keys("resnetv2_50x1_name_map")
    program = body(bit.bit("resnetv2_50x1_bit"))
    found = {}
    for module, leaves in program.parameter_shapes().items():
        for leaf, shape in leaves.items():
            end = "bias" if leaf == "bias" else "weight"
            name = f"{authors_name(f'encoder.{module}')}.{end}"
            found[name] = {
                "timm": f"{module}.{end}",
                "bit_npz": bit_name(module, leaf),
                "shape": [shape[i] for i in (3, 2, 0, 1)] if len(shape) == 4 else list(shape),
            }
    assert found == expected


def test_the_final_norm_may_be_left_out(written):
    params = random_params()
    held = archive(params)
    for name in ("resnet/group_norm/gamma", "resnet/group_norm/beta"):
        del held[name]
    path = written(held)
    found = read_bit(path, PROGRAM, skip_final_norm=True)
    np.testing.assert_array_equal(found["norm"]["scale"], 1)
    np.testing.assert_array_equal(found["norm"]["bias"], 0)
    kept = encoder_params(PROGRAM, params)
    del found["norm"], kept["norm"]
    jax.tree.map(np.testing.assert_array_equal, found, kept)
    with pytest.raises(UsageError, match="has no tensor 'resnet/group_norm/gamma', which 'norm'"):
        read_bit(path, PROGRAM)


def test_what_does_not_fit_is_named(written, tmp_path):
    held = archive(random_params())
    name = "resnet/block2/unit01/b/standardized_conv2d/kernel"
    held[name] = held[name][..., :-1]
    words = rf"tensor '{name}' has shape \(3, 3, 16, 15\), but 'stages.1.blocks.0.conv2' needs"
    with pytest.raises(UsageError, match=words):
        read_bit(written(held), PROGRAM)
    other = resnet.resnet(resnet.Variant((1,), False), (32, 32, 3), 2, width=8)
    with pytest.raises(UsageError, match="BiT networks have no module 'conv1'"):
        read_bit(written(held), other)
    with pytest.raises(UsageError, match="There is no file"):
        read_bit(tmp_path / "none.npz", PROGRAM)


def test_nothing_in_a_file_is_run_and_damage_is_told(written, tmp_path):
    held = archive(random_params())
    held["resnet/group_norm/beta"] = np.array([{"run": print}], dtype=object)
    with pytest.raises(UsageError, match="no readable archive"):
        read_bit(written(held), PROGRAM)
    text = tmp_path / "text.npz"
    text.write_text("404: not found")
    whole = written(archive(random_params()))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:5000])
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    empty = tmp_path / "empty.npz"
    empty.touch()
    for path in (text, cut, single, empty):
        with pytest.raises(UsageError, match="no readable archive"):
            read_bit(path, PROGRAM)
