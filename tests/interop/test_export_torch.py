"""Exports with PyTorch: strict loading, the proof and its refusal, and who runs without JAX."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from made_exports import (
    NARROW,
    PLAIN,
    UNET,
    VESSELS,
    write_encoder,
    write_initializer,
    write_pretraining,
    write_run,
)

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402

import medinit_jax  # noqa: E402
from medinit_jax.core.errors import UsageError  # noqa: E402
from medinit_jax.interop import counterparts, proof  # noqa: E402
from medinit_jax.models import zoo  # noqa: E402
from medinit_jax.models.features import features  # noqa: E402


def export(source, folder, **options):
    return medinit_jax.export(source, folder, quiet=True, **options)


def images_of(network, count=2):
    shape = (count, *network.program.input_shape)
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def in_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def network_file(folder):
    """The module `network.py` of an export, as its user imports it."""
    spec = importlib.util.spec_from_file_location("exported_network", folder / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("unet"), UNET, VESSELS, "segmentation")


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_weights_of_a_classifier_load_into_the_librarys_class(tmp_path, layout):
    source = write_run(tmp_path / "run", PLAIN)
    card = export(source, tmp_path / "out", to=layout, pytorch_bin=True)
    assert card["proof"]["status"] == "passed" and layout in card["proof"]["class"]
    assert card["proof"]["logits"]["relative"] < 1e-5 and card["proof"]["features"]["range"] > 0
    net = counterparts.Counterpart(*_call(layout)).make()
    state = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    net.load_state_dict(state, strict=True)
    again = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert state.keys() == again.keys() == net.state_dict().keys()
    for name, value in state.items():
        assert torch.equal(value, again[name]) and value.dtype == again[name].dtype
    network, variables = medinit_jax.load_export(tmp_path / "out")
    images = images_of(network)
    with torch.no_grad():
        theirs = net.eval()(in_torch(images)).numpy()
    ours = np.asarray(network.apply(variables, images))
    assert np.abs(ours - theirs).max() < 1e-4 * np.ptp(ours)


def _call(layout):
    if layout == "timm":
        return "timm", "timm", "create_model", {"model_name": "resnet18", "num_classes": 5}
    return "torchvision", "torchvision.models", "resnet18", {"num_classes": 5}


@pytest.mark.parametrize("kind", ["narrow", "unet", "encoder"])
def test_what_no_library_has_runs_from_the_folder_alone(tmp_path, unet, kind):
    source = {
        "narrow": lambda: write_run(tmp_path / "run"),
        "unet": lambda: unet,
        "encoder": lambda: write_encoder(tmp_path / "run"),
    }[kind]()
    card = export(source, tmp_path / "out")
    assert card["proof"]["status"] == "passed" and "torch_network" in card["proof"]["class"]
    module = network_file(tmp_path / "out")
    net = module.load(tmp_path / "out")
    network, variables = medinit_jax.load_export(tmp_path / "out")
    images = images_of(network)
    with torch.no_grad():
        theirs = net(in_torch(images)).numpy()
    if kind == "encoder":
        ours = np.asarray(features(network, variables, images).pooled)
    else:
        ours = np.asarray(network.apply(variables, images))
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4 * np.ptp(ours)
    # It trains: every parameter gets a gradient, and batch statistics move.
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.train()(in_torch(images)).square().mean().backward()
    assert all(value.grad is not None for value in net.parameters())
    assert all(not torch.equal(before[name], value) for name, value in net.named_buffers())


def test_the_file_of_a_network_needs_nothing_but_pytorch(tmp_path, unet):
    export(unet, tmp_path / "out", pytorch_bin=True)
    (tmp_path / "out" / "model.safetensors").unlink()
    program = (
        "import sys, torch\n"
        "from network import load\n"
        "print(tuple(load('.')(torch.zeros(1, 3, 32, 32)).shape))\n"
        "print(sorted({n.split('.')[0] for n in sys.modules} & {'jax', 'medinit_jax', 'flax'}))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "out",
        env={"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.split("\n")[:2] == ["(1, 2, 32, 32)", "[]"]


@pytest.mark.parametrize("kind", ["library", "own"])
def test_other_answers_are_refused_unless_forced(tmp_path, monkeypatch, kind):
    """A weight that changes on its way, as a wrong name or axis would change it."""
    source = write_run(tmp_path / "run", PLAIN if kind == "library" else NARROW)
    strict = proof._strict

    def perturbed(net, state, title):
        changed = {name: np.array(value) for name, value in state.items()}
        changed["layer2.0.conv1.weight"][0] += 0.1
        strict(net, changed, title)

    monkeypatch.setattr(proof, "_strict", perturbed)
    with pytest.raises(UsageError, match=r"differs in logits by .* nothing was written") as error:
        export(source, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    card = export(source, tmp_path / "out", force=True)
    assert card["proof"]["status"] == "failed"
    assert "says something else" in " ".join(card["limits"])
    # What was written is what was asked for, not what was loaded.
    monkeypatch.undo()
    network, variables = medinit_jax.load_export(tmp_path / "out")
    kernel = variables["params"]["layer2.0.conv1"]["kernel"]
    held = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(
        held["layer2.0.conv1.weight"], np.asarray(kernel).transpose(3, 2, 0, 1)
    )
    card = export(source, tmp_path / "out", proof={"tolerance": 1e-4})
    assert card["proof"]["status"] == "passed"


def test_answers_that_are_not_finite_are_no_proof(tmp_path):
    def change(params):
        params["fc"]["bias"][0] = np.inf

    source = write_run(tmp_path / "run", change=change)
    with pytest.raises(UsageError, match="not finite"):
        export(source, tmp_path / "out")
    assert export(source, tmp_path / "out", force=True)["proof"]["status"] == "failed"


@pytest.mark.parametrize("layout", ["authors", "timm"])
def test_networks_of_swcl(tmp_path, layout):
    """A joint classifier: the authors' heads lie apart, one behind the other here."""
    model = {"name": "resnet18"}
    card = export(write_run(tmp_path / "run", model), tmp_path / "out", to=layout)
    assert card["proof"]["status"] == "passed"
    held = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    if layout == "authors":
        assert held["out.dr.0.weight"].shape == (2, 512)
        assert held["out.dme.0.bias"].shape == (3,)


def test_a_predicted_network_passes(tmp_path):
    source = write_initializer(tmp_path / "initializer")
    card = export(source, tmp_path / "out", model="resnet18", num_classes=3, size=32)
    assert card["proof"]["status"] == "passed" and "torchvision" in card["proof"]["class"]


def test_an_archive_of_bit_is_read_by_timm(tmp_path):
    source = write_encoder(tmp_path / "run", {"name": "resnetv2_50x1_bit"})
    card = export(source, tmp_path / "out", to="bit")
    assert card["proof"]["status"] == "passed" and "timm" in card["proof"]["class"]
    with np.load(tmp_path / "out" / "model.npz") as held:
        assert "resnet/root_block/standardized_conv2d/kernel" in held.files
    assert "load_pretrained" in " ".join(card["loading"]["pytorch"])


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
@pytest.mark.parametrize(
    "name", ["efficientnet_b0", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_encoders_whose_maps_end_a_layer_earlier_in_smp(tmp_path, name):
    pytest.importorskip("segmentation_models_pytorch", reason="needs the [quickstart] extra")
    source = write_encoder(tmp_path / "run", {"name": name})
    card = export(source, tmp_path / "out", to="smp")
    assert card["proof"]["status"] == "passed" and "get_encoder" in card["proof"]["class"]


def test_the_heads_of_a_pretraining_lie_beside_the_network(tmp_path):
    export(write_pretraining(tmp_path / "run"), tmp_path / "out", to="authors", pytorch_bin=True)
    for kept in ("model.safetensors", "pytorch_model.bin"):
        net = network_file(tmp_path / "out").load(tmp_path / "out")
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 32), kept
        (tmp_path / "out" / "model.safetensors").unlink(missing_ok=True)


SLOW = ("vgg", "convnext", "vit", "resnetv2", "densenet", "regnet", "efficient", "deeplab")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith(SLOW) else name
        for name in ("mobilenet_v3_large", "vgg11_bn", "convnext_tiny", "vit_tiny_patch16_224",
                     "resnetv2_50x1_bit", "densenet121", "regnet_y_400mf", "efficientnet_b0",
                     "deeplabv3plus_resnet18")
    ],
)  # fmt: skip
def test_every_family_runs_in_plain_pytorch(tmp_path, monkeypatch, name):
    """Without a library's class, as for a variant that it has none for."""
    monkeypatch.setattr(proof, "counterpart", lambda *_: None)
    segments = zoo.encoder_of(name) != name
    heads = {"heads": VESSELS, "kind": "segmentation"} if segments else {}
    source = write_run(tmp_path / "run", {"name": name}, size=64, **heads)
    layout = "timm" if name == "resnetv2_50x1_bit" else "torchvision"
    card = export(source, tmp_path / "out", to=layout)
    assert "torch_network" in card["proof"]["class"] and card["proof"]["status"] == "passed"
