"""The public names on tiny networks."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import medinit_jax
from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.arch.space import get_space
from medinit_jax.core.checkpoint import save_params
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.models import zoo
from medinit_jax.models.network import Network

IMAGES = jnp.zeros((2, 8, 8, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "initializer"
    module = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3), num_classes=4)
    theta = jax.device_get(init_theta(module, jax.random.key(2))["params"])
    options = {"hidden": 8, "max_shape": [8, 8, 3, 3], "num_classes": 4}
    options["tables"] = [list(sizes) for sizes in module.known_sizes]
    save_params(path, theta, {"hyper": options, "space": "small"})
    return path


def model(norm=True):
    build = ProgramBuilder((8, 8, 3))
    b = BlockBuilder(1)
    y = b.conv(0, "conv", 8, 3, stride=2, bias=not norm)
    b("relu", b("batch_norm", y, name="bn") if norm else y)
    value = build(b.build(), (0,), "stem")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=2, bias=True)
    build(b.build(), (value,), "head")
    return Network(build.build())


@pytest.mark.parametrize("norm", [True, False])
def test_initialize_returns_exactly_the_tree_of_init(folder, norm):
    network, key = model(norm), jax.random.key(6)
    wanted = network.init(key, IMAGES)
    found = medinit_jax.initialize(network, IMAGES, medinit_jax.load(folder), key=key)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(), found, wanted
    )
    jax.tree.map(
        np.testing.assert_array_equal, found["params"]["head.fc"], wanted["params"]["head.fc"]
    )
    assert (found["params"]["stem.conv"]["kernel"] != wanted["params"]["stem.conv"]["kernel"]).any()
    assert ("batch_stats" in found) == norm
    assert network.apply(found, IMAGES).shape == (2, 2)


def test_nothing_predicted_is_the_models_own_init(folder):
    key = jax.random.key(6)
    found = medinit_jax.initialize(
        model(), IMAGES, medinit_jax.load(folder), key=key, depth_fraction=0.0
    )
    jax.tree.map(np.testing.assert_array_equal, found, model().init(key, IMAGES))


def test_a_workdir_is_found_and_the_result_is_the_same_every_time(folder):
    first, second = medinit_jax.load(folder), medinit_jax.load(folder.parent)
    assert first.fingerprint == second.fingerprint and len(first.fingerprint) == 64
    a, b = (medinit_jax.initialize(model(), IMAGES, i) for i in (first, second))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_wrong_example_a_foreign_model_and_an_empty_folder_are_named(folder, tmp_path):
    initializer = medinit_jax.load(folder)
    with pytest.raises(UsageError, match=r"\(batch, 8, 8, 3\)"):
        medinit_jax.initialize(model(), jnp.zeros((1, 9, 9, 3)), initializer)
    with pytest.raises(UsageError, match="models.network.Network"):
        medinit_jax.initialize(object(), IMAGES, initializer)
    with pytest.raises(UsageError, match="no initializer"):
        medinit_jax.load(tmp_path)


def test_importing_the_package_does_not_import_jax():
    code = (
        "import sys, medinit_jax; assert 'jax' not in sys.modules; print(medinit_jax.__version__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == medinit_jax.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        medinit_jax.nonsense  # noqa: B018


def test_zoo_makes_networks_by_name():
    space = get_space("small")
    small = zoo.by_name("resnet18", 5, space).program
    assert small.input_shape == (32, 32, 3) and small.num_classes == 5
    assert small == zoo.resnet18(5, (32, 32, 3), stem="small").program
    assert zoo.by_name("resnet18:imagenet", 5, space).program != small
    network = zoo.by_name("test:3", 2, space)
    assert network == zoo.space_network(space, "test", 3, 2)
    with pytest.raises(UsageError, match="resnet18"):
        zoo.by_name("vgg", 2, space)
