"""What the builders of all datasets share.

A builder reads tables and folders first, into items: small, picklable descriptions of examples.
Only then are files decoded, one item at a time, by `example`. So everything that is wrong with a
layout is known within seconds, and decoding runs in as many processes as there are cores.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.config import Config, Item, plain_name
from medinit_jax.data.builders.image_files import ImageFiles
from medinit_jax.data.layout import DatasetLayoutError, Tree, locate
from medinit_jax.data.manifest import refuse_other_options

# Sets without a builder, by what only they hold.
FOREIGN = {
    "Messidor-2": ("messidor_data.csv", "messidor-2.csv", "messidor-2.xlsx", "messidor-2"),
    "a resized copy of EyePACS": ("resized_train", "resized_train_cropped"),
    "stage 1 of RSNA-IHD": ("stage_1_train.csv",),
    "stage 1 of RSNA-CXR": ("stage_1_train_labels.csv", "stage_1_detailed_class_info.csv"),
}
EYES = ("left", "right", "unknown")
# Share of the files that may be left out with on_corrupt="skip".
MAX_SKIPPED = 0.001
UNLABELLED = -1
# Least and largest side of stored images in pixels.
SIZES = (16, 4096)
_SIZED = re.compile(r"(?P<config>.+)_(?P<size>[1-9]\d*)px")


class LocalInfo(tfds.core.DatasetInfo):
    """What tfds knows of a set that is nowhere but here."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: tfds would ask Google's bucket for the set and leave a folder behind."""


class Builder(tfds.core.GeneratorBasedBuilder, ImageFiles, skip_registration=True):  # pyright: ignore
    """A dataset of which a folder was downloaded by hand.

    Class attributes, beside tfds' own:
        HOMEPAGE, LICENSE, CITATION: For `DatasetInfo` and the table of datasets.
        LICENSE_URL: Where the license is; "" if it is on the homepage.
        MODALITY: "fundus", "CT" or "X-ray", for the table of datasets.
        SIZE: What a download weighs, as text.
        EXPECTED: What a root folder holds, in one line.
        MARKERS: Alternatives; a folder that holds all names of one of them is the root.
        COUNTS: {config: {split: number of examples}} of the published dataset.
        KNOWN_CORRUPT: Keys of published files that nobody can read; they are left out and counted.
    """

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE: ClassVar[str] = ""
    MODALITY: ClassVar[str] = "fundus"
    LICENSE: ClassVar[str] = ""
    LICENSE_URL: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    SIZE: ClassVar[str] = ""
    EXPECTED: ClassVar[str] = ""
    MARKERS: ClassVar[tuple[tuple[str, ...], ...]] = ()
    COUNTS: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    KNOWN_CORRUPT: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        *,
        strict_counts: bool = True,
        on_corrupt: str = "error",
        beam: bool = False,
        file_format: Any = "array_record",
        **options: Any,
    ):
        """Makes a builder.

        Args:
            strict_counts: Whether numbers other than the published ones, and labels without file,
                are an error.
            on_corrupt: "error", or "skip": files that cannot be read are left out and listed, up to
                0.1 % of all.
            beam: Whether tfds decodes the files in an Apache Beam pipeline, see `data.beam`.
            file_format: As tfds has it.
            **options: `data_dir`, `config` and `version`, see tfds.

        Raises:
            UsageError: A set of this name was prepared with other options, or is damaged.
        """
        super().__init__(file_format=file_format, **options)
        self.strict_counts, self.on_corrupt, self.beam = strict_counts, on_corrupt, beam
        self.accepted: list[str] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []
        # Filled by a preparation with Beam.
        self.outside: list[str] = []
        self.pipeline_result: Any = None
        self._own_options = {
            "strict_counts": strict_counts,
            "on_corrupt": on_corrupt,
            "beam": beam,
        }
        refuse_other_options(self)

    def __getstate__(self):
        return {**super().__getstate__(), "own": self._own_options}

    def __setstate__(self, state):
        self.__init__(**state["_original_state"], **state["own"])

    # What a dataset defines.

    def features(self) -> dict[str, Any]:
        """Returns the features of an example beside `common_features`."""
        raise NotImplementedError

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads labels and folders.

        Returns:
            The items of every split, files not yet opened.
        """
        raise NotImplementedError

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes one item.

        Returns:
            The features, images encoded.
        """
        config, path = self.builder_config, item.files["image"]
        image, size = self.read_sized(path, config.shorter or config.square)
        return {**item.values, **self.stored_image(image, path, size)}

    # What tfds calls.

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        # tfds would refuse copies of its configs, as come to a worker, and warn of others there.
        if isinstance(builder_config, Config):
            known = self.builder_configs.get(builder_config.name)
            if known is None or known == builder_config:
                return known or builder_config
        return super()._create_builder_config(builder_config, version)

    def _info(self) -> tfds.core.DatasetInfo:
        return LocalInfo(
            builder=self,
            description=(type(self).__doc__ or "").strip(),
            features=tfds.features.FeaturesDict({**common_features(), **self.features()}),
            homepage=self.HOMEPAGE,
            license=self.license_text(),
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        tree = self.locate(dl_manager.manual_dir)
        splits = self.checked_items(tree)
        self.outside = tree.outside
        return {split: self._generate_examples(items) for split, items in splits.items()}

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        self.pipeline_result = pipeline_result

    def _generate_examples(self, items: Sequence[Item]) -> Any:
        if self.beam:
            from medinit_jax.data.beam import examples

            return examples(self, items)
        return self._examples(items)

    def _examples(self, items: Sequence[Item]) -> Iterator[tuple[str, dict[str, Any]]]:
        skipped = []
        for item in items:
            example = self.example_or_reason(item)
            if isinstance(example, str):
                if item.key not in self.KNOWN_CORRUPT:
                    skipped.append(example)
                logging.warning("%s is left out: %s", item.key, example)
            else:
                yield item.key, example
        refuse_many_skipped(self.name, "the download", skipped, len(items))

    @classmethod
    def license_text(cls) -> str:
        """Returns the license and where it is."""
        return f"{cls.LICENSE} {cls.LICENSE_URL or cls.HOMEPAGE}".strip()

    @property
    def modality(self) -> str:
        """What this config's images are: "fundus", "CT" or "X-ray"."""
        return self.MODALITY

    @classmethod
    def config_named(cls, name: str, data_dir: epath.PathLike) -> Config | None:
        """Returns the config of this name; None if there is none.

        Args:
            name: Name of the config; "full_512px" is "full" with images of another size. Configs
                that keep every image as it is have no other size.
            data_dir: Where sets are prepared, for builders that find configs there.
        """
        del data_dir
        known = {one.name: one for one in cls.BUILDER_CONFIGS}
        sized = _SIZED.fullmatch(name)
        config = known.get(sized["config"]) if sized else None
        if name in known or sized is None or config is None:
            return known.get(name)
        field = "square" if config.square else "shorter"
        size = int(sized["size"])
        if not getattr(config, field) or not SIZES[0] <= size <= SIZES[1]:
            return None
        return dataclasses.replace(config, name=name, **{field: size})

    # What preparing needs.

    def locate(self, folder: epath.PathLike | None = None) -> Tree:
        """Finds the dataset's root in the user's folder; only phantoms do without one."""
        if folder is None:
            raise UsageError(f"{self.name} is downloaded by hand; name its folder with --from.")
        return locate(self.name, folder, self.is_root, self.EXPECTED, self.HOMEPAGE, self.recognize)

    @classmethod
    def is_root(cls, tree: Tree) -> bool:
        """Says whether a folder is the root of this dataset."""
        return any(tree.has(*names) for names in cls.MARKERS)

    def recognize(self, tree: Tree) -> str | None:
        """Returns the name of another dataset whose root the folder is."""
        from medinit_jax.data.builders import BUILDERS

        for name, other in BUILDERS.items():
            if not isinstance(self, other) and other.is_root(tree):
                return name
        for name, marks in FOREIGN.items():
            if any(tree.find(mark) for mark in marks):
                return name
        return None

    def checked_items(self, tree: Tree) -> dict[str, list[Item]]:
        """Returns `items`, after the numbers and keys were checked.

        Raises:
            DatasetLayoutError: E_COUNT, or whatever `items` finds.
        """
        self.accepted, self.ignored, self.notes = [], [], []
        splits = self.items(tree)
        keys = [item.key for items in splits.values() for item in items]
        if len(set(keys)) != len(keys):
            raise AssertionError(f"{self.name}: two examples have the same key")
        self.refuse_counts(tree, self.counted(splits), self.published(tree))
        return splits

    def refuse_counts(
        self, tree: Tree, found: Mapping[str, int], wanted: Mapping[str, int]
    ) -> None:
        """Raises E_COUNT if splits have other numbers than wanted, or accepts and lists them."""
        differing = [split for split in wanted if found.get(split) != wanted[split]]
        if not self.strict_counts:
            self.accept(
                *(f"{split} has {found.get(split, 0)} of {wanted[split]}" for split in differing)
            )
        elif differing:
            tree.fail(
                "E_COUNT",
                "the number of examples is not the published one",
                found=[f"{split} {found.get(split, 0)}" for split in differing],
                expected=", ".join(f"{split} {wanted[split]}" for split in differing),
                fix="Finish the download; --any-count prepares what is there.",
            )

    def accept(self, *departures: str) -> None:
        """Lists what strict counts would have refused."""
        self.accepted += [one for one in departures if one not in self.accepted]

    def counted(self, splits: Mapping[str, Sequence[Item]]) -> dict[str, int]:
        """Returns the numbers that are compared with COUNTS; those of the items by default."""
        return {split: len(items) for split, items in splits.items()}

    def published(self, tree: Tree | None = None) -> Mapping[str, int]:
        """Returns the number of examples per split that this config should have, if known.

        Args:
            tree: The download; None: before there is one.
        """
        del tree
        return self.COUNTS.get(plain_name(self.builder_config.name), {})

    def refuse_orphans(self, tree: Tree, missing: Sequence[str], total: int, what: str) -> None:
        """Raises E_ORPHAN if labels (or images) have no file; without strict counts, notes them.

        Args:
            tree: Where the files should be.
            missing: Names without file.
            total: Number of all names.
            what: What is missing, as "image" or "vessel mask".
        """
        if not missing:
            return
        if not self.strict_counts:
            self.accept(f"{len(missing)} of {total} have no {what}")
            self.ignored += [f"{name}: no {what}" for name in missing]
            logging.warning("%d of %d have no %s: left out.", len(missing), total, what)
            return
        tree.fail(
            "E_ORPHAN",
            f"{len(missing)} of {total} have no {what}",
            found=[f"none for {name}" for name in missing],
            expected=f"one {what} for each",
            fix="Unpacking was interrupted, or this is another part; --any-count leaves them out.",
        )

    def note_leak(self, count: int, shared: str, remedy: str) -> None:
        """Notes how much a division, made as a paper made it, has on both sides; warns if any.

        Args:
            count: Number of patients or images on both sides.
            shared: What they are, as "patients are in train and in test".
            remedy: What has no such leak.
        """
        note = f"{count} {shared}"
        if count:
            note += f", so test results are too good; {remedy}"
            logging.warning("%s/%s: %s.", self.name, self.builder_config.name, note)
        self.notes.append(note)

    def example_or_reason(self, item: Item) -> dict[str, Any] | str:
        """Returns the example, or why its file is left out."""
        try:
            return self.example(item)
        except DatasetLayoutError as error:
            unreadable = error.code in ("E_DECODE", "E_LFS")
            if unreadable and (self.on_corrupt == "skip" or item.key in self.KNOWN_CORRUPT):
                return str(error).splitlines()[0]
            raise


def common_features() -> dict[str, Any]:
    """Returns the features that every dataset has."""
    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image_id": tfds.features.Text(),
        "patient_id": tfds.features.Text(),
        "eye": tfds.features.ClassLabel(names=list(EYES)),
        "orig_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
    }


def refuse_many_skipped(
    dataset: str, folder: epath.PathLike, skipped: Sequence[str], total: int
) -> None:
    """Raises E_DECODE if more than 0.1 % of the files were left out.

    Args:
        dataset: Name of the dataset.
        folder: Where its files are, for the message.
        skipped: Which were left out, with the reason.
        total: Number of all files.
    """
    if len(skipped) > MAX_SKIPPED * total:
        raise DatasetLayoutError(
            "E_DECODE",
            dataset,
            folder,
            f"{len(skipped)} of {total} files cannot be read, more than 0.1 %",
            [one.removeprefix(f"{dataset}: ") for one in skipped],
            f"at least {total - int(MAX_SKIPPED * total)} readable files",
            "Download these files, or the whole dataset, again.",
            most=10,
        )
