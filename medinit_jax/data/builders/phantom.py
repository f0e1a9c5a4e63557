"""Phantom twins of the benchmark tasks: drawn while they are prepared, nothing is downloaded."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.drawn import Drawn
from medinit_jax.data.builders.phantom_case import EYE_NAMES, Case, Twin
from medinit_jax.data.builders.phantom_pretrain import FIRST_SEED, MAX_PATIENTS
from medinit_jax.data.builders.phantom_twins import TWINS
from medinit_jax.data.layout import Tree
from medinit_jax.data.phantoms.fundus_patient import LEFT, RIGHT

# Seeds of the twins lie above those of the sets for pretraining.
_FIRST = max(FIRST_SEED.values()) + MAX_PATIENTS
_PER_TASK, _PER_SPLIT = 10_000_000, 1_000_000
_NAME = re.compile(
    r"(?P<task>\w+?)(?:_(?P<size>\d{1,9})px)?(?:_x(?P<share>\d{1,9}(?:\.\d+)?(?:e-\d\d)?))?"
)
# Modality of the twins that are no fundus photographs.
_OTHERS = {"rsna_ihd": "CT", "rsna_cxr": "X-ray"}


@dataclasses.dataclass(kw_only=True)
class PhantomConfig(Config):
    """A twin, and how large it is drawn.

    Attributes:
        task: Key of `TWINS`.
        size: Side of the images in pixels.
        share: Of the usual number of patients; at least one of each split.
    """

    task: str
    size: int = 256
    share: float = 1.0


class MedinitPhantom(Drawn):
    """Drawn images with known labels, a twin of every benchmark task; they show no patient.

    Their figures tell whether a method runs, not how good it is on real images.
    """

    BUILDER_CONFIGS = [
        PhantomConfig(
            name=f"phantom_{task}", task=task, description=f"Drawn twin of {twin.twin_of}."
        )
        for task, twin in TWINS.items()
    ]
    # Rows of radiographs and usable pairs of ODIR are only known when they are drawn.
    COUNTS = {
        f"phantom_{task}": twin.images
        for task, twin in TWINS.items()
        if task not in ("rsna_cxr", "odir")
    }

    def __init__(
        self,
        *,
        config: PhantomConfig | str | None = None,
        size: int | None = None,
        share: float | None = None,
        **options: Any,
    ):
        """Makes a builder.

        Args:
            config: "phantom_<task>", or a config.
            size: Side of the images in pixels; None: 256. It becomes part of the config's name.
            share: Of the usual number of patients; likewise.
            **options: As for every builder.

        Raises:
            UsageError: Unknown config, or a size or share that makes no set.
        """
        super().__init__(config=_resized(config, size, share), **options)

    def features(self) -> dict[str, Any]:
        """Returns the features of the real dataset."""
        return self._twin.features()

    @classmethod
    def config_named(cls, name: str, data_dir: epath.PathLike) -> PhantomConfig | None:
        """Returns the config of a name such as "phantom_drive_seg_64px_x0.5"; None if none."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        del data_dir
        known = next((one for one in cls.BUILDER_CONFIGS if one.name == match["task"]), None)
        if known is None:
            return None
        size, share = match["size"], match["share"]
        return _resized(known, int(size) if size else None, float(share) if share else None)

    @property
    def modality(self) -> str:
        """What is drawn: "fundus", "CT" or "X-ray"."""
        return _OTHERS.get(self.builder_config.task, "fundus")

    @property
    def _twin(self) -> Twin:
        return TWINS[self.builder_config.task]

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Decides whom to draw; what takes time is left to `example`."""
        seeds = seed_ranges(self.builder_config)
        starts = sorted((span.start, span.stop) for span in seeds.values())
        for before, after in zip(starts, starts[1:], strict=False):
            if before[1] > after[0]:
                raise AssertionError(f"{self.name}: two splits share patients")
        splits = {}
        for split, span in seeds.items():
            cases = self._cases(split, span)
            draft = self._twin.arrange(cases, self.builder_config.split_seed)
            self.ignored += draft.left_out
            splits[split] = [Item(f"{split}/{c.name}", {}, {"case": c}) for c in draft.cases]
        return splits

    def _cases(self, split: str, seeds: range) -> list[Case]:
        twin = self._twin
        each = twin.images[split] / twin.patients[split]
        cameras = twin.cameras.get(split, ())
        sources = twin.sources.get(split, ("",))
        base = _task_base(self.builder_config.task)
        cases = []
        for place, seed in enumerate(seeds):
            slices = range(round(each * (place + 1)) - round(each * place))
            for number in slices:
                # One image of a patient shows either eye, two show both.
                side = (RIGHT, LEFT)[(number if each == 2 else seed) % 2] if cameras else 0
                name = f"{seed - base:07d}"
                eye = f"_{EYE_NAMES[side]}" if each == 2 else f"_{number:02d}" if each > 2 else ""
                patient = f"odir_{name}" if self.builder_config.task == "odir" else name
                case = Case(
                    seed=seed,
                    name=f"{name}{eye}",
                    patient=patient if twin.known_patients else "",
                    eye=side,
                    number=number,
                    source=sources[place % len(sources)],
                )
                cases.append(
                    case._replace(camera=cameras[place % len(cameras)]) if cameras else case
                )
        return cases

    def example(self, item: Item) -> dict[str, Any]:
        """Draws one item."""
        case, size = item.values["case"], self.builder_config.size
        return {
            "image_id": case.name,
            "patient_id": case.patient,
            "eye": EYE_NAMES[case.eye if self._twin.known_eyes else 0],
            "orig_size": np.array((size, size), np.int32),
            **self._twin.draw(case, size),
        }


def seed_ranges(config: PhantomConfig) -> dict[str, range]:
    """Returns the seeds of every split's patients."""
    ranges = {}
    for number, (split, usual) in enumerate(TWINS[config.task].patients.items()):
        first = _task_base(config.task) + number * _PER_SPLIT
        ranges[split] = range(first, first + max(1, round(usual * config.share)))
    return ranges


def _task_base(task: str) -> int:
    return _FIRST + list(TWINS).index(task) * _PER_TASK


def _resized(
    config: PhantomConfig | str | None, size: int | None, share: float | None
) -> PhantomConfig | None:
    """Returns a config of another size, named so that both sets can lie side by side."""
    if isinstance(config, PhantomConfig):
        chosen = config
    else:
        known = [one.name for one in MedinitPhantom.BUILDER_CONFIGS]
        chosen = MedinitPhantom.config_named(config or known[0], "")
        if chosen is None:
            raise UsageError(
                f"medinit_phantom has no config {config!r}; use one of: {', '.join(known)}."
            )
    if size is not None and size != chosen.size:
        if not 16 <= size <= 4096:
            raise UsageError(f"Phantoms of {size} pixels make no set; choose 16 to 4096.")
        chosen = dataclasses.replace(chosen, name=f"{chosen.name}_{size}px", size=size)
    if share is not None and share != chosen.share:
        most = _PER_SPLIT / max(TWINS[chosen.task].patients.values())
        if not 0 < share <= most:
            raise UsageError(
                f"A share of {share:g} of the patients makes no set of {chosen.task}; choose more "
                f"than 0 and at most {most:g}."
            )
        chosen = dataclasses.replace(chosen, name=f"{chosen.name}_x{share:g}", share=share)
    return chosen
