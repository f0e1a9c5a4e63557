"""The public names on tiny networks."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import medinit_jax
from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.arch.space import get_space
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import save_params
from medinit_jax.hyper.hypernetwork import HyperInitializer, from_config, init_theta
from medinit_jax.models import zoo
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network

IMAGES = jnp.zeros((2, 8, 8, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "initializer"
    module = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3), num_classes=4)
    theta = jax.device_get(init_theta(module, jax.random.key(2))["params"])
    options = {"hidden": 8, "max_shape": [8, 8, 3, 3], "num_classes": 4}
    options["tables"] = [list(sizes) for sizes in module.known_sizes]
    save_params(path, theta, {"hyper": options, "space": "small", "modality": "fundus"})
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


@pytest.mark.parametrize(
    "key", [jax.random.PRNGKey(3), jax.random.key(3, impl="rbg"), np.array([0, 3], np.uint32)],
    ids=["raw", "rbg", "numpy"],
)  # fmt: skip
def test_keys_of_every_kind_draw_what_init_draws(folder, key):
    found = medinit_jax.initialize(Twin(), IMAGES, medinit_jax.load(folder), key=key, quiet=True)
    own = Twin().init(key, IMAGES)["params"]
    assert jax.tree.map(jnp.shape, found["params"]) == jax.tree.map(jnp.shape, own)
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(own) if leaf.ndim == 2]
    drawn = [leaf for leaf in jax.tree.leaves(found["params"]) if leaf.ndim == 2]
    assert kernels
    for a, b in zip(drawn, kernels, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bound_module_is_refused(folder):
    bound = Twin().bind(Twin().init(jax.random.key(0), IMAGES))
    with pytest.raises(UsageError, match="is bound to variables"):
        medinit_jax.initialize(bound, IMAGES, medinit_jax.load(folder))


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
    with pytest.raises(UsageError, match="does not understand a object: give a Flax module"):
        medinit_jax.initialize(object(), IMAGES, initializer)
    with pytest.raises(UsageError, match="example holds a list"):
        medinit_jax.initialize(model(), [1.0], initializer)
    with pytest.raises(UsageError, match="trained on 'fundus' images, not on 'xray'"):
        medinit_jax.load(folder, modality="xray")
    with pytest.raises(UsageError, match="no initializer"):
        medinit_jax.load(tmp_path)


def test_an_initializer_from_before_an_option_existed_and_one_with_it(folder, tmp_path):
    """Metadata holds no `decoder_rank`: the tile is written whole."""
    old = medinit_jax.load(folder)
    assert "decoder_rank" not in old.metadata["hyper"] and old.module.decoder_rank == 0
    network, spread = zoo.resnet18(2, (32, 32, 3), stem="small"), {}
    for rank in (0, 4):
        options = {"max_shape": [32, 32, 3, 3], "decoder_rank": rank, "decoder_centered": True}
        drawn = jax.device_get(init_theta(from_config(options), jax.random.key(2))["params"])
        save_params(tmp_path / str(rank), drawn, {"hyper": options})
        initializer = medinit_jax.load(tmp_path / str(rank))
        assert initializer.module.decoder_rank == rank
        found = medinit_jax.initialize(network, jnp.zeros((1, 32, 32, 3)), initializer)["params"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        kernels = {name: leaves["kernel"] for name, leaves in found.items() if "kernel" in leaves}
        spread[rank] = {name: float(np.std(kernel)) for name, kernel in kernels.items()}
    assert len(spread[4]) == 21
    for name, deviation in spread[4].items():
        assert deviation == pytest.approx(spread[0][name], rel=0.4), name


class Twin(nn.Module):
    """The network of `model()` as an ordinary Flax module."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), 2, 1, use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="bn")(x))
        return nn.Dense(2, name="fc")(x.mean((1, 2)))


def test_a_module_gets_what_its_program_gets(folder):
    initializer = medinit_jax.load(folder)
    program = medinit_jax.initialize(model(), IMAGES, initializer)["params"]
    traced = medinit_jax.initialize(Twin(), IMAGES, initializer)["params"]
    for name in ("conv", "bn"):
        for leaf, value in traced[name].items():
            np.testing.assert_allclose(value, program[f"stem.{name}"][leaf], atol=1e-6)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + y, None


class Mixed(nn.Module):
    """Stacked layers, attention, a parameter of its own, two outputs, dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (2, 2), (2, 2), name="encoder")(x).reshape(x.shape[0], -1, 8)
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
        x, _ = nn.scan(Block, **options)(name="blocks")(x, None)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train)(x) @ self.param(
            "mix", nn.initializers.normal(), (8, 8), jnp.bfloat16
        ).astype(x.dtype)
        return nn.Dense(4)(x.mean(1)), x


@pytest.mark.parametrize("train", [False, True])
def test_any_module_gets_exactly_the_tree_of_init(folder, train):
    module, key = Mixed(), jax.random.key(3)
    wanted = module.init({"params": key, "dropout": key}, IMAGES, train=train)
    found = medinit_jax.initialize(
        module, IMAGES, medinit_jax.load(folder), key=key, options={"train": train}
    )
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(), found, wanted
    )
    jax.tree.map(np.testing.assert_array_equal, found["batch_stats"], wanted["batch_stats"])
    own, params = wanted["params"], found["params"]
    jax.tree.map(np.testing.assert_array_equal, params["Dense_0"], own["Dense_0"])
    query = params["blocks"]["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    assert query.shape == (3, 8, 2, 4)
    assert not np.array_equal(query[0], query[1])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, own)
    del changed["Dense_0"]
    assert all(jax.tree.leaves(changed))
    assert module.apply(found, IMAGES)[0].shape == (2, 4)


def test_what_was_done_is_told_once(folder, capsys):
    initializer = medinit_jax.load(folder)
    medinit_jax.initialize(Twin(), IMAGES, initializer)
    told = capsys.readouterr()
    assert told.err.startswith("3 of 5 tensors predicted (92.8%).") and "learning rate" in told.err
    assert "no normalization" not in told.err
    medinit_jax.initialize(Twin(), IMAGES, initializer, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_the_head_on_request(folder):
    initializer = medinit_jax.load(folder)
    own, given = (
        medinit_jax.initialize(Mixed(), IMAGES, initializer, head=head)["params"]["Dense_0"]
        for head in (False, True)
    )
    assert (own["kernel"] != given["kernel"]).any()
    with pytest.raises(UsageError, match="2 classes"):
        medinit_jax.initialize(Twin(), IMAGES, initializer, head=True)


def test_only_a_part_of_the_module(folder):
    key, initializer = jax.random.key(3), medinit_jax.load(folder)
    own = Mixed().init(key, IMAGES)["params"]
    found = medinit_jax.initialize(Mixed(), IMAGES, initializer, key=key, only="encoder")["params"]
    assert (found.pop("encoder")["kernel"] != own.pop("encoder")["kernel"]).any()
    jax.tree.map(np.testing.assert_array_equal, found, own)


def test_only_a_part_of_a_program(folder):
    initializer = medinit_jax.load(folder)
    network, key = zoo.resnet18(2, (32, 32, 3), stem="small"), jax.random.key(3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    found = medinit_jax.inspect(network, image, only="layer1")
    predicted = {row.path for row in found.rows if row.status == "predicted"}
    assert len(predicted) == 12 and all(path.startswith("layer1.") for path in predicted)
    # Input, stem, two blocks of five nodes; the last sum has no parameters after it.
    assert found.nodes == 1 + 2 + 5 + 4
    own = medinit_jax.initialize(network, image, initializer, key=key, depth_fraction=0)["params"]
    part = medinit_jax.initialize(network, image, initializer, key=key, only="layer1")["params"]
    changed = {
        name
        for name, leaves in own.items()
        if any((value != part[name][leaf]).any() for leaf, value in leaves.items())
    }
    assert changed and all(name.startswith("layer1.") for name in changed)
    with pytest.raises(UsageError, match="no parameters under 'encoder'; its parts are"):
        medinit_jax.inspect(network, image, only="encoder")


def test_kernels_alone_at_the_usual_deviation(folder):
    initializer = medinit_jax.load(folder)
    network, key = zoo.resnet18(2, (32, 32, 3), stem="small"), jax.random.key(3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    common = {"key": key, "quiet": True}
    whole = medinit_jax.initialize(network, image, initializer, **common)["params"]
    found = medinit_jax.initialize(
        network, image, initializer, kinds=("kernel",), deviation="default", **common
    )["params"]
    own = initial_parameters(network.program, key)
    kernel, before = (np.asarray(tree["layer1.0.conv1"]["kernel"]) for tree in (found, whole))
    assert kernel.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=1e-4)
    np.testing.assert_allclose(kernel / kernel.std(), before / before.std(), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found["layer1.0.bn1"]["scale"], own["layer1.0.bn1"]["scale"])
    assert (whole["layer1.0.bn1"]["scale"] != own["layer1.0.bn1"]["scale"]).any()


def test_filters_made_orthogonal(folder):
    found = medinit_jax.initialize(Twin(), IMAGES, medinit_jax.load(folder), orthogonal=True)
    kernel = np.asarray(found["params"]["conv"]["kernel"], np.float64).reshape(-1, 8)
    gram = kernel.T @ kernel
    np.testing.assert_allclose(gram, np.eye(8) * gram[0, 0], atol=1e-5 * gram[0, 0])


def test_inspect_lists_every_parameter():
    found = medinit_jax.inspect(Mixed(), IMAGES)
    params = Mixed().init(jax.random.key(0), IMAGES)["params"]
    assert len(found.rows) == len(jax.tree.leaves(params))
    status = {row.path: row.status for row in found.rows}
    assert status["mix"] == status["encoder/kernel"] == "predicted"
    assert status["Dense_0/kernel"] == status["Dense_0/bias"] == "excluded"
    heads = sum(np.size(leaf) for leaf in jax.tree.leaves(params["Dense_0"]))
    total = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    assert found.share("excluded") == heads / total and found.share() == 1 - heads / total
    text = str(found)
    assert (
        "mix" in text and "own: is the classifier" in text and f"{len(found.rows)} tensors" in text
    )


def test_a_network_without_normalization_comes_with_a_warning():
    (note,) = medinit_jax.inspect(zoo.build("vgg11", 2, IMAGES.shape[1:]), IMAGES).notes
    assert "no normalization layer" in note
    assert not medinit_jax.inspect(zoo.build("vgg11_bn", 2, IMAGES.shape[1:]), IMAGES).notes


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_nnx_modules(folder):
    net = Net(nnx.Rngs(0))
    before = np.array(net.conv.kernel.get_value())
    found = medinit_jax.initialize(net, IMAGES, medinit_jax.load(folder))
    np.testing.assert_array_equal(net.conv.kernel.get_value(), before)
    assert (found.conv.kernel.get_value() != before).any()
    np.testing.assert_array_equal(found.fc.kernel.get_value(), net.fc.kernel.get_value())
    assert found(IMAGES).shape == (2, 2)
    assert found.norm.mean is not net.norm.mean and found.fc.kernel is not net.fc.kernel
    np.testing.assert_array_equal(net.norm.mean.get_value(), 0)


def test_orthogonal_filters_of_stacked_layers_and_nothing_else(folder):
    initializer = medinit_jax.load(folder)
    plain, changed = (
        medinit_jax.initialize(Mixed(), IMAGES, initializer, orthogonal=orthogonal)["params"]
        for orthogonal in (False, True)
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        *(p["blocks"]["LayerNorm_0"] for p in (plain, changed)),
    )
    for query in changed["blocks"]["MultiHeadDotProductAttention_0"]["query"]["kernel"]:
        kernel = np.asarray(query, np.float64).reshape(8, 8)
        gram = kernel.T @ kernel
        np.testing.assert_allclose(gram, np.eye(8) * gram[0, 0], atol=1e-5 * gram[0, 0])


def test_what_lies_beyond_the_depth_is_told(folder, capsys):
    medinit_jax.initialize(Twin(), IMAGES, medinit_jax.load(folder), depth_fraction=0.34)
    assert capsys.readouterr().err.startswith("1 of 5 tensors predicted")


class Normalized(nn.Module):
    """A network with or without weight normalization."""

    wrap: bool
    axis: int | None = -1

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(8, (3, 3), name="conv")
        x = nn.WeightNorm(conv, feature_axes=self.axis)(x) if self.wrap else conv(x)
        return nn.Dense(2)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("axis", [-1, None])
def test_a_normalized_kernel_is_the_predicted_one(folder, axis):
    initializer = medinit_jax.load(folder)
    plain = medinit_jax.initialize(Normalized(False), IMAGES, initializer)["params"]
    model = Normalized(True, axis)
    status = {row.path: row.status for row in medinit_jax.inspect(model, IMAGES).rows}
    assert status["WeightNorm_0/conv/kernel/scale"] == "predicted"
    found = medinit_jax.initialize(model, IMAGES, initializer)["params"]
    np.testing.assert_array_equal(found["conv"]["kernel"], plain["conv"]["kernel"])
    square = np.square(plain["conv"]["kernel"]).sum((0, 1, 2) if axis else None)
    scale = found["WeightNorm_0"]["conv/kernel/scale"]
    np.testing.assert_allclose(np.square(scale), square, rtol=1e-5)


class Settings:
    width = 8


class Configured(nn.Module):
    settings: object

    @nn.compact
    def __call__(self, x):
        return nn.Conv(self.settings.width, (3, 3))(x)


def test_a_changed_object_is_seen():
    settings = Settings()
    for width in (8, 16):
        settings.width = width
        shapes = {row.shape for row in medinit_jax.inspect(Configured(settings), IMAGES).rows}
        assert shapes == {(3, 3, 3, width), (width,)}


def test_options_that_mean_nothing_are_named(folder):
    initializer = medinit_jax.load(folder)
    for options, part in (
        ({"init_noise": float("nan")}, "init_noise is at least 0 and finite"),
        ({"depth_fraction": "half"}, "depth_fraction lies in"),
        ({"kinds": ("weights",)}, "kinds names 'weights', which is none of kernel"),
        ({"deviation": "he"}, "deviation names 'he', which is none of predicted"),
        ({"on_unknown": None}, "on_unknown=None is none of"),
        ({"on_unknown": {"Conv": "conv"}}, "give layer classes"),
        ({"only": 3}, "only a string"),
        ({"options": ["train"]}, "options is a dict"),
    ):
        for network in (Twin(), model()):
            with pytest.raises(UsageError, match=part):
                medinit_jax.initialize(network, IMAGES, initializer, **options)
    with pytest.raises(UsageError, match="empty tuple"):
        medinit_jax.initialize(model(), (), initializer)

    class Window(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3))(nn.Conv(8, (3, 3))(x))

    with pytest.raises(UsageError, match="convolution of 3 x 3, which cannot be predicted"):
        medinit_jax.initialize(Window(), IMAGES, initializer, head=True)


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
