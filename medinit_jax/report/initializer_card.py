"""The card of a released initializer: what it was trained on, what was measured, what to expect."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import CONFIG_FILE
from medinit_jax.downstream.metrics import mean_sd, paired_difference
from medinit_jax.report.markup import DASH, fixed, is_number, percent, signed
from medinit_jax.report.verdict import NAMES, compare_all, headline, last_epoch, reading

LICENSE = "Apache-2.0"
DRAWN = "Trained on drawn images only; it never saw a photograph of a patient."
# Where files lay on the machine that trained it is nobody else's business.
PLACES = ("workdir", "config.cache_dir", "config.init_from", "config.data.data_dir",
          "config.data.path", "config.data.table.root")  # fmt: skip
LIMITS = (
    "Research software, no medical device; nothing was validated for patients.",
    "Judged on networks of its own design space and on images like those it was trained on; what "
    "it writes for other networks or real photographs was not measured by this run.",
    "Every layer wider than its tiles is made of copies of them, see hyper.max_shape and "
    "hyper.tiling in card.json.",
    "The classifier is not predicted, and the learning rate has to be searched anew.",
)


def card(workdir: Path, metadata: Mapping[str, Any], fingerprint: str, name: str) -> dict[str, Any]:
    """Collects what a run left about its initializer.

    Args:
        workdir: Of a run of route `hyper` whose stages train and evaluate are done.
        metadata: Of the initializer.
        fingerprint: SHA-256 of its parameters.
        name: Under which it is released.

    Returns:
        A JSON object. Intervals are 95 % and Student's t, over networks or over seeds.

    Raises:
        UsageError: A file of the run is missing, or tells of another initializer.
    """
    summary = _read(workdir, "summary.json", "evaluate")
    config = _read(workdir, CONFIG_FILE, "train")
    trained = _read(workdir, "train.json", "train")
    provenance = summary["provenance"]
    if provenance["theta_sha256"] != fingerprint:
        raise UsageError(
            f"{workdir / 'summary.json'} tells of another initializer; run the stage evaluate "
            "again."
        )
    entries = summary.get("finetune") or []
    drawn = config["config"]["data"]["source"] == "phantom"
    return {
        "name": name,
        "license": LICENSE,
        "code_version": metadata["code_version"],
        "date": provenance["date"],
        "theta_sha256": fingerprint,
        "training": {
            "modality": metadata["modality"],
            "drawn": drawn,
            "images": provenance["images"]["count"],
            "images_source": provenance["images"]["source"],
            "images_sha256": provenance["images"]["sha256"],
            "labels": _labels(config["config"]),
            "steps": trained["steps"],
            "architectures": trained["architectures"],
            "skipped_steps": trained["skipped_steps"],
            "seconds": trained["seconds"],
            "command": _command(provenance["command"]),
            "device": provenance["device"],
            "config": _without_places(config["config"]),
            "notes": summary.get("notes") or [],
        },
        "preprocessing": metadata["preprocessing"],
        "rotation_accuracy": _accuracy(summary["rotation_accuracy"]),
        "fine_tuning": [_tuned(entry) for entry in entries],
        "differences": [
            {
                "over": comparison.other,
                "outcome": comparison.outcome,
                "mean": comparison.difference.mean,
                "interval": _ends(comparison.difference.low, comparison.difference.high),
                "seeds": comparison.difference.count,
                "settings": comparison.settings,
            }
            for comparison in compare_all(entries)
        ],
        "reading": f"{headline(compare_all(entries))} {reading(compare_all(entries))}".strip(),
        "limits": [*([DRAWN] if drawn else []), *LIMITS],
    }


def markdown(card: Mapping[str, Any]) -> str:
    """Returns a card for people.

    Args:
        card: Of `card`.
    """
    training, accuracy = card["training"], card["rotation_accuracy"]
    preprocessing = card["preprocessing"]
    size = preprocessing["size"]
    channels = len(preprocessing["mean"])
    lines = [
        f"# {card['name']}",
        "",
        "A trained hyper-initializer of `medinit_jax`: it reads the architecture of a network and "
        f"writes its parameters. Trained on {training['images']} "
        f"{'drawn ' if training['drawn'] else ''}{training['modality']} images, "
        f"{_said(training['labels'])}.",
        "",
        "## Load it",
        "",
        "PyTorch:",
        "",
        "```python",
        "import medinit_jax, torch",
        "from medinit_jax.interop.torch import initialize",
        f'initializer = medinit_jax.load("{card["name"]}")',
        f"initialize(model, torch.zeros(2, {channels}, {size}, {size}), initializer)",
        "```",
        "",
        "Flax:",
        "",
        "```python",
        "import medinit_jax, jax.numpy as jnp",
        f'initializer = medinit_jax.load("{card["name"]}")',
        f"images = jnp.zeros((2, {size}, {size}, {channels}))",
        "variables = medinit_jax.initialize(model, images, initializer)",
        "```",
        "",
        f"`python -m medinit_jax.release install FILE.zip` makes the name `{card['name']}` known; "
        "the path of the .zip does as well.",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        f"| images | {training['images']} ({training['images_source']}), "
        f"{_said(training['labels'])} |",
        f"| networks | {training['architectures']}, in {training['steps']} steps, of them "
        f"{training['skipped_steps']} skipped |",
        f"| time | {training['seconds']:.0f} s on {training['device']} |",
        f"| command | `{training['command']}` |",
        f"| code | {card['code_version']}, {card['date']} |",
        f"| images as it saw them | {size} px, {preprocessing['channels']}, "
        f"{preprocessing['range']}; mean {_numbers(preprocessing['mean'])}, "
        f"deviation {_numbers(preprocessing['std'])} |",
        f"| license | {card['license']} |",
        f"| SHA-256 of the parameters | `{card['theta_sha256']}` |",
        "",
        "The whole configuration is in `card.json`, without the places of files.",
        "",
        *(line for note in training["notes"] for line in (note, "")),
        *(_rotation(accuracy) if accuracy else ()),
        "## Fine-tuning from four starts",
        "",
        *_tuning(card),
        "## Limits",
        "",
        *(f"- {limit}" for limit in card["limits"]),
        "",
    ]
    return "\n".join(lines)


def _tuning(card: Mapping[str, Any]) -> list[str]:
    if not card["fine_tuning"]:
        return ["Not measured by this run.", ""]
    rows = [
        f"| `{row['network']}` | {percent(row['fraction'])} | {NAMES[row['start']]} "
        f"| {row['learning_rate']:g} | {row['seeds']} | {fixed(row['mean'])} | {_interval(row)} |"
        for row in card["fine_tuning"]
    ]
    differences = [
        f"- over {NAMES[row['over']]}: {signed(row['mean'])}, 95 % interval "
        f"{_interval(row, signed)}, paired over {row['seeds']} seeds"
        for row in card["differences"]
    ]
    return [
        "Test AUC after the last epoch, over seeds; one seed has no interval:",
        "",
        "| network | labels | start | learning rate | seeds | mean | 95 % interval |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "The hyper-initializer",
        "",
        *differences,
        "",
        card["reading"],
        "",
    ]


def _labels(config: Mapping[str, Any]) -> list[str]:
    """Returns the keys by which training looked at labels; most pretexts do without."""
    pretext, train = config.get("pretext", {}), config.get("train", {})
    names = [name.strip() for name in str(pretext.get("name", "")).split("+")]
    found = ["config.pretext.name=weak_labels"] if "weak_labels" in names else []
    scheme = pretext.get("patches", {}).get("scheme", "")
    if "patches" in names and ("abnormality" in scheme or scheme == "all"):
        found.append(f"config.pretext.patches.scheme={scheme}")
    select, drawn = train.get("select"), config.get("data", {}).get("source") == "phantom"
    if select == "probe" or (select == "auto" and drawn):
        found.append(f"config.train.select={select}")
    return found


def _said(labels: Sequence[str]) -> str:
    return f"with labels ({', '.join(labels)})" if labels else "without labels"


def _rotation(accuracy: Mapping[str, Any]) -> list[str]:
    return [
        "## Accuracy of predicted, untrained networks",
        "",
        "By which of four right angles was an image turned? Networks that training never saw; "
        f"chance {fixed(accuracy['chance'])}, **ridge regression on thumbnails "
        f"{fixed(accuracy['ridge'])}**: what is no better has learned layout only.",
        "",
        "| networks | number | mean | 95 % interval | untrained hypernetwork |",
        "|---|---|---|---|---|",
        *(
            f"| `{split}` | {row['networks']} | {fixed(row['mean'])} | {_interval(row)} "
            f"| {fixed(row['untrained'])} |"
            for split, row in accuracy["splits"].items()
        ),
        "",
    ]


def _accuracy(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {} where networks were not trained to answer rotation."""
    if not found:
        return {}
    splits = {}
    for split, row in found.items():
        if isinstance(row, dict) and row.get("n"):
            splits[split] = {
                "networks": row["n"],
                **_spread([v for v in row["per_network"] if is_number(v)]),
                "untrained": row["untrained_mean"],
            }
    return {"chance": found["chance"], "ridge": found["ridge"], "splits": splits}


def _tuned(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("network", "fraction", "start", "learning_rate")}
    values = last_epoch(dict(entry))
    return {**kept, "seeds": len(values), **_spread(values)}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean and interval; None where there are too few values for one."""
    if not values:
        return {"mean": None, "interval": None}
    # The interval of one sample is that of its difference from zero.
    found = paired_difference(values, np.zeros(len(values)))
    return {"mean": mean_sd(values)[0].item(), "interval": _ends(found.low, found.high)}


def _ends(low: float, high: float) -> list[float] | None:
    return [low, high] if np.isfinite([low, high]).all() else None


def _interval(row: Mapping[str, Any], form: Any = fixed) -> str:
    ends = row["interval"]
    return f"{form(ends[0])} to {form(ends[1])}" if ends else DASH


def _command(command: str) -> str:
    """Returns the command line of a run without its places."""
    arguments = [
        argument
        for argument in shlex.split(command)[1:]
        if not argument.startswith(tuple(f"--{place}=" for place in PLACES))
    ]
    return shlex.join(["python", "-m", "medinit_jax.main", *arguments])


def _without_places(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    return {
        key: _without_places(value, f"{prefix}.{key}") if isinstance(value, dict) else value
        for key, value in config.items()
        if f"{prefix}.{key}" not in PLACES
    }


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _read(workdir: Path, file: str, stage: str) -> dict[str, Any]:
    try:
        return json.loads((workdir / file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{workdir} has no {file}; name the workdir of a run of route hyper, and run its stage "
            f"{stage} first."
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{workdir / file} cannot be read ({error}); run the stage {stage} again."
        ) from error
