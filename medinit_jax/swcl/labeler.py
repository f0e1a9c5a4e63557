"""The labeler: a classifier of normal and abnormal eyes that learns from unlabelled images, too.

It is a fine-tuning whose batches hold unlabelled images and whose objective is that of S4L, so its
workdir is one of a fine-tuning: `model/`, `summary.json`, `predictions.npz`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import claimed, is_finished
from medinit_jax.data.tasks import make_builder
from medinit_jax.downstream.cam import has_cam
from medinit_jax.finetune import FREE, announce
from medinit_jax.finetune.examples import Cache, Examples, Records
from medinit_jax.finetune.train import Tuning
from medinit_jax.swcl.s4l import S4L, S4LBatches
from medinit_jax.swcl.sources import Firsts, open_splits, source_name
from medinit_jax.swcl.triplet import TRIPLETS


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains the labeler, or goes on where an earlier run stopped.

    Args:
        config: The experiment, see `configs/labeler.py`.
        workdir: Where everything is written.

    Raises:
        UsageError: Something the user can mend.
    """
    console = cluster.console()
    with claimed(workdir, config, "labeler", FREE):
        if not is_finished(workdir, console):
            announce(Labeling(config, workdir, console).run(), console)


class Labeling(Tuning):
    """One training of a labeler, see `finetune.train.Tuning`."""

    def __init__(self, *args: Any, **options: Any):
        """Prepares the training; raises UsageError unless the network makes maps."""
        super().__init__(*args, **options)
        check_labeler(self.network)

    def prepare(self) -> tuple[Any, S4L]:
        """Returns batches of labelled and unlabelled images, and S4L's objective."""
        config, s4l = self.config, self.config.s4l
        if s4l.triplet not in TRIPLETS:
            raise UsageError(
                f"config.s4l.triplet={s4l.triplet!r}; set it to one of: {', '.join(TRIPLETS)}."
            )
        heads = self.images.heads
        if self.images.kind != "classification" or [one.kind for one in heads] != ["softmax"]:
            raise UsageError(
                f"{config.task} is no single classification; a labeler tells normal from abnormal: "
                "set config.labels=abnormal."
            )
        self.unlabelled = open_unlabelled(config, self.images, self.console)
        batches = S4LBatches(config, self.images, self.unlabelled)
        parts = config.train.accumulate
        if s4l.unlabelled_batch % (parts * self.parallel.size):
            raise UsageError(
                f"config.s4l.unlabelled_batch={s4l.unlabelled_batch} does not divide into config."
                f"train.accumulate={parts} parts on {self.parallel.size} device(s); make it a "
                f"multiple of {parts * self.parallel.size}, or set config.train.devices=1."
            )
        cluster.check_alike(
            "unlabelled images", {f"set {i}": p.describe() for i, p in enumerate(self.unlabelled)}
        )
        return batches, S4L(s4l.triplet, s4l.margin, s4l.weight, parts)

    def data(self) -> dict[str, Any]:
        """Returns what is known of the images, the unlabelled ones among them."""
        parts = [part.describe() for part in self.unlabelled]
        count = sum(part["count"] for part in parts)
        return {**super().data(), "unlabelled": {"count": count, "parts": parts}}

    def rates(self) -> dict[str, Any]:
        """Returns the learning rate's settings; milestones are given in epochs."""
        rates = self.config.optim.to_dict()
        rates["milestones"] = tuple(epoch * self.steps_per_epoch for epoch in rates["milestones"])
        return rates


def open_unlabelled(
    config: ml_collections.ConfigDict, images: Any, console: Console
) -> list[Examples]:
    """Opens the unlabelled images, all splits of the sets that `config.s4l.sets` names.

    Args:
        config: The experiment.
        images: The labelled task, whose recipe the images are kept for.
        console: Where progress is shown.

    Raises:
        UsageError: There are none, a split is named twice, or some belong to the labelled task.
    """
    cache = Cache(config.data.cache_mb)
    labelled = source_name(make_builder(config.task, config.data.data_dir))
    known = {name for part in images.parts().values() for name in part.ids}
    sets = open_splits("config.s4l.sets", config.s4l.sets, config.data.data_dir, console)
    found, shared = [], []
    firsts = Firsts(console)
    for builder, split in sets:
        records = Records(builder, split)
        names = [row["image_id"].decode() for row in records.columns(["image_id"])]
        kept = firsts.of(builder, split, names)
        ids = [names[i] for i in kept]
        if source_name(builder) == labelled:
            shared += known.intersection(ids)
        if ids:
            found.append(Examples(records, kept, {}, ids, ids, images.plan, cache))
    if not found:
        raise UsageError(
            "config.s4l.sets names no unlabelled images; name prepared sets, separated by commas."
        )
    if shared:
        raise UsageError(
            f"{len(shared)} unlabelled images are images of the labelled task, too "
            f"({', '.join(sorted(shared)[:3])}); leave their set or split out of config.s4l.sets."
        )
    return found


def check_labeler(network: Any) -> None:
    """Raises UsageError unless a network's maps can be read off a linear layer."""
    if not has_cam(network.program):
        raise UsageError(
            "The labeler does not end in global pooling and one linear layer, whose maps score "
            "patches; train it with config.model.name=resnet34."
        )
