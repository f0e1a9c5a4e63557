"""What a start takes from a file, what it leaves and says, and what it refuses."""

import io

import jax
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console
from tiny_finetune import tiny

from medinit_jax.core.checkpoint import load_params, save_params
from medinit_jax.core.errors import UsageError
from medinit_jax.finetune.network import make_network
from medinit_jax.finetune.starts import make_start
from medinit_jax.hyper.hypernetwork import from_config, init_theta
from medinit_jax.interop.weights import from_state, read_state, torch_name
from medinit_jax.models import zoo

CLASSIFIER = {"name": "resnet18", "width": 0}
HYPER = {
    "hidden": 8, "max_shape": (8, 8, 7, 7), "node_types": 29, "activations": False, "layers": 1,
    "num_classes": 4,
}  # fmt: skip


def started(data_dir, network, start, path="", **changes):
    config = tiny("classification", data_dir)
    config.unlock()
    config.init.start, config.init.path = start, str(path)
    config.init.update(changes)
    console = Console(file=io.StringIO(), width=200)
    return make_start(config, network, console), console.file.getvalue()


def torch_state(program, seed=0):
    """A state dict as torchvision would write it, with values of our own."""
    rng = np.random.default_rng(seed)
    state = {}
    for module, leaves in program.parameter_shapes().items():
        for leaf, shape in leaves.items():
            value = rng.normal(size=shape).astype(np.float32)
            if leaf == "kernel":
                value = value.transpose(3, 2, 0, 1) if len(shape) == 4 else value.T
            end = "bias" if leaf == "bias" else "weight"
            state[f"{torch_name(module)}.{end}"] = np.ascontiguousarray(value)
            if leaf == "scale":
                for kind in ("mean", "var"):
                    values = rng.uniform(0.5, 1, shape).astype(np.float32)
                    state[f"{torch_name(module)}.running_{kind}"] = values
    return state


@pytest.fixture(scope="module")
def network():
    return make_network(CLASSIFIER, 32, 3, "classification")


@pytest.fixture(scope="module")
def segmenter():
    return make_network({"name": "unet_resnet18"}, 32, 2, "segmentation")


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.numpy.save_file(torch_state(network.program), path)
    return path


@pytest.fixture(scope="module")
def initializer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hyper") / "initializer"
    module = from_config(HYPER)
    theta = jax.device_get(init_theta(module, jax.random.key(1))["params"])
    save_params(folder, theta, {"hyper": HYPER, "seed": 7})
    return folder


def test_all_but_the_head_of_a_file_is_taken(network, file, data_dir):
    start, said = started(data_dir, network, "imagenet", file)
    state = torch_state(network.program)
    found = start.params["layer2.0.conv1"]["kernel"]
    np.testing.assert_array_equal(found, state["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    random, _ = started(data_dir, network, "random")
    np.testing.assert_array_equal(start.params["fc"]["kernel"], random.params["fc"]["kernel"])
    np.testing.assert_array_equal(start.statistics["bn1.stats"]["mean"], state["bn1.running_mean"])
    assert start.record["taken"] == start.record["of"] - 2 and start.record["left"] == []
    assert f"{start.record['taken']} of {start.record['of']} tensors" in said


def test_a_classifier_starts_an_encoder(segmenter, file, data_dir):
    start, _ = started(data_dir, segmenter, "file", file)
    state = torch_state(make_network(CLASSIFIER, 32, 3, "classification").program)
    found = start.params["encoder.layer1.0.conv1"]["kernel"]
    np.testing.assert_array_equal(found, state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    random, _ = started(data_dir, segmenter, "random")
    for name, leaves in random.params.items():
        if not name.startswith("encoder"):
            for leaf, value in leaves.items():
                np.testing.assert_array_equal(start.params[name][leaf], value)
    assert start.record["remarks"]
    assert any("fc.weight of the file" in line for line in start.record["left"])


def test_an_encoder_starts_a_classifier(segmenter, network, data_dir, tmp_path):
    start, _ = started(data_dir, segmenter, "random")
    save_params(tmp_path / "model", {"params": jax.device_get(start.params)}, {}, kind="model")
    found, said = started(data_dir, network, "encoder", tmp_path)
    np.testing.assert_array_equal(
        found.params["layer1.0.conv1"]["kernel"], start.params["encoder.layer1.0.conv1"]["kernel"]
    )
    # Without statistics in the file, all are estimated.
    assert found.statistics is None and "batch statistics" in found.record["remarks"][0]
    assert said


def test_an_encoder_of_another_network_is_refused(network, data_dir, tmp_path):
    """All names and shapes of a ResNet-18 are in a ResNet-34, whose features they are not."""
    other = make_network({"name": "resnet34"}, 32, 3, "classification")
    start, _ = started(data_dir, other, "random")
    held = {"params": jax.device_get(start.params)}
    for name in ("resnet34", "unet_resnet34"):
        save_params(tmp_path / name, held, {"model": {"name": name}}, kind="model")
        with pytest.raises(UsageError, match=f"holds a {name}, and config.model.name=resnet18"):
            started(data_dir, network, "encoder", tmp_path / name)
    save_params(tmp_path / "own", held, {"model": {"name": "unet_resnet18"}}, kind="model")
    assert started(data_dir, network, "encoder", tmp_path / "own")[0].record["taken"]


def test_what_fits_in_part_is_listed(network, data_dir, tmp_path):
    state = torch_state(network.program)
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    del state["layer1.0.conv1.weight"]
    state["extra.weight"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(value) for name, value in state.items()},
        tmp_path / "w.safetensors",
    )
    start, said = started(data_dir, network, "file", tmp_path / "w.safetensors")
    text = "\n".join(start.record["left"])
    assert "conv1/kernel: (7, 7, 1, 64) in the file, (7, 7, 3, 64) here" in text
    assert "layer1.0.conv1/kernel: not in the file" in text
    assert "extra.weight of the file: the network has no place for it" in text
    assert "conv1/kernel" in said


def test_nothing_that_fits_is_refused(network, data_dir, tmp_path):
    other = zoo.build("vgg11", 3, (32, 32, 3)).program
    safetensors.numpy.save_file(
        {"a.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors"
    )
    with pytest.raises(UsageError, match="Nothing in .* fits the encoder of this network"):
        started(data_dir, network, "file", tmp_path / "other.safetensors")
    assert other.head != network.program.head


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.safetensors", None, "There is no file"),
        ("weights.npz", b"PK", "no file of weights that is understood"),
        ("broken.safetensors", b"12345678", "is no readable .safetensors file"),
    ],
)
def test_bad_files_are_sentences(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_state(tmp_path / name)


@pytest.mark.parametrize("start", ["hyper", "matched", "untrained"])
def test_predicted_starts(start, network, initializer, data_dir):
    found, _ = started(data_dir, network, start, initializer)
    random, _ = started(data_dir, network, "random")
    np.testing.assert_array_equal(found.params["fc"]["kernel"], random.params["fc"]["kernel"])
    assert found.statistics is None
    assert found.record["taken"] == found.record["of"] - 2
    if start == "matched":
        hyper, _ = started(data_dir, network, "hyper", initializer)
        for name in ("conv1", "layer3.0.conv2"):
            a, b = (np.asarray(p.params[name]["kernel"]) for p in (hyper, found))
            assert not np.array_equal(a, b)
            np.testing.assert_array_equal(np.sort(a, None), np.sort(b, None))


def test_a_depth_fraction_is_counted(network, initializer, data_dir):
    whole, _ = started(data_dir, network, "hyper", initializer)
    half, _ = started(data_dir, network, "hyper", initializer, depth_fraction=0.5)
    assert half.record["taken"] == round(whole.record["taken"] / 2)
    assert len(half.record["left"]) == whole.record["taken"] - half.record["taken"]


def test_only_the_encoder_of_a_segmenter_is_predicted(segmenter, initializer, data_dir):
    found, _ = started(data_dir, segmenter, "hyper", initializer)
    random, _ = started(data_dir, segmenter, "random")
    np.testing.assert_array_equal(
        found.params["decoder.0.conv1"]["kernel"], random.params["decoder.0.conv1"]["kernel"]
    )
    assert not np.array_equal(
        found.params["encoder.conv1"]["kernel"], random.params["encoder.conv1"]["kernel"]
    )


def test_a_model_folder_is_told_from_an_initializer(initializer, tmp_path):
    with pytest.raises(UsageError, match="is no model: model.json is missing"):
        load_params(initializer, "model")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "vgg11_bn", "densenet121"])
def test_every_tensor_of_torchvision_has_a_place(name, tmp_path):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    net = getattr(models, name)()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    program = zoo.build(name, 1000).program
    found = from_state(program, read_state(tmp_path / "net.pth"))
    shapes = program.parameter_shapes()
    assert {k: v.shape for k, v in found.params.items()} == {
        f"{m}/{leaf}": shape for m, leaves in shapes.items() for leaf, shape in leaves.items()
    }
    assert found.unused == ()
