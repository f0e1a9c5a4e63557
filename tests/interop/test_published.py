"""Weights in the caches of torchvision and timm: found, verified, and told where they are not."""

import enum
import hashlib
import sys

import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.interop import published
from medinit_jax.interop.published import weights_file


def test_any_other_path_is_a_file():
    assert weights_file("resnet18.pth", "resnet18") == "resnet18.pth"
    assert weights_file("torchvision/resnet18.pth", "resnet18") == "torchvision/resnet18.pth"


def test_the_encoder_of_a_network_counts(monkeypatch):
    monkeypatch.setitem(published.LIBRARIES, "timm", lambda name, which: f"{name}|{which}")
    assert weights_file("timm:a1_in1k", "unet_resnet18") == "resnet18|a1_in1k"
    assert weights_file("timm", "resnet50") == "resnet50|"


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_installed(library, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch" if library == "torchvision" else library, None)
    with pytest.raises(UsageError, match=f"config.init.path={library} needs {library}, which is"):
        weights_file(library, "resnet18")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("torchvision", reason="needs the [torch] extra")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.torch
def test_a_file_of_torchvision(cache, monkeypatch):
    from torchvision import models

    right = b"weights"
    name = f"made-{hashlib.sha256(right).hexdigest()[:8]}.pth"

    class Weights(enum.Enum):
        IMAGENET1K_V1 = "old-00000000.pth"
        IMAGENET1K_V2 = DEFAULT = name
        url = property(lambda self: f"https://a.place/models/{self.value}")

    monkeypatch.setattr(models, "get_model_weights", lambda name: Weights)
    with pytest.raises(UsageError, match=rf"{name} is not there.*weights='IMAGENET1K_V2'"):
        weights_file("torchvision", "resnet18")
    (cache / name).write_bytes(right)
    assert weights_file("torchvision", "resnet18") == str(cache / name)
    assert weights_file("torchvision:IMAGENET1K_V2", "unet_resnet18") == str(cache / name)
    (cache / name).write_bytes(b"other")
    with pytest.raises(UsageError, match="is damaged or another file: its SHA-256 begins with d9"):
        weights_file("torchvision", "resnet18")
    with pytest.raises(UsageError, match="old-00000000.pth is not there"):
        weights_file("torchvision:IMAGENET1K_V1", "resnet18")


@pytest.mark.torch
def test_what_torchvision_does_not_have(cache):
    with pytest.raises(UsageError, match="no weights 'V9' of resnet50.*IMAGENET1K_V1, IMAGENET1K"):
        weights_file("torchvision:V9", "resnet50")
    with pytest.raises(UsageError, match="torchvision has no ImageNet weights of resnetv2_50x1_b"):
        weights_file("torchvision", "resnetv2_50x1_bit")
    with pytest.raises(UsageError, match="resnet18-f37072fd.pth is not there"):
        weights_file("torchvision", "deeplabv3plus_resnet18")


@pytest.mark.torch
def test_a_file_of_timm(tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="needs the [torch] extra")
    import huggingface_hub

    asked = []
    blob = tmp_path / hashlib.sha256(b"weights").hexdigest()
    file = tmp_path / "model.safetensors"
    file.symlink_to(blob)
    blob.write_bytes(b"weights")

    def from_cache(repository, name):
        asked.append((repository, name))
        return str(file) if repository == "timm/resnet18.a2_in1k" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", from_cache)
    assert weights_file("timm:a2_in1k", "unet_resnet18") == str(file)
    assert asked == [("timm/resnet18.a2_in1k", "model.safetensors")]
    with pytest.raises(UsageError, match=r"models--timm--resnet18.a1_in1k/.*'resnet18.a1_in1k'"):
        weights_file("timm", "resnet18")
    with pytest.raises(UsageError, match="timm has no weights 'x' of resnet18; .*a1_in1k, a2_in1k"):
        weights_file("timm:x", "resnet18")
    blob.write_bytes(b"other")
    with pytest.raises(UsageError, match="is damaged or another file"):
        weights_file("timm:a2_in1k", "resnet18")
