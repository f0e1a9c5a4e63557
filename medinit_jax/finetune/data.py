"""The images of one fine-tuning: which are seen, which validate, which are tested."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.core.progress import Progress
from medinit_jax.data import recipes
from medinit_jax.data.augment import NORMALIZATION, normalize
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.divisions import stratified_folds
from medinit_jax.data.examples import OUTSIDE, Examples
from medinit_jax.data.pipeline import DRAW, epoch_order
from medinit_jax.data.prepare import prepare
from medinit_jax.data.prepared import manifest_of
from medinit_jax.data.tasks import TASKS, Task, make_builder
from medinit_jax.downstream.heads import UNKNOWN, Head
from medinit_jax.downstream.protocol import label_subset, split_patients
from medinit_jax.downstream.scores import check_metric

ROTATION = Head("rotation", ("0", "90", "180", "270"))
FOLDS = 5
# config.protocol.folds -> the feature that holds them; "made" divides here.
FOLD_FEATURES = {"authors": "fold_swcl", "set": "fold", "made": ""}
# Feature of a mask's classes -> heads, and from which class number on a pixel belongs to each.
_DISC = (("disc", 1), ("cup", 2))


class Mask(NamedTuple):
    """A head of a segmentation: pixels whose class number is at least `least`."""

    head: Head
    least: int


class TaskImages(NamedTuple):
    """The images of a task, divided, and what is predicted of them.

    Attributes:
        kind: "classification" or "segmentation".
        modality: "fundus", "CT" or "X-ray".
        metric: How the task is scored, see `downstream.scores`.
        heads: What is predicted.
        masks: For segmentation, which class numbers each head stands for.
        recipe: How images are prepared and drawn.
        mean: Of each channel in 0..1.
        std: Deviation of each channel in 0..1.
        fov: Whether pixels outside the field of view do not count.
        turned: Whether images are shown in their four right angles, which are to be told apart.
        train: Images whose labels are seen.
        validation: Images on which choices are made.
        test: Images that are judged.
    """

    kind: str
    modality: str
    metric: str
    heads: tuple[Head, ...]
    masks: tuple[Mask, ...]
    recipe: recipes.Recipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fov: bool
    turned: bool
    train: Examples
    validation: Examples
    test: Examples

    def parts(self) -> dict[str, Examples]:
        """Returns the three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def count(self, part: Examples) -> int:
        """Returns how many views of a part are judged: turned ones count four times."""
        return len(part) * (4 if self.turned else 1)

    def targets(self, part: Examples) -> dict[str, np.ndarray]:
        """Returns {head: int32 (n,) or (n, classes)} of what `view` shows."""
        if self.turned:
            return {ROTATION.name: np.tile(np.arange(4, dtype=np.int32), len(part))}
        return {head.name: part.labels[head.name] for head in self.heads}

    def names(self, part: Examples) -> tuple[list[str], list[str]]:
        """Returns ids and patients of what `view` shows."""
        times = 4 if self.turned else 1
        return [i for i in part.ids for _ in range(times)], [
            p for p in part.patients for _ in range(times)
        ]

    def picture(self, part: Examples, index: int) -> np.ndarray:
        """Returns what is judged as uint8 (H, W, 3)."""
        if self.turned:
            return np.rot90(self.recipe.view(part.image(index // 4)), index % 4)
        return self.recipe.view(part.image(index))

    def view(self, part: Examples, index: int) -> np.ndarray:
        """Returns what is judged as the network sees it, float32 (H, W, 3)."""
        return self.normalized(self.picture(part, index))

    def normalized(self, pictures: np.ndarray) -> np.ndarray:
        """Returns uint8 (..., 3) as the network sees it, float32."""
        return normalize(pictures, self.mean, self.std)

    def truth(self, part: Examples, index: int) -> dict[str, np.ndarray]:
        """Returns {head: int32 (H, W)} of 0, 1 and `UNKNOWN`, of the stored image's size."""
        return self.pixels(self._mask(part, index))

    def pixels(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {head: int32 (...)} of class numbers uint8 (...)."""
        outside = mask == OUTSIDE
        return {
            one.head.name: np.where(outside, UNKNOWN, mask >= one.least).astype(np.int32)
            for one in self.masks
        }

    def _mask(self, part: Examples, index: int) -> np.ndarray:
        mask = part.mask(index)
        field = part.fov(index) if self.fov else None
        return mask if field is None else np.where(field, mask, np.uint8(OUTSIDE))

    def draw(self, part: Examples, index: int, seed: Sequence[int]) -> tuple[np.ndarray, Any]:
        """Returns a training view uint8 (S, S, 3), and its targets."""
        rng = np.random.default_rng(seed)
        if self.kind == "segmentation":
            image, mask = self.recipe.draw(part.image(index), self._mask(part, index), rng)  # pyright: ignore
            return image, self.pixels(mask)
        number = index // 4 if self.turned else index
        image = self.recipe.draw(part.image(number), rng)  # pyright: ignore
        if self.turned:
            return np.rot90(image, index % 4), {ROTATION.name: np.int32(index % 4)}
        return image, {head.name: part.labels[head.name][index] for head in self.heads}

    def region(self, part: Examples, index: int) -> np.ndarray | None:
        """Returns where findings are in what is judged, bool (H, W); None if that is not known."""
        boxes = part.regions(index)
        if not len(boxes):
            return None
        canvas = np.zeros((*part.size(index), 3), np.uint8)
        for top, left, bottom, right in boxes * np.tile(canvas.shape[:2], 2):
            canvas[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 255
        return self.recipe.view(self.recipe.keep(canvas))[..., 0] > 127


class TrainBatches:
    """Training batches by step number, each a pure function of seed and step."""

    def __init__(self, images: TaskImages, batch: int, seed: int):
        """Prepares batches.

        Args:
            images: The task.
            batch: Images per batch.
            seed: Of order and draws.

        Raises:
            UsageError: There are fewer images than a batch holds.
        """
        self.images, self.batch, self.seed = images, batch, seed
        self.count = images.count(images.train)
        if not 1 <= batch <= self.count:
            raise UsageError(
                f"config.train.batch={batch}, but there are {self.count} training images; set it "
                f"to 1 to {self.count}, or raise config.protocol.fraction."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every image once; the last one reaches into the next epoch."""
        return -(-self.count // self.batch)

    def __len__(self) -> int:
        """Returns a length that no run reaches."""
        return 1 << 40

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns image float32 (B, S, S, 3) and targets {head: int32 (B, ...)}."""
        places = range(int(step) * self.batch, (int(step) + 1) * self.batch)
        drawn = []
        for epoch, offset in (divmod(place, self.count) for place in places):
            index = int(epoch_order(self.seed, epoch, self.count)[offset])
            seed = (self.seed, DRAW, epoch, index)
            drawn.append(self.images.draw(self.images.train, index, seed))
        images, targets = zip(*drawn, strict=True)
        return {
            "image": self.images.normalized(np.stack(images)),
            "targets": {
                name: np.stack([row[name] for row in targets]).astype(np.int32)
                for name in targets[0]
            },
        }


def open_task(config: ml_collections.ConfigDict, console: Console) -> TaskImages:
    """Opens the images of `config.task`; a phantom that is not there yet is drawn.

    Args:
        config: The experiment, see `configs/finetune.py`.
        console: Where progress, and what is left out, is shown.

    Raises:
        UsageError: The set is not prepared, lacks labels or a class, or a key means nothing.
    """
    task = _task_of(config.task)
    builder = make_builder(config.task, config.data.data_dir)
    _draw_phantom(builder, console)
    features = builder.info.features
    turned = _is_turned(config.data.target)
    labels = _labels(config, task, features, turned)
    kind = "segmentation" if not labels and not turned else "classification"
    recipe = _recipe(config.data, kind, builder.modality)
    masks = _masks(config.task, features) if kind == "segmentation" else ()
    heads = tuple(mask.head for mask in masks)
    if turned:
        heads, recipe = (ROTATION,), recipes.without_flips(recipe)
    metric = _metric(config, task, kind, turned, len(labels))
    train, validation, test = _divide(config, builder, labels, recipe, console)
    if labels:
        heads = tuple(_head(name, features, train) for name in labels)
        _check_classes(config, heads, {"training": train, "validation": validation, "test": test})
    mean, std = NORMALIZATION[_normalization(config.data.normalization, builder.modality)]
    return TaskImages(
        kind, builder.modality, metric, heads, masks, recipe, mean, std, config.data.fov, turned,
        train, validation, test,
    )  # fmt: skip


def _task_of(name: str) -> Task | None:
    plain = name.removeprefix("phantom_")
    if plain in TASKS:
        return TASKS[plain]
    # A twin at another size or with a share of the images.
    known = [task for task in TASKS if plain.startswith(f"{task}_")]
    return TASKS[max(known, key=len)] if known and name.startswith("phantom_") else None


def _draw_phantom(builder: Builder, console: Console) -> None:
    if not builder.name.startswith("medinit_phantom"):
        return
    bars: list[Progress] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(Progress("draw", total, console, start=done, unit="images").__enter__())
        bars[0].update(done)

    try:
        prepare(builder, report=report)
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)


def _is_turned(target: str) -> bool:
    if target not in ("label", "rotation"):
        raise UsageError(f"config.data.target={target!r}; set it to label or rotation.")
    return target == "rotation"


def _labels(config, task: Task | None, features: Any, turned: bool) -> tuple[str, ...]:
    """Returns the features that are predicted; none for masks."""
    if turned:
        return ()
    own = () if task is None else task.labels
    wanted = tuple(name.strip() for name in config.labels.split(",") if name.strip()) or own
    if not wanted:
        wanted = ("mask",) if "mask" in features else ("label",)
    if wanted == ("mask",) and "mask" in features:
        return ()
    for name in wanted:
        shape = features[name].shape if name in features else None
        whole = name in features and np.issubdtype(features[name].np_dtype, np.integer)
        if not whole or shape is None or len(shape) > 1 or None in shape or name == "eye":
            known = [
                key
                for key, feature in features.items()
                if key != "eye"
                and len(feature.shape or ()) < 2
                and np.issubdtype(feature.np_dtype, np.integer)
            ]
            raise UsageError(
                f"{config.task} has no label {name!r}; set config.labels to some of: "
                f"{', '.join([*known, *(['mask'] if 'mask' in features else [])]) or 'none'}."
            )
    return wanted


def _head(name: str, features: Any, train: Examples) -> Head:
    feature = features[name]
    if feature.shape:
        classes = tuple(str(i) for i in range(feature.shape[0]))
        return Head(name, classes, "sigmoid")
    if isinstance(feature, tfds.features.ClassLabel):
        return Head(name, tuple(feature.names))
    known = train.labels[name]
    return Head(name, tuple(str(i) for i in range(int(known.max(initial=0)) + 1)))


def _masks(task: str, features: Any) -> tuple[Mask, ...]:
    if "mask" not in features or not getattr(features["mask"], "names", None):
        raise UsageError(f"{task} has no masks to learn; set config.labels to features it has.")
    names = tuple(features["mask"].names)
    if names == ("background", "disc", "cup"):
        # The cup lies inside the disc, so that each is a mask of its own.
        return tuple(Mask(Head(name, ("background", name)), least) for name, least in _DISC)
    if len(names) != 2:
        raise UsageError(
            f"The masks of {task} have the classes {', '.join(names)}; two classes, or background, "
            "disc and cup are understood."
        )
    return (Mask(Head(names[1], names), 1),)


def _recipe(data: ml_collections.ConfigDict, kind: str, modality: str) -> recipes.Recipe:
    table = recipes.CLASSIFICATION if kind == "classification" else recipes.SEGMENTATION
    if data.recipe not in table:
        raise UsageError(
            f"config.data.recipe={data.recipe!r} is no recipe for {kind}; set it to one of: "
            f"{', '.join(table)}."
        )
    if data.size < 0:
        raise UsageError(f"config.data.size={data.size}; set it to 0 (the recipe's) or more.")
    return table[data.recipe](data.size, modality)


def _metric(config, task: Task | None, kind: str, turned: bool, labels: int) -> str:
    metric = config.metric
    if not metric and turned:
        metric = "accuracy"
    if not metric and task is not None and not config.labels:
        metric = task.metric
    if not metric:
        metric = "Dice" if kind == "segmentation" else "joint accuracy" if labels > 1 else "AUC"
    check_metric(metric, kind)
    return metric


def _normalization(name: str, modality: str) -> str:
    if name == "auto":
        return "fundus" if modality in ("fundus", "your own") else "gray"
    if name not in NORMALIZATION:
        raise UsageError(
            f"config.data.normalization={name!r}; set it to auto or one of: "
            f"{', '.join(NORMALIZATION)}."
        )
    return name


def _divide(config, builder: Builder, labels, recipe, console) -> tuple[Examples, ...]:
    """Returns training, validation and test images."""
    protocol = config.protocol
    splits = [name for name, count in manifest_of(builder)["splits"].items() if count]
    wanted = list(labels)
    if protocol.fold >= 0:
        if protocol.folds not in FOLD_FEATURES:
            raise UsageError(
                f"config.protocol.folds={protocol.folds!r}; set it to one of: "
                f"{', '.join(FOLD_FEATURES)}."
            )
        feature = FOLD_FEATURES[protocol.folds]
        if feature and feature not in builder.info.features:
            raise UsageError(
                f"{config.task} has no folds of its own ({feature}); set "
                "config.protocol.folds=made, or fold=-1 for its test images."
            )
        wanted += [feature] if feature else []
    elif "test" not in splits:
        raise UsageError(
            f"{config.task} has no test images (it has: {', '.join(splits)}); set "
            f"config.protocol.fold to 0 to {FOLDS - 1} for cross-validation."
        )
    if "train" not in splits:
        raise UsageError(f"{config.task} has no training images, only {', '.join(splits)}.")
    opened = functools.partial(
        _opened, builder=builder, wanted=wanted, labels=labels, config=config, recipe=recipe,
        console=console,
    )  # fmt: skip
    train = opened("train")
    if protocol.fold >= 0:
        train, test = _fold(config, train, labels)
    else:
        test = opened("test")
    if protocol.fold < 0 and "validation" in splits:
        validation = opened("validation")
    else:
        train, validation = _carve(config, train, labels)
    if protocol.fraction != 1:
        chosen = label_subset(
            _strata(train, labels), train.patients, protocol.fraction, config.seed
        )
        train = train.subset(chosen, f"{100 * protocol.fraction:g} %")
    return train, validation, test


def _opened(split: str, builder, wanted, labels, config, recipe, console) -> Examples:
    """Opens a split without images of which a label is not known."""
    part = Examples(builder, split, wanted, recipe.keep, config.data.cache_mb)
    known = np.ones(len(part), bool)
    for name in labels:
        here = part.labels[name] != UNKNOWN
        known &= here if here.ndim == 1 else here.all(1)
    if not known.any():
        raise UsageError(
            f"No image of the split {split} of {config.task} has the labels {', '.join(labels)}; "
            "choose other labels with config.labels, or a set whose labels are public."
        )
    if not known.all():
        console.print(
            f"{int((~known).sum())} of {len(part)} images of {config.task} ({split}) have no "
            "label and are left out."
        )
        return part.subset(np.flatnonzero(known), "labelled")
    return part


def _strata(part: Examples, labels: Sequence[str]) -> np.ndarray:
    """Returns the label by which images are divided: the first one, or none."""
    first = part.labels[labels[0]] if labels else np.zeros(len(part), np.int32)
    return first if first.ndim == 1 else first.any(1).astype(np.int32)


def _fold(config, train: Examples, labels: Sequence[str]) -> tuple[Examples, Examples]:
    protocol = config.protocol
    feature = FOLD_FEATURES[protocol.folds]
    if feature:
        folds = train.labels[feature]
    else:
        strata = _strata(train, labels).tolist()
        folds = stratified_folds(strata, FOLDS, protocol.split_seed, train.patients)
    if not (folds == protocol.fold).any():
        raise UsageError(
            f"config.protocol.fold={protocol.fold}, but the folds are "
            f"{', '.join(map(str, np.unique(folds).tolist()))}."
        )
    return (
        train.subset(np.flatnonzero(folds != protocol.fold), f"without fold {protocol.fold}"),
        train.subset(np.flatnonzero(folds == protocol.fold), f"fold {protocol.fold}"),
    )


def _carve(config, train: Examples, labels: Sequence[str]) -> tuple[Examples, Examples]:
    share = config.protocol.validation
    if not 0 < share < 1:
        raise UsageError(
            f"config.protocol.validation={share}; it lies between 0 and 1, as this division has "
            "no validation images of its own."
        )
    sets = split_patients(
        _strata(train, labels),
        train.patients,
        {"train": 1 - share, "validation": share},
        config.protocol.split_seed,
    )
    return tuple(train.subset(sets[name], name) for name in ("train", "validation"))  # pyright: ignore


def _check_classes(config, heads: tuple[Head, ...], parts: dict[str, Examples]) -> None:
    """Refuses parts that lack a class which the training images of the whole set have."""
    for head in heads:
        if head.kind == "sigmoid":
            continue
        present = {
            name: set(np.unique(part.labels[head.name]).tolist()) for name, part in parts.items()
        }
        everywhere = set().union(*present.values())
        for name, found in present.items():
            missing = sorted(everywhere - found)
            # Without one of two classes there is no figure; of many, training needs each.
            if missing and (name == "training" or len(found) < 2):
                raise UsageError(
                    f"The {name} images of {config.task} (fold {config.protocol.fold}, fraction "
                    f"{config.protocol.fraction:g}, {len(parts[name])} images) hold no "
                    f"{head.name} = {', '.join(head.classes[k] for k in missing)}; take another "
                    "fold, division or a larger fraction."
                )
