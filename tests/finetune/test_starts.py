"""What a start takes from a file, what it leaves and says, and what it refuses."""

import io

import jax
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console
from tiny_finetune import tiny

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params, save_params
from medinit_jax.finetune.network import make_network
from medinit_jax.finetune.starts import STARTS, make_start
from medinit_jax.hyper.hypernetwork import from_config, init_theta
from medinit_jax.interop import published, weights
from medinit_jax.interop.layouts import to_state
from medinit_jax.interop.weights import read_state
from medinit_jax.models import bit as bit_family
from medinit_jax.models import zoo
from medinit_jax.models.statistics import initial_statistics

KIND = "classification"
CLASSIFIER = {"name": "resnet18", "width": 0}
HYPER = {
    "hidden": 8, "max_shape": (8, 8, 7, 7), "node_types": 29, "activations": False, "layers": 1,
    "num_classes": 4,
}  # fmt: skip


def started(data_dir, network, start, path="", name="", **changes):
    config = tiny("classification", data_dir)
    config.unlock()
    config.init.start, config.init.path = start, str(path)
    segments = len(network.program.shapes[-1]) == 3
    config.model.name = name or ("unet_resnet18" if segments else "resnet18")
    config.init.update(changes)
    console = Console(file=io.StringIO(), width=200)
    return make_start(config, network, console), console.file.getvalue()


def torch_state(program, seed=0):
    """A state dict of a ResNet as torchvision would write it, with values of our own."""
    rng = np.random.default_rng(seed)
    state = {}
    for module, leaves in program.parameter_shapes().items():
        for leaf, shape in leaves.items():
            value = rng.normal(size=shape).astype(np.float32)
            if leaf == "kernel":
                value = value.transpose(3, 2, 0, 1) if len(shape) == 4 else value.T
            end = "bias" if leaf == "bias" else "weight"
            state[f"{module}.{end}"] = np.ascontiguousarray(value)
            if leaf == "scale":
                for kind in ("mean", "var"):
                    values = rng.uniform(0.5, 1, shape).astype(np.float32)
                    state[f"{module}.running_{kind}"] = values
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


def written(tmp_path, state):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({n: np.ascontiguousarray(v) for n, v in state.items()}, path)
    return path


def test_what_fits_in_part_is_refused_by_name_or_listed(network, data_dir, tmp_path):
    state = torch_state(network.program)
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["layer1.0.convolution1.weight"] = state.pop("layer1.0.conv1.weight")
    state["extra.weight"] = np.zeros(3, np.float32)
    path = written(tmp_path, state)
    with pytest.raises(UsageError) as error:
        started(data_dir, network, "torch", path)
    for words in (
        "(read as torchvision) fits resnet18 in part only",
        "conv1.weight is (64, 1, 7, 7) in the file and (64, 3, 7, 7) here",
        "layer1.0.conv1.weight is not in the file, where layer1.0.convolution1.weight",
        "layer1.0.convolution1.weight has no place in the network",
        "config.init.force=True",
    ):
        assert words in str(error.value)
    # A head or another's decoder is no reason to refuse.
    assert "extra.weight" not in str(error.value)
    start, said = started(data_dir, network, "torch", path, force=True)
    text = "\n".join(start.record["left"])
    assert "conv1/kernel: conv1.weight is (64, 1, 7, 7) in the file" in text
    assert "layer1.0.conv1/kernel: layer1.0.conv1.weight is not in the file" in text
    assert "extra.weight of the file: the network has no place for it" in text
    assert "conv1/kernel" in said
    assert start.record["taken"] == start.record["of"] - 2 - 2


@pytest.mark.parametrize(("held", "words"), [
    ("resnet34", "layer1.2.bn1.bias has no place in the network"),
    ("resnet18", "layer1.2.conv1.weight is not in the file"),
])  # fmt: skip
def test_weights_of_another_depth_are_refused(held, words, data_dir, tmp_path):
    """Names and shapes of a ResNet-18 are all in a ResNet-34."""
    path = written(tmp_path, torch_state(make_network({"name": held}, 32, 3, KIND).program))
    other = "resnet18" if held == "resnet34" else "resnet34"
    with pytest.raises(UsageError) as error:
        started(data_dir, make_network({"name": other}, 32, 3, KIND), "torch", path, other)
    assert words in str(error.value)


def test_weights_of_other_libraries_are_recognized(data_dir, tmp_path):
    name = "mobilenet_v2"
    network = make_network({"name": name}, 32, 3, KIND)
    params = {
        m: {k: np.full(shape, 0.5, np.float32) for k, shape in leaves.items()}
        for m, leaves in network.program.parameter_shapes().items()
    }
    held = initial_statistics(network.program)
    path = written(tmp_path, to_state(name, network.program, params, held, "timm"))
    start, _ = started(data_dir, network, "torch", path, name)
    assert start.record["layout"] == "timm" and start.record["left"] == []
    assert start.statistics is not None
    for module in ("features.3.conv.1.0", "features.18.0"):
        np.testing.assert_array_equal(start.params[module]["kernel"], 0.5)
    with pytest.raises(UsageError, match="no layout 'keras'; choose one of torchvision, timm"):
        started(data_dir, network, "torch", path, name, layout="keras")
    with pytest.raises(UsageError, match="'bit' cannot hold this network: mobilenet_v2 is no BiT"):
        started(data_dir, network, "torch", path, name, layout="bit")


def test_an_archive_starts_bit_networks_with_or_without_the_last_norm(data_dir, tmp_path):
    name = "deeplabv3plus_resnetv2_50x1_bit"
    network = make_network({"name": name}, 32, 2, "segmentation")
    shapes = bit_family.bit("resnetv2_50x1_bit", (32, 32, 3), 2)
    params = {
        m: {k: np.full(shape, 0.5, np.float32) for k, shape in leaves.items()}
        for m, leaves in shapes.parameter_shapes().items()
    }
    state = to_state("resnetv2_50x1_bit", shapes, params, {}, "bit")
    np.savez(tmp_path / "BiT.npz", **state)
    held, _ = started(data_dir, network, "bit", tmp_path / "BiT.npz", name)
    assert (held.params["encoder.norm"]["scale"] == 0.5).all()
    assert (held.params["encoder.stages.3.blocks.2.conv2"]["kernel"] == 0.5).all()
    for leaf in ("gamma", "beta"):
        del state[f"resnet/group_norm/{leaf}"]
    np.savez(tmp_path / "BiT.npz", **state)
    with pytest.raises(UsageError, match="resnet/group_norm/gamma is not in the file"):
        started(data_dir, network, "bit", tmp_path / "BiT.npz", name)
    change = {"bit_skip_final_norm": True}
    plain, _ = started(data_dir, network, "bit", tmp_path / "BiT.npz", name, **change)
    assert (plain.params["encoder.norm"]["scale"] == 1).all()
    assert (plain.params["encoder.norm"]["bias"] == 0).all()
    assert (plain.params["encoder.stem.conv"]["kernel"] == 0.5).all()


def test_what_a_library_has_downloaded_is_named_by_the_library(
    segmenter, file, data_dir, monkeypatch
):
    asked = []
    found = lambda *what: asked.append(what) or file  # noqa: E731
    monkeypatch.setitem(published.LIBRARIES, "torchvision", found)
    start, said = started(data_dir, segmenter, "imagenet", "torchvision:IMAGENET1K_V1")
    assert asked == [("resnet18", "IMAGENET1K_V1")]
    same, _ = started(data_dir, segmenter, "imagenet", file)
    jax.tree.map(np.testing.assert_array_equal, start.params, same.params)
    # What was read, not what it was called.
    assert start.record["path"] == str(file) and f"tensors from {file}" in said


def test_words_for_the_same_start():
    assert STARTS["imagenet"] is STARTS["file"] is STARTS["bit"] is STARTS["torch"]


def test_the_last_norm_is_a_bit_networks(network, file, data_dir):
    with pytest.raises(UsageError, match="bit_skip_final_norm=True, but the network is no BiT"):
        started(data_dir, network, "torch", file, bit_skip_final_norm=True)


def test_values_that_are_not_finite_and_large_files_need_force(
    network, data_dir, tmp_path, monkeypatch
):
    state = torch_state(network.program)
    state["conv1.weight"][0, 0, 0, 0] = np.nan
    path = written(tmp_path, state)
    with pytest.raises(UsageError, match=r"NaN or infinity in 1 of 102 tensors \(conv1.weight\)"):
        started(data_dir, network, "torch", path)
    start, _ = started(data_dir, network, "torch", path, force=True)
    assert np.isnan(start.params["conv1"]["kernel"]).sum() == 1
    monkeypatch.setattr(weights, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="GiB, more than the .* read unasked"):
        started(data_dir, network, "torch", path)
    assert started(data_dir, network, "torch", path, force=True)[0].record["taken"]


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
        ("weights.h5", b"PK", "no file of weights that is understood"),
        ("weights.npz", b"PK", "no readable archive of arrays"),
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


def test_kinds_and_deviation_are_those_of_the_comparison(network, initializer, data_dir):
    """Kernels alone, at the deviation of usual ones, as `hyper.starts.Transfer` says."""
    found, _ = started(
        data_dir, network, "hyper", initializer, kinds=("kernel",), deviation="default"
    )
    whole, _ = started(data_dir, network, "hyper", initializer)
    random, _ = started(data_dir, network, "random")
    name, norm = "layer1.0.conv1", "layer1.0.bn1"
    kernel, before = (np.asarray(s.params[name]["kernel"]) for s in (found, whole))
    assert kernel.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=1e-4)
    np.testing.assert_allclose(kernel / kernel.std(), before / before.std(), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.params[norm]["scale"], random.params[norm]["scale"])
    assert (whole.params[norm]["scale"] != random.params[norm]["scale"]).any()
    # 20 convolutions; of the norms, scale and bias are named as left out.
    assert found.record["taken"] == 20
    assert f"{norm}/scale: not among init.kinds" in found.record["left"]
    assert len(found.record["left"]) == whole.record["taken"] - 20


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_matched_start_has_what_the_transfer_took(segmenter, initializer, data_dir, orthogonal):
    changes = {
        "kinds": ("kernel",), "deviation": "default", "orthogonal": orthogonal, "init_noise": 0.1,
        "depth_fraction": 0.5,
    }  # fmt: skip
    hyper, matched = (
        started(data_dir, segmenter, start, initializer, **changes)[0]
        for start in ("hyper", "matched")
    )
    random, _ = started(data_dir, segmenter, "random")
    assert hyper.record["taken"] == matched.record["taken"]
    moved = 0
    for module, leaves in random.params.items():
        for leaf, own in leaves.items():
            a, b = (np.asarray(start.params[module][leaf]) for start in (hyper, matched))
            if orthogonal:
                # Its filters are orthogonal, too, which no permutation leaves them.
                assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-5)
            else:
                np.testing.assert_array_equal(np.sort(a, None), np.sort(b, None))
            moved += not np.array_equal(a, own)
    assert moved == hyper.record["taken"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"kinds": ("gamma",)}, "kinds names 'gamma'"), ({"deviation": "he"}, "deviation names 'he'")],
)
def test_a_transfer_that_means_nothing(network, initializer, data_dir, changes, words):
    with pytest.raises(UsageError, match=words):
        started(data_dir, network, "hyper", initializer, **changes)


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
