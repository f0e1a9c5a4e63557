"""A task's test images through the network here and through PyTorch's: is the figure the same?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.finetune import evaluate
from medinit_jax.finetune.data import open_task
from medinit_jax.interop.origin import Origin
from medinit_jax.interop.proof import Loaded
from medinit_jax.models.network import Network


def on_test_images(
    origin: Origin, loaded: Loaded | None, settings: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Returns the task's metric on its test images by both networks.

    Args:
        origin: The network here.
        loaded: PyTorch's; None where none was loaded.
        settings: `batch` (images or windows at a time) and `data_dir` ("": the run's own).
        console: Where progress is shown.

    Raises:
        UsageError: The network has no task, its images are not there, or PyTorch is missing.
    """
    if origin.what not in ("fine-tuned network", "labeler") or not origin.has_head:
        raise UsageError(
            f"config.proof.test=True, but a {origin.what} has no task; set it to False."
        )
    if not origin.config or loaded is None:
        what = "PyTorch, which is not used here" if origin.config else "the run's config.json"
        raise UsageError(f"config.proof.test=True needs {what}; set it to False.")
    config = ml_collections.ConfigDict(origin.config)
    if settings["data_dir"]:
        config.data.data_dir = settings["data_dir"]
    images = open_task(config, console)
    network = Network(origin.program)
    part, batch, window = images.test, settings["batch"], origin.program.input_shape[0]
    found = evaluate.answers(network, origin.params, origin.statistics, images, part, batch)
    here = evaluate.value(images, part, found)
    found = evaluate.answers_of(loaded.answer, window, images, part, batch)
    there = evaluate.value(images, part, found)
    return {
        "metric": images.metric,
        "images": len(images.test),
        "here": here,
        "pytorch": there,
        "difference": abs(here - there),
    }
