"""Exports without PyTorch: files, card, reading again, refusals."""

import io
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from made_exports import (
    NARROW,
    UNET,
    VESSELS,
    write_encoder,
    write_initializer,
    write_pretraining,
    write_run,
)

import medinit_jax
from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params
from medinit_jax.finetune.network import make_network
from medinit_jax.interop import export as exporting
from medinit_jax.interop import proof
from medinit_jax.interop.layouts import LAYOUTS
from medinit_jax.interop.torch_file import write_torch_file
from medinit_jax.main import main
from medinit_jax.models.features import features


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """What is written does not depend on PyTorch."""
    monkeypatch.setattr(proof, "has_torch", lambda: False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {
        "classifier": write_run(place / "classifier"),
        "unet": write_run(place / "unet", UNET, VESSELS, "segmentation"),
        "encoder": write_encoder(place / "encoder"),
    }


def export(source, folder, **options):
    return medinit_jax.export(source, folder, quiet=True, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["classifier", "unet", "encoder"])
def test_every_tensor_is_read_back_as_it_was(runs, tmp_path, kind, layout):
    if (kind, layout) in (("unet", "authors"), ("unet", "smp")) or layout == "bit":
        with pytest.raises(UsageError, match=r"fits into .*flax"):
            export(runs[kind], tmp_path / "out", to=layout)
        assert not (tmp_path / "out").exists()
        return
    card = export(runs[kind], tmp_path / "out", to=layout)
    network, variables = medinit_jax.load_export(tmp_path / "out")
    tree, _ = load_params(runs[kind] / "model", "model")
    if layout == "smp":
        # Encoders alone.
        tree["params"].pop("fc", None)
    jax.tree.map(np.testing.assert_array_equal, variables, tree)
    assert card["architecture"]["layout"] == layout
    images = np.ones((1, *network.program.input_shape), np.float32)
    if kind == "encoder" or layout == "smp":
        assert features(network, variables, images).pooled.shape == (1, 32)
    else:
        assert network.apply(variables, images).shape[-1] == (5 if kind == "classifier" else 2)


def test_a_card_tells_what_the_run_recorded(runs, tmp_path):
    card = export(runs["classifier"], tmp_path / "out", note="Made by hand.")
    assert card == json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["architecture"] | {"parameters": 0} == {
        "name": "resnet18",
        "options": {"width": 4, "stem": "small"},
        "kind": "classification",
        "input_shape": [32, 32, 3],
        "logits": 5,
        "parameters": 0,
        "layout": "torchvision",
    }
    program = make_network(NARROW, 32, 5, "classification").program
    assert card["architecture"]["parameters"] == program.num_parameters
    assert card["preprocessing"]["mean"] == [0.3219, 0.2259, 0.1633]
    assert card["preprocessing"]["size"] == 32
    assert [head["name"] for head in card["answers"]] == ["dr", "dme"]
    assert card["data"]["parts"]["test"] == {
        "source": "prepared:set/test", "count": 11, "sha256": "test" * 8, "license": "CC",
    }  # fmt: skip
    metrics = card["metrics"]
    assert (metrics["value"], metrics["interval"], metrics["images"]) == (0.5, [0.25, 0.625], 11)
    assert card["training"]["config"] == {"seed": 7, "optim": {"learning_rate": 0.5}}
    assert (card["training"]["epochs"], card["training"]["steps"]) == (2, 10)
    assert card["training"]["device"] == "not recorded"
    assert card["license"]["images"] == {"train": "CC", "test": "CC"}
    assert card["limits"][0] == "Made by hand."
    assert card["proof"]["status"] == "not run" and "PyTorch" in card["proof"]["reason"]
    page = (tmp_path / "out" / "CARD.md").read_text()
    for words in ("0.5 [0.25, 0.625]", "| test | 11 |", "Not run: PyTorch is not", "load_export"):
        assert words in page
    held = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert held["bn1.num_batches_tracked"].dtype == np.int64
    assert held["conv1.weight"].shape == (4, 3, 3, 3)


def test_what_nobody_recorded_is_said(runs, tmp_path):
    card = export(runs["encoder"], tmp_path / "out")
    assert card["metrics"] == card["data"]["parts"] == "not recorded"
    assert card["training"]["config"] == card["license"]["images"] == "not recorded"
    assert card["architecture"]["logits"] == 0 and "no head" in card["answers"]


def test_an_initializer_predicts_what_is_exported(tmp_path):
    source = write_initializer(tmp_path / "initializer")
    options = {"model": NARROW, "num_classes": 3, "size": 32}
    card = export(source, tmp_path / "out", **options)
    assert card["what"] == "predicted network" and card["architecture"]["logits"] == 3
    assert card["data"]["parts"]["train"]["count"] == 9
    assert any("not trained" in line for line in card["limits"])
    _, variables = medinit_jax.load_export(tmp_path / "out")
    network = make_network(NARROW, 32, 3, "classification")
    own = medinit_jax.initialize(
        network, np.zeros((1, 32, 32, 3), np.float32), medinit_jax.load(source), quiet=True
    )
    kernel = own["params"]["layer1.0.conv1"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["layer1.0.conv1"]["kernel"], kernel)
    with pytest.raises(UsageError, match="config.initializer"):
        export(source, tmp_path / "other")
    with pytest.raises(UsageError, match="describe no network"):
        export(source, tmp_path / "other", model={"name": ""})


def test_the_encoder_of_a_segmentation_network_goes_to_smp(tmp_path):
    source = write_run(
        tmp_path / "run", {"name": "unet_resnet18"}, VESSELS, "segmentation", size=32
    )
    card = export(source, tmp_path / "out", to="smp")
    assert card["architecture"]["kind"] == "encoder" and card["architecture"]["name"] == "resnet18"
    held = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    tree, _ = load_params(source / "model", "model")
    kernel = tree["params"]["encoder.layer1.0.conv1"]["kernel"]
    np.testing.assert_array_equal(held["layer1.0.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    assert not any(name.startswith(("decoder", "head", "fc")) for name in held)


def test_a_stopped_run_is_exported_from_its_checkpoint(runs, tmp_path):
    """The weights that validated best, as `finetune.train` saves them."""
    tree, record = load_params(runs["classifier"] / "model", "model")
    state = {
        "tune": {"step": np.int32(3)},
        "best": {"params": tree["params"], "statistics": tree["batch_stats"]},
    }
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(3, state, None, {"model": record})
    checkpoints.close()
    card = export(tmp_path / "run", tmp_path / "out")
    assert "stopped at step 3" in card["limits"][0] and card["metrics"] == "not recorded"
    _, variables = medinit_jax.load_export(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, variables, tree)
    checkpoints = Checkpoints(tmp_path / "foreign" / "checkpoints")
    checkpoints.save(4, state, None, {})
    checkpoints.close()
    with pytest.raises(UsageError, match="step 4 in .* does not say what network"):
        export(tmp_path / "foreign", tmp_path / "other")


@pytest.mark.parametrize("step", [None, 3])
def test_checkpoints_of_a_run_that_ended_lead_to_what_it_left(runs, tmp_path, step):
    """A short fine-tuning saves none, a longer one saves some before its end."""
    source = tmp_path / "run"
    shutil.copytree(runs["classifier"], source)
    (source / "checkpoints").mkdir()
    tree, record = load_params(source / "model", "model")
    if step is not None:
        older = jax.tree.map(lambda leaf: leaf + 1, tree)
        best = {"params": older["params"], "statistics": older["batch_stats"]}
        checkpoints = Checkpoints(source / "checkpoints")
        checkpoints.save(step, {"best": best}, None, {"model": record})
        checkpoints.close()
    card = export(source / "checkpoints", tmp_path / "out")
    assert not any("stopped" in limit for limit in card["limits"])
    assert card["metrics"] != "not recorded"
    jax.tree.map(np.testing.assert_array_equal, medinit_jax.load_export(tmp_path / "out")[1], tree)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("layout", ["authors", "flax", "timm"])
def test_heads_of_a_pretraining_go_where_they_have_a_place(tmp_path, layout, teacher):
    source = write_pretraining(tmp_path / "run", teacher)
    card = export(source, tmp_path / "out", to=layout)
    held = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    found = {name: value for name, value in held.items() if "_network" in name}
    part = Checkpoints(source / "checkpoints").read().state["target" if teacher else "train"]
    heads = part["params"]["heads"]
    if layout == "timm":
        assert not found
    elif layout == "authors":
        # An averaged network has no predictor.
        assert any(name.startswith("predictor") for name in found) != teacher
        name = "projection_network.out.0"
        np.testing.assert_array_equal(
            found[f"{name}.weight"], heads["projection"][name]["kernel"].T
        )
        assert found["projection_network.out.1.running_var"].shape == (8,)
        described = json.loads((tmp_path / "out" / "network.json").read_text())
        assert set(described["beside"]) == set(found)
    else:
        assert len(found) == (8 if teacher else 16)
    assert ("heads of its pretraining" in card["limits"][0]) == (layout != "timm")
    # What is read again is the network alone.
    tree, _ = load_params(source / "model", "model")
    jax.tree.map(np.testing.assert_array_equal, medinit_jax.load_export(tmp_path / "out")[1], tree)


def test_heads_that_are_not_there_or_another_networks_are_not_exported(runs, tmp_path):
    card = export(runs["encoder"], tmp_path / "without", to="authors")
    assert "checkpoints is missing" in card["limits"][0]
    source = write_pretraining(tmp_path / "run")
    (source / "model").rename(source / "old")
    write_encoder(source, seed=1)
    card = export(source, tmp_path / "out", to="authors")
    assert "step 3 in" in card["limits"][0] and "of other weights" in card["limits"][0]
    held = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert not any("_network" in name for name in held)


def test_what_is_written_has_the_permissions_of_any_file(runs, tmp_path):
    export(runs["classifier"], tmp_path / "out", pytorch_bin=True)
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    for path in (*(tmp_path / "out").iterdir(), runs["classifier"] / "model/params.safetensors"):
        assert path.stat().st_mode == mode, path


def test_of_two_exports_into_one_folder_the_second_is_refused(runs, tmp_path, monkeypatch):
    """The second looked at the folder when it was empty."""
    out, write = tmp_path / "out", exporting.write_folder

    def late(*arguments):
        monkeypatch.setattr(exporting, "write_folder", write)
        export(runs["encoder"], out)
        return write(*arguments)

    monkeypatch.setattr(exporting, "write_folder", late)
    with pytest.raises(UsageError, match="holds the export of resnet18"):
        export(runs["classifier"], out)
    assert medinit_jax.load_export(out) and not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_said(runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        export(runs["classifier"], tmp_path / "file" / "out")


def test_the_same_export_replaces_itself_and_nothing_else(runs, tmp_path):
    out = tmp_path / "out"
    export(runs["classifier"], out, pytorch_bin=True)
    first = (out / "model.safetensors").read_bytes()
    (out / "notes.txt").write_text("mine")
    export(runs["classifier"], out)
    assert (out / "model.safetensors").read_bytes() == first
    assert not (out / "pytorch_model.bin").exists() and (out / "notes.txt").exists()
    for source, options in (
        (runs["classifier"], {"to": "timm"}),
        (runs["encoder"], {}),
    ):
        with pytest.raises(UsageError, match="holds the export of resnet18"):
            export(source, out, **options)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "card.json").write_text("{}")
    with pytest.raises(UsageError, match="no export"):
        export(runs["classifier"], foreign)
    with pytest.raises(UsageError, match="is a file"):
        export(runs["classifier"], foreign / "card.json")
    assert not list(tmp_path.glob(".*"))


def test_numbers_that_are_not_finite_are_refused_unless_forced(tmp_path):
    def change(params):
        params["conv1"]["kernel"][0, 0, 0, 0] = np.nan

    source = write_run(tmp_path / "run", change=change)
    with pytest.raises(UsageError, match=r"conv1\.weight hold numbers that are not finite"):
        export(source, tmp_path / "out")
    card = export(source, tmp_path / "out", force=True)
    assert any("1 tensors hold" in line for line in card["limits"])
    _, variables = medinit_jax.load_export(tmp_path / "out")
    assert np.isnan(variables["params"]["conv1"]["kernel"]).sum() == 1


def test_damage_is_found(runs, tmp_path):
    out = tmp_path / "out"
    export(runs["classifier"], out)
    with open(out / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UsageError, match="not what was exported"):
        medinit_jax.load_export(out)
    with pytest.raises(UsageError, match=r"holds no card\.json"):
        medinit_jax.load_export(tmp_path)


REFUSED = [
    ({"to": "keras"}, "no layout 'keras'; choose one of torchvision, timm"),
    ({"proof": {"images": 0}}, "set images to at least 1"),
    ({"proof": {"epsilon": 0}}, "no epsilon of a proof"),
    ({"proof": {"test": True}}, "needs PyTorch"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda x: str(x)[:30])
def test_what_cannot_be_is_said_in_a_sentence(runs, tmp_path, options, words):
    with pytest.raises(UsageError, match=words) as error:
        export(runs["classifier"], tmp_path / "out", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_command_line(runs, tmp_path, capsys):
    command = ["main", "--config=configs/export.py", f"--workdir={tmp_path / 'out'}"]
    assert main([*command, f"--config.checkpoint={runs['classifier']}"]) == 0
    assert "not proven: PyTorch is not installed" in capsys.readouterr().err
    assert (tmp_path / "out" / "network.py").is_file()
    for more, words in (
        ([], "Name either the workdir"),
        (["--config.checkpoint=x", "--config.initializer=y"], "Name either the workdir"),
        (["--config.checkpoint=x", "--config.model.name=resnet18"], "leave it empty"),
        (["--config.checkpoint=x"], "x holds no model/model.json"),
    ):
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err


def test_settings_of_the_proof_are_those_of_the_config():
    from medinit_jax.core.config import read_command_line

    config = read_command_line(["main", "--config=configs/export.py"]).config
    assert config.proof.to_dict() == exporting.PROOF


def test_a_file_of_pytorch_is_an_archive_of_aligned_arrays(tmp_path):
    state = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}
    write_torch_file(tmp_path / "model.bin", state)
    content = (tmp_path / "model.bin").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/data/0") == state["a.weight"].tobytes()
    assert content.index(state["a.weight"].tobytes()) % 64 == 0
    write_torch_file(tmp_path / "again.bin", state)
    assert (tmp_path / "again.bin").read_bytes() == content
    with pytest.raises(UsageError, match="float16"):
        write_torch_file(tmp_path / "model.bin", {"a": np.zeros(2, np.float16)})
