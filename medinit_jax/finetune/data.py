"""The images of fine-tuning: a task opened, its parts, and its training batches by step number."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.draw import draw_missing
from medinit_jax.data.pipeline import ENDLESS, epoch_order
from medinit_jax.data.prepared import manifest_of
from medinit_jax.data.readable import Readable
from medinit_jax.data.tasks import TASKS, Task, make_builder
from medinit_jax.downstream.figures import check_metric
from medinit_jax.downstream.heads import UNKNOWN, Head
from medinit_jax.finetune import recipes, regions
from medinit_jax.finetune.examples import Cache, Examples, Layer, Records
from medinit_jax.finetune.labels import Column, label_columns, mask_heads
from medinit_jax.finetune.parts import Pool, divide, read_pool
from medinit_jax.finetune.recipes import RECIPES, Plan, make_plan

__all__ = ["Examples", "TaskImages", "TrainBatches", "open_task"]

TARGETS = ("label", "rotation")
_ANGLES = Head("rotation", ("0", "90", "180", "270"))
# Names the use of the seed: the draws of one image in one epoch.
_DRAW = 2


class TaskImages(NamedTuple):
    """A task: what is predicted, and the images of its parts.

    Attributes:
        name: As the configuration has it.
        kind: "classification" or "segmentation".
        modality: "fundus", "CT", "X-ray" or "your own".
        metric: How it is scored.
        heads: What is predicted.
        train: Images to learn from.
        validation: Images to choose by.
        test: Images to report.
        plan: How images are kept, changed and shown.
    """

    name: str
    kind: Literal["classification", "segmentation"]
    modality: str
    metric: str
    heads: tuple[Head, ...]
    train: Examples
    validation: Examples
    test: Examples
    plan: Plan

    def parts(self) -> dict[str, Examples]:
        """Returns {"train", "validation", "test": their images}."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def evaluation_picture(self, examples: Examples, index: int) -> np.ndarray:
        """Returns what the network sees of an image in evaluation, uint8 (H, W, 3)."""
        if self.kind == "segmentation":
            return examples.pair(index)[0]
        return recipes.shown_image(examples.image(index), self.plan)

    def evaluation_image(self, examples: Examples, index: int) -> np.ndarray:
        """Returns an image for evaluation, float32 normalized.

        Returns:
            (S, S, 3) for a classification; all of the image, (H, W, 3), for a segmentation, whose
            logits `native_logits` brings to the size of `examples.mask`.
        """
        return recipes.normalized(self.evaluation_picture(examples, index), self.plan)

    def native_logits(self, examples: Examples, index: int, logits: np.ndarray) -> np.ndarray:
        """Returns logits of `evaluation_image` at the size of the image's mask, float32."""
        return recipes.to_native(logits, examples.native_size(index), self.plan)

    def has_region(self, examples: Examples, index: int) -> bool:
        """Returns whether it is known where in an image the finding is."""
        return regions.region(examples, index) is not None

    def evaluation_region(self, examples: Examples, index: int) -> np.ndarray | None:
        """Returns where the finding is, bool (H, W) as `evaluation_picture`; None: not known."""
        return regions.shown_region(examples, index, self.plan)


def open_task(config: ml_collections.ConfigDict, console: Console) -> TaskImages:
    """Opens a task; a phantom that is not there yet is drawn.

    Args:
        config: `task`, `labels`, `metric`, `seed`, `data` and `protocol`, see
            `configs/finetune.py`.
        console: Where progress, and what is left out, is shown.

    Raises:
        UsageError: There is no such task, it is not prepared, or its parts are unusable.
    """
    data = config.data
    if data.target not in TARGETS:
        raise UsageError(
            f"config.data.target is {data.target!r}; set it to one of: {', '.join(TARGETS)}."
        )
    builder = make_builder(config.task, data.data_dir)
    draw_missing(builder, config.task, console)
    own = manifest_of(builder)["splits"]
    task = task_of(config.task, builder)
    turned = data.target == "rotation"
    kind = kind_of(config, task)
    segmented = kind == "segmentation"
    names = [name.strip() for name in config.labels.split(",") if name.strip()]
    columns: list[Column] = []
    layers: tuple[Layer, ...] = ()
    if segmented and names:
        raise UsageError(f"{config.task} is segmented by its masks; leave config.labels empty.")
    if data.fov and (not segmented or "fov" not in builder.info.features):
        why = "tells no field of view" if segmented else "is not segmented"
        raise UsageError(f"{config.task} {why}; set config.data.fov=False.")
    if segmented:
        heads, layers = mask_heads(builder, config.get("heads", "joint"))
    else:
        columns = label_columns(builder, names or (task.labels if task else ()))
        heads = tuple(column.head for column in columns)
    plan = make_plan(
        data.recipe,
        "classification" if turned else kind,
        builder.modality,
        data.size,
        data.normalization,
        any(layer.head == "cup" for layer in layers),
        turned,
    )
    metric = config.metric or (
        "accuracy" if turned else _metric(None if names else task, kind, heads)
    )
    check_metric(metric, "classification" if turned else kind, () if turned else heads)
    cache = Cache(data.cache_mb / (1 + data.workers))
    pools: dict[str, Pool] = {
        split: read_pool(Records(builder, split), columns, layers, console)
        for split, count in own.items()
        if count
    }
    parts = divide(config, heads, columns, pools)
    for split in pools.keys() - {split for split, _ in parts.values()}:
        console.print(
            f"The {len(pools[split].indices)} {split} images are not used: "
            f"config.protocol.fold={config.protocol.fold}.",
            highlight=False,
            soft_wrap=True,
        )

    def examples(name: str) -> Examples:
        split, indices = parts[name]
        pool = pools[split]
        found = Examples(
            pool.records,
            pool.indices[indices],
            {head: target[indices] for head, target in pool.targets.items()},
            [pool.patients[i] for i in indices],
            [pool.ids[i] for i in indices],
            plan,
            cache,
            () if turned else layers,
            bool(data.fov),
        )
        return found.in_four_angles(_ANGLES.name) if turned else found

    return TaskImages(
        config.task,
        "classification" if turned else kind,
        builder.modality,
        metric,
        (_ANGLES,) if turned else heads,
        examples("train"),
        examples("validation"),
        examples("test"),
        plan,
    )


def task_of(name: str, builder: Builder) -> Task | None:
    """Returns the benchmark task that a name stands for, or that its twin is drawn for."""
    return TASKS.get(name) or TASKS.get(getattr(builder.builder_config, "task", ""))


def kind_of(
    config: ml_collections.ConfigDict, task: Task | None
) -> Literal["classification", "segmentation"]:
    """Returns the kind of a task; of other sets it is that of the recipe."""
    if task is not None:
        return "segmentation" if task.kind == "segmentation" else "classification"
    recipe = RECIPES.get(config.data.recipe)
    return "classification" if recipe is None else recipe.kind


def _metric(task: Task | None, kind: str, heads: tuple[Head, ...]) -> str:
    """Returns the task's own metric, or the usual one of such heads."""
    if task is not None:
        return task.metric
    if kind == "segmentation":
        return "Dice"
    first = heads[0]
    if len(heads) > 1:
        return "joint accuracy"
    if first.kind == "sigmoid":
        return "macro AUC"
    return "AUC" if len(first.classes) == 2 else "accuracy"


class TrainBatches:
    """Training batches by step number.

    Every epoch has each image once, in an order of its own; a batch may end one epoch and begin the
    next. Batch `step` is a pure function of configuration, images and step. A batch of segmentation
    may be larger than an epoch: it has an image more than once, each time changed anew.

    Attributes:
        size: Side of the images in pixels.
        steps_per_epoch: The fewest steps that show every image.
        process: Which process makes its rows of a batch, and how many share it.
    """

    process = (0, 1)

    def __init__(self, config: ml_collections.ConfigDict, images: TaskImages):
        """Prepares the batches of a task.

        Args:
            config: `train.batch` and `seed`.
            images: The task.

        Raises:
            UsageError: There are fewer images than a batch of classification has, or it cannot have
                four angles of each.
        """
        self._images, self._seed = images, int(config.seed)
        self._turns = 4 if images.train.turned else 1
        self._count = len(images.train) // self._turns
        batch = int(config.train.batch)
        if batch < 1 or batch % self._turns:
            raise UsageError(
                f"config.train.batch is {batch}; set it to a positive multiple of {self._turns}"
                + (", for the four angles of each image." if self._turns > 1 else ".")
            )
        self._batch = batch // self._turns
        if self._count < self._batch and images.kind != "segmentation":
            raise UsageError(
                f"{images.name} has {self._count} training images, fewer than the {self._batch} of "
                f"a batch; lower config.train.batch or raise config.protocol.fraction."
            )
        self._readable = Readable(self._stored, self._count)
        self.size = images.plan.size
        self.steps_per_epoch = -(-self._count // self._batch)

    def shared(self, process: tuple[int, int]) -> TrainBatches:
        """Returns these batches, of which one process makes its rows only.

        Args:
            process: Its number, and the number of processes.

        Raises:
            UsageError: They cannot share a batch equally.
        """
        if self._batch % process[1]:
            raise UsageError(
                f"config.train.batch={self._batch * self._turns} cannot be shared by {process[1]} "
                f"processes; make it a multiple of {self._turns * process[1]}."
            )
        own = copy.copy(self)
        own.process = process
        return own

    def __len__(self) -> int:
        """Returns a length that no run reaches."""
        return ENDLESS

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns a batch, or this process's rows of it.

        Returns:
            image float32 (B, S, S, 3) normalized; targets {head: int32 (B,)}, (B, classes) for a
            sigmoid, (B, S, S) for a segmentation.
        """
        step, (process, processes) = int(step), self.process
        chosen = []
        places = range(step * self._batch, (step + 1) * self._batch)
        share = self._batch // processes
        for place in places[process * share : (process + 1) * share]:
            epoch, offset = divmod(place, self._count)
            index = int(epoch_order(self._seed, epoch, self._count)[offset])
            chosen.append((index, np.random.default_rng([self._seed, _DRAW, epoch, index])))
        if self._images.kind == "segmentation":
            pictures, targets = self._pairs(chosen)
        else:
            pictures, targets = self._pictures(chosen)
        return {"image": recipes.normalized(pictures, self._images.plan), "targets": targets}

    def _stored(self, index: int) -> Any:
        train = self._images.train
        segmented = self._images.kind == "segmentation"
        return train.pair(index) if segmented else train.image(index * self._turns)

    def _pictures(self, chosen) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        train, plan = self._images.train, self._images.plan
        pictures, indices = [], []
        for index, rng in chosen:
            index, stored = self._readable.find(index)
            picture = recipes.drawn_image(stored, plan, rng)
            pictures += [np.rot90(picture, turn) for turn in range(self._turns)]
            indices += range(index * self._turns, (index + 1) * self._turns)
        return np.stack(pictures), {head: target[indices] for head, target in train.targets.items()}

    def _pairs(self, chosen) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        train, plan = self._images.train, self._images.plan
        drawn = []
        for index, rng in chosen:
            _, (image, classes) = self._readable.find(index)
            drawn.append(recipes.drawn_pair(image, classes, plan, rng))
        known = np.stack([mask for _, mask in drawn])
        targets = {
            layer.head: np.where(known == 0, UNKNOWN, layer.of(known - np.uint8(1))).astype(
                np.int32
            )
            for layer in train.layers
        }
        return np.stack([picture for picture, _ in drawn]), targets
