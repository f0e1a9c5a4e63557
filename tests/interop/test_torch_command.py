"""The command line for PyTorch models: what it writes, and bad input by sentences."""

import os
import re
import stat

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

from safetensors.torch import load_model  # noqa: E402

from medinit_jax.core.parameters import save_params  # noqa: E402
from medinit_jax.interop.torch import initialize  # noqa: E402
from medinit_jax.interop.torch_command import main  # noqa: E402

SOURCE = """
import torch
from torch import nn

import neighbor

made = nn.Linear(3, 2)
text = "text"


def small():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    return nn.Sequential(*layers)


def half():
    return small().to(torch.bfloat16)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else -x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return x + self.count


def needy(width):
    return small()


def failing():
    raise ValueError("no weights here")


def number():
    return 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch, initializer):
    """A folder with a user's models and an initializer."""
    (tmp_path / "its_models.py").write_text(SOURCE)
    (tmp_path / "neighbor.py").write_text("")
    (tmp_path / "quitting.py").write_text("raise SystemExit(2)")
    (tmp_path / "importing.py").write_text("import a_library_that_is_absent")
    module = initializer.module
    options = {"hidden": 8, "max_shape": [8, 8, 3, 3], "num_classes": 4}
    options["node_types"] = module.node_types
    save_params(tmp_path / "start", initializer.theta, {"hyper": options, "modality": "fundus"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def call(factory="its_models.py:small", out="out.pt", *more, example="2,3,16,16", load="start"):
    return main([factory, f"--initializer={load}", f"--example={example}", f"--out={out}", *more])


def test_what_is_written_is_the_initialized_model(place, initializer, capsys):
    assert call(out="out.pt") == call("its_models:small", "out.safetensors", "--seed=0") == 0
    assert "6 tensors: 4 predicted" in capsys.readouterr().out
    import its_models

    torch.manual_seed(0)
    model = its_models.small()
    initialize(model, torch.zeros(2, 3, 16, 16), initializer, quiet=True)
    other = its_models.small()
    load_model(other, "out.safetensors")
    written = torch.load("out.pt", weights_only=True)
    assert written.keys() == model.state_dict().keys() and "1.running_var" in written
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(written[name], value)
        np.testing.assert_array_equal(other.state_dict()[name], value)
    mask = os.umask(0)
    os.umask(mask)
    for file in ("out.pt", "out.safetensors"):
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o666 & ~mask
    assert sorted(path.suffix for path in place.glob("*out*")) == [".pt", ".safetensors"]


def test_precision_and_tied_parameters_stay(place):
    assert call("its_models.py:half", "half.pt") == 0
    values = torch.load("half.pt", weights_only=True).values()
    assert {v.dtype for v in values if v.is_floating_point()} == {torch.bfloat16}
    assert call("its_models.py:Tied", "tied.safetensors") == 0
    import its_models

    model = its_models.Tied()
    load_model(model, "tied.safetensors")
    assert model.a.weight is model.b.weight


BAD = {
    "no colon": ({"factory": "its_models"}, "does not name a factory"),
    "no file": ({"factory": "absent.py:make"}, "There is no file absent.py"),
    "no module": ({"factory": "absent_models:make"}, "Python finds from this folder"),
    "its import": ({"factory": "importing:make"}, "a_library_that_is_absent'; put that right"),
    "a script": ({"factory": "quitting.py:make"}, "quitting.py cannot be imported: SystemExit"),
    "no function": ({"factory": "its_models.py:gone"}, "its_models.py has no gone"),
    "a model": ({"factory": "its_models.py:made"}, "is a model already"),
    "text": ({"factory": "its_models.py:text"}, "is of type str and cannot be called"),
    "arguments": ({"factory": "its_models.py:needy"}, "missing 1 required.*without arguments"),
    "fails": ({"factory": "its_models.py:failing"}, "failed: ValueError: no weights here;"),
    "empty": ({"factory": "its_models.py:Counting"}, "a Counting without parameters, of which"),
    "a number": ({"factory": "its_models.py:number"}, "returned a int; it has to return a torch"),
    "decides": ({"factory": "its_models.py:Deciding"}, "cannot be exported.*decides by values"),
    "channels": ({"example": "2,4,16,16"}, "Sequential cannot be exported.*channels"),
    "shape": ({"example": "2,3,x"}, "is no shape; write whole numbers"),
    "zero": ({"example": "0,3,16,16"}, "is no shape"),
    "kind": ({"out": "out.onnx"}, r"end it in .safetensors, .pt, .pth"),
    "folder": ({"out": "gone/out.pt"}, "There is no folder gone"),
    "initializer": ({"load": "nothing"}, "There is no initializer nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(place, capsys, name):
    changed, sentence = BAD[name]
    assert call(**changed) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(sentence, error), error
    assert not list(place.glob("*out*"))


def test_another_modality_and_a_file_that_is_there(place, capsys):
    assert call("its_models.py:small", "out.pt", "--modality=xray") == 2
    assert "trained on 'fundus' images, not on 'xray'" in capsys.readouterr().err
    (place / "out.pt").write_text("mine")
    assert call() == 2
    assert "out.pt is there already" in capsys.readouterr().err
    assert (place / "out.pt").read_text() == "mine"
