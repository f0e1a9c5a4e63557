"""From the `data` part of a configuration to sources, normalization and draws.

The keys of `config.data`:
    source: "phantom", "folder", "npz", "table", "files": one of these three, as `path` ends, or
        "prepared": a set that `python -m medinit_jax.data prepare` wrote.
    name: Which phantom: "fundus", "xray" or "ct"; which prepared set: "medinit_drive/default" or a
        task id, as "aptos_dr".
    path: Folder of images, .npz file, or table (.csv, .tsv, .xlsx, .xls) that lists images.
    table: Which column of a table holds what, see `image_table.Columns`; `labels` and `classes` are
        names separated by commas. Without a column for the split, `splits` divides the groups.
    data_dir: Where phantom sets are written, and prepared sets lie.
    size: Side of the images that networks see, in pixels.
    render_size: Side at which phantoms are drawn; they are reduced to `size`.
    patients: Number of phantom patients in `train`, `val` and `test`.
    splits: Shares of the patients in train, val and test where images bring no splits; what a
        prepared set lacks of these is taken from its train part, in proportion.
    split_seed: Seed of that division.
    fit: How a file's image becomes square: "crop", "pad" or "fov".
    check: "decode" reads every file of a folder once, "header" only its first bytes.
    labels: "folder" makes a folder's sub-folders the classes, "none" reads no labels.
    images_key: Array of an .npz file that holds images, `{split}` standing for the split; "auto"
        takes `{split}_images` if the file has them, else the one array that can be images.
    labels_key: The same for labels; "auto" takes those beside the images, if any.
    label: Which label of a phantom, table or prepared set is learned; "" takes the phantom's or
        task's own, the only one of the table, or the set's `label`.
    cache_mb: Sources up to this many megabytes of pixels are kept in memory.
    normalization: "fundus", "gray", or "auto": "fundus" for fundus phantoms, folders, tables and
        prepared sets of fundus photographs.
    batch: Images per global batch.
    workers: Processes that make batches; 0 is the faster way for images in memory.
    augment: The fields of `Augmentation`, and `difficulty` with those of `Ramp`.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import NORMALIZATION, Augmentation
from medinit_jax.data.folder import FolderSource
from medinit_jax.data.image_table import TABLE_SUFFIXES, Columns
from medinit_jax.data.npz import NpzSource, npz_keys
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.data.pipeline import BatchOptions, Ramp
from medinit_jax.data.sources import Source, Subset, cached, split_by_patient
from medinit_jax.data.table_source import TableSource

SPLITS: tuple[str, ...] = ("train", "val", "test")
# Called with the name of a split, the number of its images drawn so far, and their total; also
# when nothing has changed since.
Progress = Callable[[str, int, int], None]


def open_splits(
    data: Any, splits: Sequence[str] = SPLITS, progress: Progress | None = None
) -> dict[str, Source]:
    """Opens the images that a configuration names, and draws phantoms that are not there yet.

    Args:
        data: `config.data`, see the head of this file.
        splits: Which of "train", "val" and "test" are needed.
        progress: Told how far the drawing of phantoms is.

    Returns:
        A source per split; no patient is in two of them.

    Raises:
        UsageError: A key has a value that means nothing, or the images are unusable.
    """
    if data.source not in SOURCES:
        raise UsageError(f"data.source is {data.source!r}; set it to one of: {', '.join(SOURCES)}.")
    if data.source not in ("phantom", "prepared") and not data.path:
        raise UsageError(
            f"data.source is {data.source!r} but data.path is empty; "
            f"give it with --config.data.path=PLACE."
        )
    return SOURCES[data.source](data, tuple(splits), progress)


def _phantoms(data: Any, splits: tuple[str, ...], progress: Progress | None) -> dict[str, Source]:
    # Imported when chosen: tensorflow-datasets takes a second.
    from medinit_jax.data.builders.phantom_pretrain import pretrain_config
    from medinit_jax.data.prepare import prepare
    from medinit_jax.data.prepared import PreparedSource, label_feature
    from medinit_jax.data.tasks import make_builder

    def report(split: str, done: int, total: int) -> None:
        if progress is not None:
            progress(split, done, total)

    names = {
        split: pretrain_config(data.name, data.render_size, split, data.patients[split]).name
        for split in splits
    }
    label = data.label or PHANTOMS[data.name].label
    opened: dict[str, Source] = {}
    for split, name in names.items():
        builder = make_builder(f"medinit_phantom_pretrain/{name}", data.data_dir)
        # Before what may take long.
        label_feature(builder, label)
        prepare(builder, report=functools.partial(report, split))
        source = PreparedSource(builder, split, data.size, label=label)
        opened[split] = cached(source, data.cache_mb)
    return opened


def _folder(data: Any, splits: tuple[str, ...], progress: Progress | None) -> dict[str, Source]:
    source = FolderSource(data.path, data.size, data.fit, data.labels, data.check)
    return _divide(cached(source, data.cache_mb), data, splits)


def _npz(data: Any, splits: tuple[str, ...], progress: Progress | None) -> dict[str, Source]:
    pattern, keys = data.images_key, npz_keys(data.path)
    if pattern == "auto" and "train_images" in keys:
        pattern = "{split}_images"
    if "{split}" not in pattern:
        source = NpzSource(data.path, data.size, pattern, data.labels_key, data.fit)
        return _divide(source, data, splits)
    opened: dict[str, Source] = {}
    for split in splits:
        key = pattern.format(split=split)
        if key not in keys:
            raise UsageError(
                f"{data.path} has no array {key!r}; add it, or set data.images_key to one array, "
                f"which is then divided by data.splits (it holds: {', '.join(keys)})."
            )
        label = data.labels_key and data.labels_key.format(split=split)
        opened[split] = NpzSource(data.path, data.size, key, label, data.fit)
    return opened


def _table(data: Any, splits: tuple[str, ...], progress: Progress | None) -> dict[str, Source]:
    settings: dict[str, Any] = dict(data.table)
    for key in ("labels", "classes"):
        settings[key] = tuple(name.strip() for name in settings[key].split(",") if name.strip())
    columns = Columns(**settings)
    table = TableSource(data.path, data.size, data.fit, columns, data.label, data.check)
    source, own = cached(table, data.cache_mb), table.splits()
    if not own:
        return _divide(source, data, splits)
    absent = [split for split in splits if split not in own]
    if absent:
        raise UsageError(
            f"No row of {data.path} is of the split {absent[0]!r} ({columns.split} has: "
            f"{', '.join(own)}); add it, or leave data.table.split empty to divide by data.splits."
        )
    for split in sorted(set(own) - set(SPLITS)):
        logging.warning("%d rows of the split %s are not used.", len(own[split]), split)
    return {split: Subset(source, own[split], split) for split in splits}


def _files(data: Any, splits: tuple[str, ...], progress: Progress | None) -> dict[str, Source]:
    if data.path.lower().endswith(TABLE_SUFFIXES):
        return _table(data, splits, progress)
    return (_npz if data.path.endswith(".npz") else _folder)(data, splits, progress)


def _prepared(data: Any, splits: tuple[str, ...], progress: Progress | None) -> dict[str, Source]:
    # Imported when chosen: tensorflow-datasets takes a second.
    from medinit_jax.data.prepared import SPLIT_NAMES, PreparedSource, default_label, manifest_of
    from medinit_jax.data.tasks import make_builder

    builder = make_builder(data.name, data.data_dir)
    own = manifest_of(builder)["splits"]
    label = data.label or default_label(data.name)

    def opened(split: str) -> Source:
        source = PreparedSource(builder, SPLIT_NAMES[split], data.size, data.fit, label)
        return cached(source, data.cache_mb)

    lacking = [split for split in SPLITS if not own.get(SPLIT_NAMES[split])]
    sources = {split: opened(split) for split in splits if split not in lacking}
    # Held out whether asked for or not: the train part is the same for every reader.
    if lacking and {"train", *lacking} & set(splits):
        parts = ["train", *(split for split in lacking if split != "train")]
        # Raises if the set has no train part.
        train = sources.get("train") or opened("train")
        shares = [data.splits[SPLITS.index(split)] for split in parts]
        held = split_by_patient(train, [s / sum(shares) for s in shares], data.split_seed)
        for split, indices in zip(parts, held, strict=True):
            if split in splits:
                if len(indices) == 0:
                    raise UsageError(
                        f"The train part of {data.name} holds {len(train)} images, too few for a "
                        f"{split} part with the shares data.splits={tuple(data.splits)}; change "
                        f"the shares."
                    )
                sources[split] = Subset(train, indices, split)
    return {split: sources[split] for split in splits}


SOURCES = {
    "phantom": _phantoms,
    "folder": _folder,
    "npz": _npz,
    "table": _table,
    "files": _files,
    "prepared": _prepared,
}


def _divide(source: Source, data: Any, splits: tuple[str, ...]) -> dict[str, Source]:
    """Divides images that bring no splits by patient."""
    parts: dict[str, np.ndarray] = dict(
        zip(SPLITS, split_by_patient(source, data.splits, data.split_seed), strict=True)
    )
    for split in splits:
        if len(parts[split]) == 0:
            raise UsageError(
                f"{data.path} holds {len(source)} images, too few for a {split} part with the "
                f"shares data.splits={tuple(data.splits)}; add images or change the shares."
            )
    return {split: Subset(source, parts[split], split) for split in splits}


def batch_options(data: Any, seed: int, batch: int | None = None) -> BatchOptions:
    """Reads order, draws and normalization from a configuration.

    Args:
        data: `config.data`, see the head of this file.
        seed: Seed of the run.
        batch: Images per global batch; None takes `data.batch`.

    Returns:
        Options for `BatchSource` and `load_examples`.

    Raises:
        UsageError: A key has a value that means nothing.
    """
    settings = dict(data.augment)
    ramp = Ramp(**settings.pop("difficulty"))
    settings["zoom"] = tuple(settings["zoom"])
    mean, std = NORMALIZATION[_normalization(data)]
    return BatchOptions(
        batch=data.batch if batch is None else batch,
        seed=seed,
        augmentation=Augmentation(**settings),
        mean=mean,
        std=std,
        size=data.size,
        difficulty=ramp,
    )


def _normalization(data: Any) -> str:
    if data.normalization == "auto":
        drawn = data.source == "phantom" and data.name == "fundus"
        fundus = drawn or data.source in ("folder", "table")
        if data.source == "prepared":
            from medinit_jax.data.tasks import make_builder

            # Tables are taken for photographs, as where they are read directly.
            fundus = make_builder(data.name, data.data_dir).modality in ("fundus", "your own")
        return "fundus" if fundus else "gray"
    if data.normalization not in NORMALIZATION:
        raise UsageError(
            f"data.normalization is {data.normalization!r}; set it to auto or one of: "
            f"{', '.join(NORMALIZATION)}."
        )
    return data.normalization
