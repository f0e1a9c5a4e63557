"""ImageNet weights that torchvision or timm have downloaded before, where these keep them."""

# Without torch a type checker takes the file torch.py beside this one for it.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.interop.counterparts import timm_name
from medinit_jax.models import zoo

_HASH_OF_TORCH = re.compile(r"-([0-9a-f]{8,})\.pth$")
_FILE_OF_HUB = "model.safetensors"
_HASH_OF_HUB = re.compile(r"^([0-9a-f]{64})$")


def weights_file(path: str, name: str) -> str:
    """Returns the file that `config.init.path` means; nothing is downloaded.

    Args:
        path: A file, or "torchvision" or "timm" for what that library has in its cache. The library
            alone means its default weights; "torchvision:IMAGENET1K_V1" or "timm:a1_in1k" others.
        name: The network, a key of `zoo.MODELS`; of segmentation networks the encoder counts.

    Raises:
        UsageError: The library is not installed, has no such weights, or not in its cache; or the
            file is not the one that the library would download.
    """
    library, _, which = path.partition(":")
    if library not in LIBRARIES:
        return path
    try:
        return str(LIBRARIES[library](zoo.encoder_of(name), which))
    except ImportError as error:
        raise UsageError(
            f"config.init.path={path} needs {library}, which is not installed; install it with pip "
            "install 'medinit_jax[torch]', or name a file of weights."
        ) from error


def _torchvision(name: str, which: str) -> Path:
    import torch
    from torchvision import models

    known: Any = models.get_model_weights(name) if name in models.list_models() else ()
    choice = _chosen("torchvision", name, which, [one.name for one in known])
    weights = known[choice] if choice else known.DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    load = f"import torchvision; torchvision.models.get_model({name!r}, weights={weights.name!r})"
    return _verified(file, file.name, _HASH_OF_TORCH, "torchvision", load)


def _timm(name: str, which: str) -> Path:
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    own = timm_name(name)
    known = [one.partition(".")[2] for one in timm.list_pretrained(f"{own}.*")]
    choice = _chosen("timm", own, which, known)
    config: Any = timm.get_pretrained_cfg(f"{own}.{choice}" if choice else own)
    repository, full = str(config.hf_hub_id), f"{own}.{config.tag}"
    found = try_to_load_from_cache(repository, _FILE_OF_HUB)
    absent = f"models--{repository.replace('/', '--')}/snapshots/*/{_FILE_OF_HUB}"
    file = Path(found) if isinstance(found, str) else Path(constants.HF_HUB_CACHE) / absent
    load = f"import timm; timm.create_model({full!r}, pretrained=True)"
    # The cache links to files that are named by what they hold.
    return _verified(file, file.resolve().name, _HASH_OF_HUB, "timm", load)


# Of (network, which weights of it, "" for the library's default).
LIBRARIES: dict[str, Callable[[str, str], Path]] = {"torchvision": _torchvision, "timm": _timm}


def _chosen(library: str, name: str, which: str, known: list[str]) -> str:
    """Returns `which`; raises UsageError if a library knows none by this name."""
    if not known:
        raise UsageError(
            f"{library} has no ImageNet weights of {name}; name a file of weights with "
            "config.init.path, or another network with config.model.name."
        )
    if which and which not in known:
        raise UsageError(
            f"{library} has no weights {which!r} of {name}; set config.init.path to {library} and "
            f"':' with one of {', '.join(known)}."
        )
    return which


def _verified(file: Path, name: str, pattern: re.Pattern[str], library: str, load: str) -> Path:
    """Returns a file of a cache, if its hash begins with what its name says of it."""
    if not file.is_file():
        raise UsageError(
            f"{library} has not downloaded these weights ({file} is not there), and nothing is "
            f'downloaded here; run python -c "{load}", elsewhere if need be, and bring its cache '
            "along, or name a file of weights with config.init.path."
        )
    if said := pattern.search(name):
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(said[1]):
            raise UsageError(
                f"{file} is damaged or another file: its SHA-256 begins with {found[:8]}, not with "
                f'{said[1][:8]}; delete it and run python -c "{load}".'
            )
    return file
