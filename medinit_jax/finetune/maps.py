"""Class activation maps of the same test images after chosen epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import write_arrays
from medinit_jax.downstream import cam
from medinit_jax.finetune.data import TaskImages
from medinit_jax.models.network import Network

FILE = "cams.npz"


class MapAlbum:
    """Keeps maps in `cams.npz` as epochs go by.

    Args:
        config: `evaluate.cam_epochs` and `evaluate.cam_images` say when and of how many images.
        workdir: The run's folder.
        images: The task.
        network: The network.

    Raises:
        UsageError: Maps are wanted of a segmentation task.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        images: TaskImages,
        network: Network,
    ):
        self.epochs = tuple(int(epoch) for epoch in config.evaluate.cam_epochs)
        self.path, self.images, self.network = workdir / FILE, images, network
        self.arrays: dict[str, np.ndarray] = {}
        if not self.epochs:
            return
        if images.kind != "classification":
            raise UsageError(
                "config.evaluate.cam_epochs asks for maps of a segmentation task; they are of "
                "classifiers: leave it empty."
            )
        if len(images.heads) == 0 or images.heads[0].kind != "softmax":
            raise UsageError(
                "config.evaluate.cam_epochs asks for maps of findings, of which several may hold; "
                "they are of classes: leave it empty."
            )
        missed = [e for e in self.epochs if e % config.train.validate_every]
        if missed:
            raise UsageError(
                f"config.evaluate.cam_epochs names epoch {missed[0]}, which is not validated with "
                f"config.train.validate_every={config.train.validate_every}; name multiples of it."
            )
        self.chosen = chosen_images(images, config.evaluate.cam_images)
        if not self.chosen:
            raise UsageError(
                "No test image is above class 0, so there is nothing to map; leave "
                "config.evaluate.cam_epochs empty or set cam_images to at least 1."
            )
        if self.path.is_file():
            with np.load(self.path, allow_pickle=False) as held:
                self.arrays = {name: held[name] for name in held.files}
            return
        pictures = [images.evaluation_picture(images.test, i) for i in self.chosen]
        self.arrays["image"] = np.stack(pictures)
        regions = [images.evaluation_region(images.test, i) for i in self.chosen]
        known = [region for region in regions if region is not None]
        if len(known) == len(regions):
            self.arrays["mask"] = np.stack(known)

    def add(self, epoch: int, params: Any, statistics: Any) -> None:
        """Keeps the maps of an epoch if it is one of the chosen."""
        if epoch not in self.epochs:
            return
        inputs = np.stack([self.images.evaluation_image(self.images.test, i) for i in self.chosen])
        label = np.array([self._label(i) for i in self.chosen])
        self.arrays[f"cam_{epoch}"] = cam.activation_map(
            self.network, params, statistics, inputs, label
        ).astype(np.float32)
        write_arrays(self.path, self.arrays)

    def _label(self, index: int) -> int:
        return int(self.images.test.targets[self.images.heads[0].name][index])

    def figures(self) -> dict[str, Any] | None:
        """Returns energy inside the lesion, overlap with it, and drift to the last epoch."""
        done = [epoch for epoch in self.epochs if f"cam_{epoch}" in self.arrays]
        if not done:
            return None
        masks = self.arrays.get("mask")
        last = self.arrays[f"cam_{done[-1]}"]
        rows: dict[str, list[Any]] = {"energy": [], "iou": [], "drift": []}
        for epoch in done:
            maps = self.arrays[f"cam_{epoch}"]
            rows["drift"].append([cam.drift(a, b) for a, b in zip(maps, last, strict=True)])
            if masks is not None:
                sized = [
                    cam.upsample_aligned(one, mask.shape)
                    for one, mask in zip(maps, masks, strict=True)
                ]
                pairs = list(zip(sized, masks, strict=True))
                rows["energy"].append([cam.energy_inside(*pair) for pair in pairs])
                rows["iou"].append([cam.iou_at_half(*pair) for pair in pairs])
        return {"epochs": done, **{k: np.mean(v, 1).tolist() for k, v in rows.items() if v}}


def chosen_images(images: TaskImages, count: int) -> list[int]:
    """Returns the first test images above class 0; those with a known region, if any."""
    labels = images.test.targets[images.heads[0].name]
    positive = [int(i) for i in np.flatnonzero(labels > 0)]
    marked = [i for i in positive if images.has_region(images.test, i)]
    return (marked or positive)[:count]
