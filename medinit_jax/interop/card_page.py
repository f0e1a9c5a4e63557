"""`CARD.md`: a card as a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medinit_jax.interop.preprocessing import UNKNOWN

PAGE = "CARD.md"


def card_page(card: Mapping[str, Any]) -> str:
    """Returns a card in Markdown.

    Args:
        card: Of `card.make_card`.
    """
    net, seen, data = card["architecture"], card["preprocessing"], card["data"]
    side = " x ".join(map(str, net["input_shape"]))
    options = ", ".join(f"{key}={value}" for key, value in net["options"].items())
    parts = [
        f"# {net['name']}: {card['what']}",
        card["use"],
        "## Architecture",
        _table(
            {
                "network": net["name"] + (f" ({options})" if options else ""),
                "images": f"{side} (height, width, channels)",
                "parameters": f"{net['parameters']:,}",
                "answers": _answers(card["answers"]),
                "names of tensors": net["layout"],
            }
        ),
        "## What has to be done to an image",
        seen["steps"],
        _table({key: _text(seen[key]) for key in ("channels", "range", "mean", "std", "axes")}),
        "## Load it",
        _code("PyTorch", card["loading"]["pytorch"]),
        _code("Flax", card["loading"]["flax"]),
        "## Proof",
        _proof(card["proof"]),
        "## Images",
        f"Task: {data['task']}; modality: {data['modality']}.",
        _images(data["parts"]),
        "## Figures",
        _metrics(card["metrics"]),
        "## Training",
        _table(
            {
                "start": _start(card["training"]["start"]),
                **{
                    key.replace("_", " "): _text(card["training"][key])
                    for key in ("epochs", "steps", "code_version", "command", "date", "device")
                },
            }
        ),
        "The whole configuration stands in `card.json`.",
        "## License",
        f"Weights: {card['license']['weights']}. Code: {card['license']['code']}.",
        "## Limits",
        "\n".join(f"- {line}" for line in card["limits"]),
        "## Files",
        _files(card["files"]),
        f"Exported on {card['exported']['date']} by {card['exported']['code_version']}: "
        f"`{card['exported']['command']}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _code(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return "\n".join([f"{title}, in this folder:", "", "```python", *lines, "```"])


def _answers(answers: Any) -> str:
    if isinstance(answers, str):
        return answers
    return "; ".join(
        f"{head['name']} ({head['kind']}): {', '.join(head['classes'])}" for head in answers
    )


def _start(start: Any) -> str:
    if not isinstance(start, Mapping):
        return _text(start)
    name, path = start.get("name", UNKNOWN), start.get("path")
    return f"{name} ({path})" if path else _text(name)


def _proof(proof: Mapping[str, Any]) -> str:
    if "reason" in proof:
        return f"{proof['status'].capitalize()}: {proof['reason']}."
    versions = ", ".join(f"{name} {number}" for name, number in proof.get("versions", {}).items())
    first = f"{proof['status'].capitalize()}: `{proof['class']}`, {proof['inputs']}"
    lines = [f"{first} ({versions})." if versions else f"{first}."]
    for name in ("logits", "features"):
        if name in proof:
            found = proof[name]
            lines.append(
                f"- {name}: largest difference {_text(found['absolute'])}, that is "
                f"{_text(found['relative'])} of their range (at most {proof['tolerance']:g})"
            )
    if "test" in proof:
        found = proof["test"]
        lines.append(
            f"- {found['metric']} of {found['images']} test images: {_text(found['here'])} here, "
            f"{_text(found['pytorch'])} in PyTorch"
        )
    return "\n".join(lines)


def _images(parts: Any) -> str:
    if not isinstance(parts, Mapping):
        return f"Images: {parts}."
    lines = ["| part | images | source | SHA-256 | license |", "|---|---|---|---|---|"]
    for name, part in parts.items():
        cells = [part.get(key, UNKNOWN) for key in ("count", "source", "sha256", "license")]
        lines.append(f"| {name} | {' | '.join(_text(cell or UNKNOWN) for cell in cells)} |")
    return "\n".join(lines)


def _metrics(metrics: Any) -> str:
    if not isinstance(metrics, Mapping):
        return f"{metrics.capitalize()}."
    low, high = metrics["interval"]
    return (
        f"{metrics['name']}: {_text(metrics['value'])} [{_text(low)}, {_text(high)}] "
        f"({metrics['interval_is']}) on {metrics['images']} test images, by the weights of epoch "
        f"{metrics['epoch']}, which validated best ({_text(metrics['validation'])}). All figures "
        "stand in `card.json`."
    )


def _files(files: Mapping[str, Any]) -> str:
    lines = ["| file | bytes | SHA-256 |", "|---|---|---|"]
    lines += [f"| {name} | {what['bytes']} | {what['sha256']} |" for name, what in files.items()]
    return "\n".join(lines)
