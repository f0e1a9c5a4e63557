"""Shows what a trained hypernetwork is worth: rotation accuracy, fine-tuning, frozen probes.

Everything that takes long is kept in `evaluation.json` as it comes, so that a second run goes on
where the first stopped; `summary.json` is written last and in one move.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.api import Initializer, load
from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import Ledger, finite
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.parameters import INITIALIZER_FOLDER
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import provenance
from medinit_jax.core.workdir import write_arrays, write_json
from medinit_jax.data.sources import Source
from medinit_jax.downstream.pool import open_pool
from medinit_jax.hyper.comparison import compare
from medinit_jax.hyper.diagnostics import diagnose, families_of
from medinit_jax.hyper.rotation import (
    held_out_views,
    names_of,
    ridge_figure,
    rotation_accuracy,
    samples,
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
        bilevel: What training ran on, to use its compiled blocks again; made anew by default.

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
    bilevel = bilevel or make_bilevel(config, Parallel())
    sources = open_sources(config, console)
    ledger = Ledger(workdir / "evaluation.json", initializer.fingerprint)
    rotation: dict[str, Any] = {}
    if _asks_rotation(config):
        rotation = _rotation(config, initializer, bilevel, sources, ledger, console)
    remarks = []
    found: dict[str, Any] = {"finetune": [], "probe": [], "parameters": {}}
    if config.evaluate.downstream.networks:
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
    write_json(workdir / "parameters.json", finite(found["parameters"]))
    write_arrays(workdir / "samples.npz", samples(config, sources["test"], SAMPLES))
    summary = {
        "rotation_accuracy": rotation,
        "finetune": found["finetune"],
        "probe": found["probe"],
        "diagnostics": _diagnostics(config, initializer, bilevel, sources, ledger),
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
    for entry in summary["finetune"]:
        console.print(
            f"{entry['network']}  {entry['fraction']:.0%} of the labels  {entry['start']:<9} "
            f"AUC {entry['best_mean']:.3f}  (rate {entry['learning_rate']:g})",
            highlight=False,
            soft_wrap=True,
        )
    return summary


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


def _diagnostics(
    config: ml_collections.ConfigDict,
    initializer: Initializer,
    bilevel: Bilevel,
    sources: dict[str, Source],
    ledger: Ledger,
) -> dict[str, Any]:
    """Returns the part `diagnostics` of the summary; {} if none are asked for."""
    settings = config.evaluate.diagnostics
    if not settings.networks:
        return {}
    key = f"diagnostics/{json.dumps(settings.to_dict(), sort_keys=True, default=list)}"
    if key not in ledger:
        ledger.add(key, diagnose(config, bilevel, initializer.theta, sources["test"]))
    return ledger[key]


def _rotation(
    config: ml_collections.ConfigDict,
    initializer: Initializer,
    bilevel: Bilevel,
    sources: dict[str, Source],
    ledger: Ledger,
    console: Console,
) -> dict[str, Any]:
    """Returns the part `rotation_accuracy` of the summary."""
    settings = config.evaluate
    views = held_out_views(bilevel, sources["test"], settings.batches)
    ridge_key = f"ridge/{settings.batches}/{settings.ridge_images}"
    if ridge_key not in ledger:
        ridge = ridge_figure(
            config, sources["train"], sources["test"], views, settings.ridge_images
        )
        ledger.add(ridge_key, ridge)
    result: dict[str, Any] = {
        "ridge": ledger[ridge_key],
        "chance": 1 / bilevel.objective.num_targets,
    }
    parts = names_of(settings.splits, bilevel.space.size, settings.resnets)
    untrained = untrained_theta(bilevel.module, config.seed)
    total = 2 * sum(map(len, parts.values()))
    done = 0
    with Progress("rotation", total, console, unit="networks") as bar:
        for part, names in parts.items():
            key = f"rotation/{settings.batches}/{','.join(names)}"
            if key not in ledger:
                programs = {
                    name: by_name(name, bilevel.module.num_classes, bilevel.space).program
                    for name in names
                }
                figures, control = (
                    rotation_accuracy(
                        bilevel, theta, programs, views, lambda n, b=base: bar.update(b + n)
                    )
                    for theta, base in (
                        (initializer.theta, done),
                        (untrained, done + len(names)),
                    )
                )
                families = families_of(names, bilevel.space)
                ledger.add(
                    key, {**figures, "untrained_mean": control["mean"], "families": families}
                )
            done += 2 * len(names)
            result[part] = ledger[key]
            bar.update(done, **{part: f"{result[part]['mean']:.3f}"})
    for part in parts:
        figures = result[part]
        console.print(
            f"rotation accuracy {part}: mean {figures['mean']:.3f}, least {figures['min']:.3f}, "
            f"untrained {figures['untrained_mean']:.3f}, ridge on thumbnails "
            f"{result['ridge']:.3f}, chance {result['chance']:.2f}",
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
