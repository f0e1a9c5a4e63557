"""Shows what a trained hypernetwork is worth: rotation accuracy, fine-tuning, frozen probes.

Everything that takes long is kept in `evaluation.json` as it comes, so that a second run goes on
where the first stopped; `summary.json` is written last and in one move. Several processes divide
the networks, each judges its share on its own devices, and the first one writes.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.api import Initializer, load
from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import Ledger, finite, forget_others
from medinit_jax.core.parallel import own_devices
from medinit_jax.core.parameters import INITIALIZER_FOLDER
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import provenance
from medinit_jax.core.workdir import write_arrays, write_json
from medinit_jax.data.sources import Source
from medinit_jax.downstream.pool import open_pool
from medinit_jax.hyper.comparison import compare
from medinit_jax.hyper.diagnostics import diagnose, families_of
from medinit_jax.hyper.hypernetwork import check_alike, from_config
from medinit_jax.hyper.rotation import (
    Scores,
    Views,
    held_out_views,
    meta_batches,
    names_of,
    ridge_figure,
    samples,
    score,
    summarize,
)
from medinit_jax.hyper.setup import Bilevel, make_bilevel, open_sources
from medinit_jax.hyper.starts import KINDS, untrained_theta
from medinit_jax.models.zoo import by_name

SAMPLES = 6


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    console: Console,
    command: str = "",
    bilevel: Bilevel | None = None,
) -> dict[str, Any]:
    """Evaluates the initializer of a workdir.

    Args:
        config: The experiment, see `configs/hyper.py`.
        workdir: Holds `initializer/`; `summary.json`, `samples.npz`, `parameters.json` and
            `evaluation.json` are written into it.
        console: Where progress and figures are shown.
        command: The command line, for the record.
        bilevel: What training ran on, to use its compiled blocks again; made anew by default, on
            the devices of this process.

    Returns:
        What `summary.json` holds.

    Raises:
        UsageError: There is no initializer, or images and configuration do not fit.
    """
    other = config.evaluate.initializer
    if not other and not (workdir / INITIALIZER_FOLDER).is_dir():
        raise UsageError(
            f"{workdir} has no trained initializer; run the stage train to its end first."
        )
    initializer = load(other or workdir)
    if other:
        asked = from_config({**config.hyper, "num_classes": initializer.module.num_classes})
        check_alike(initializer.module, asked, f"config.evaluate.initializer={other}")
    bilevel = bilevel or make_bilevel(config, own_devices())
    sources = open_sources(config, console)
    ledger = Ledger.shared(workdir / "evaluation.json", initializer.fingerprint)
    rotation, diagnostics = _predicted(config, initializer, bilevel, sources, ledger, console)
    remarks = []
    found: dict[str, Any] = {"finetune": [], "probe": [], "parameters": {}}
    networks = tuple(config.evaluate.downstream.networks)
    if networks:
        pool = open_pool(config, sources)
        if pool is None:
            remarks.append(
                "The images have no labels of two kinds, so no fine-tuning was compared."
            )
            console.print(remarks[-1])
        else:
            found = compare(
                config, bilevel.module, initializer.theta, pool, ledger, bilevel.space, console
            )
            remarks.append(_what_enters(config.evaluate.downstream))
    if not cluster.first():
        return cluster.once(dict)
    write_json(workdir / "parameters.json", finite(found["parameters"]))
    write_arrays(workdir / "samples.npz", samples(config, sources["test"], SAMPLES))
    summary = {
        "rotation_accuracy": rotation,
        "finetune": found["finetune"],
        "probe": found["probe"],
        "families": dict(zip(networks, families_of(networks, bilevel.space), strict=True)),
        "diagnostics": diagnostics,
        "train": _read(workdir / "train.json"),
        "provenance": {
            **provenance(command, _read(workdir / "config.json").get("name", workdir.name)),
            "theta_sha256": initializer.fingerprint,
            "images": sources["train"].describe(),
            "evaluate": config.evaluate.to_dict(),
        },
        "notes": [note for note in (config.note, *remarks) if note],
    }
    summary = finite(summary)
    write_json(workdir / "summary.json", summary)
    forget_others(ledger.path)
    for entry in summary["finetune"]:
        console.print(
            f"{entry['network']}  {entry['fraction']:.0%} of the labels  {entry['start']:<9} "
            f"AUC {entry['best_mean']:.3f}  (rate {entry['learning_rate']:g})",
            highlight=False,
            soft_wrap=True,
        )
    return cluster.once(lambda: summary)


def _asks_rotation(config: ml_collections.ConfigDict) -> bool:
    """Says whether networks are listed, and trained to answer rotation with their classifier."""
    names = {name.strip() for name in str(config.pretext.name).split("+")}
    listed = any(config.evaluate.splits.values()) or config.evaluate.resnets
    return bool(listed) and bool(names & {"rotation", "hard_rotation"})


def _what_enters(settings: ml_collections.ConfigDict) -> str:
    """Says which tensors take predicted values."""
    share, noise = settings.depth_fraction, settings.init_noise
    which = "All tensors" if share == 1 else f"The first {share:.0%} of the tensors"
    if len(settings.kinds) < len(KINDS):
        which += f" (of these {', '.join(settings.kinds)} only)"
    added = f", plus noise of {noise:g} of their standard deviation" if noise else ""
    added += ", filters made orthogonal" if settings.orthogonal else ""
    if settings.deviation == "default":
        added += ", scaled to the deviation of the network's own initialization"
    return (
        f"{which} of a fine-tuned network take predicted (or permuted) values{added}; the others, "
        "and always the classifier, keep the network's own initialization."
    )


def _predicted(
    config: ml_collections.ConfigDict,
    initializer: Initializer,
    bilevel: Bilevel,
    sources: dict[str, Source],
    ledger: Ledger,
    console: Console,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parts `rotation_accuracy` and `diagnostics`; {} where they are not asked for."""
    rotation = _Rotation(config, initializer, bilevel, sources) if _asks_rotation(config) else None
    pieces = rotation.pieces() if rotation else {}
    settings = config.evaluate.diagnostics
    key = f"diagnostics/{json.dumps(settings.to_dict(), sort_keys=True, default=list)}"
    if settings.networks:
        pieces[key] = lambda: diagnose(config, bilevel, initializer.theta, sources["test"])
    with Progress("predicted networks", len(pieces), console, unit="parts") as bar:
        count = itertools.count(1)
        ledger.divide(pieces, lambda name: bar.update(next(count)))
    return (
        rotation.result(ledger, console) if rotation else {},
        ledger[key] if settings.networks else {},
    )


class _Rotation:
    """Rotation accuracy of predicted and of untrained networks, in pieces."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        initializer: Initializer,
        bilevel: Bilevel,
        sources: dict[str, Source],
    ):
        self.config, self.bilevel, self.sources = config, bilevel, sources
        settings = config.evaluate
        self.parts = names_of(settings.splits, bilevel.space.size, settings.resnets)
        self.thetas = {
            "trained": initializer.theta,
            "untrained": untrained_theta(bilevel.module, config.seed),
        }
        self.ridge_key = f"ridge/{settings.batches}/{settings.ridge_images}"
        self.views = functools.cache(self._views)

    def _views(self) -> Views:
        return held_out_views(self.bilevel, self.sources["test"], self.config.evaluate.batches)

    def pieces(self) -> dict[str, Callable[[], Any]]:
        """Returns what is found by itself: the ridge figure, and each meta-batch of networks."""
        found: dict[str, Callable[[], Any]] = {self.ridge_key: self._ridge}
        for names in self.parts.values():
            for role in self.thetas:
                for key, part, size in self._keys(names, role):
                    found[key] = functools.partial(self._score, role, part, size)
        return found

    def _keys(self, names: list[str], role: str) -> list[tuple[str, list[str], int]]:
        """Returns (key, names, networks written at once) of each meta-batch."""
        parts = meta_batches(names, self.config)
        size, start = len(parts[0]), f"rotation/{self.config.evaluate.batches}/{role}"
        return [(f"{start}/{size}/{','.join(part)}", part, size) for part in parts]

    def _ridge(self) -> float:
        train, test = self.sources["train"], self.sources["test"]
        images = self.config.evaluate.ridge_images
        return ridge_figure(self.config, train, test, self.views(), images)

    def _score(self, role: str, names: list[str], size: int) -> dict[str, Any]:
        classes, space = self.bilevel.module.num_classes, self.bilevel.space
        programs = {name: by_name(name, classes, space).program for name in names}
        return score(self.bilevel, self.thetas[role], programs, self.views(), size)._asdict()

    def result(self, ledger: Ledger, console: Console) -> dict[str, Any]:
        """Returns the part `rotation_accuracy` of the summary, and shows it."""
        chance = 1 / self.bilevel.objective.num_targets
        result: dict[str, Any] = {"ridge": ledger[self.ridge_key], "chance": chance}
        for part, names in self.parts.items():
            figures, untrained = (
                summarize(
                    names,
                    [Scores(**ledger[key]) for key, *_ in self._keys(names, role)],
                    self.views(),
                )
                for role in self.thetas
            )
            families = families_of(names, self.bilevel.space)
            result[part] = {**figures, "untrained_mean": untrained["mean"], "families": families}
            console.print(
                f"rotation accuracy {part}: mean {figures['mean']:.3f}, least "
                f"{figures['min']:.3f}, untrained {untrained['mean']:.3f}, ridge on thumbnails "
                f"{result['ridge']:.3f}, chance {chance:.2f}",
                highlight=False,
                soft_wrap=True,
            )
        return result


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
