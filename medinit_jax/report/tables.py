"""The tables of the page: every number of the summary, in boxes that scroll by themselves."""

from collections.abc import Sequence
from typing import Any

from medinit_jax.downstream.metrics import Difference
from medinit_jax.report.looks import look
from medinit_jax.report.markup import (
    DASH,
    Html,
    count,
    duration,
    element,
    fixed,
    is_number,
    percent,
    signed,
    spread,
)
from medinit_jax.report.training import SPLITS, network_figures, split_names
from medinit_jax.report.verdict import NAMES, UNKNOWN, Comparison, curves, seed_values

_SPLIT_COLUMNS = ("mean", "min", "share_below_035", "n", "untrained_mean", "per_network")
_TRAIN_NAMES = {
    "steps": "steps",
    "seconds": "seconds",
    "architectures": "architectures seen",
    "skipped_steps": "steps skipped, not finite",
    "takeoff_step": "left chance at step",
    "final_loss": "loss at the end",
    "curve_file": "curve",
}


def table(
    caption: str, heads: Sequence[Any], rows: Sequence[Sequence[Any]], texts: int = 1
) -> Html:
    """A table in a box that scrolls sideways on its own.

    Args:
        caption: what it holds.
        heads: column heads.
        rows: cells; text is escaped.
        texts: so many first columns are text and align left, the others are figures.

    Returns:
        The box.
    """

    def line(cells: Sequence[Any], tag: str) -> Html:
        return element(
            "tr",
            [
                element(
                    tag if i else "th",
                    cell,
                    class_=("text wrap" if texts == 1 else "text") if i < texts else None,
                    scope=("col" if tag == "th" else "row") if tag == "th" or i == 0 else None,
                )
                for i, cell in enumerate(cells)
            ],
        )

    box = element(
        "div",
        element(
            "table",
            element("thead", line(heads, "th")),
            element("tbody", [line(row, "td") for row in rows]),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )
    # The caption stands outside the box, so that it wraps instead of scrolling away.
    return element("div", element("p", caption, class_="caption"), box, class_="table")


def facts(rows: Sequence[tuple[str, Any]], short: bool = False) -> Html:
    """Names and values, one a line; short values stay beside their names on a phone."""
    pairs = [[element("dt", k), element("dd", v)] for k, v in rows]
    return element("dl", pairs, class_="facts short" if short else "facts")


def folded(title: str, *content: Any) -> Html:
    """Content behind a title that opens it."""
    return element("details", element("summary", title), *content)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dicts and lists as dotted names and text."""
    if isinstance(value, dict) and value:
        rows: list[tuple[str, str]] = []
        for key, item in value.items():
            rows += flat(item, f"{prefix}.{key}" if prefix else str(key))
        return rows
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (dict, list)) for item in value):
            rows = []
            for i, item in enumerate(value):
                rows += flat(item, f"{prefix}.{i}")
            return rows
        return [(prefix, ", ".join(plain(item) for item in value) or DASH)]
    return [(prefix, plain(value))]


def plain(value: Any) -> str:
    """A scalar as text, floats with at most six significant digits."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    return str(value)


def rotation_table(rotation: dict[str, Any]) -> list[Html]:
    """Accuracy by split with the two reference figures, and each network's behind a fold."""
    names = split_names(rotation)
    rows = []
    for name in names:
        split = rotation[name]
        rows.append(
            [
                SPLITS.get(name, name),
                count(split.get("n")),
                *(
                    fixed(split.get(k))
                    for k in ("mean", "min", "share_below_035", "untrained_mean")
                ),
            ]
        )
    for key, name in (("ridge", "ridge regression on thumbnails"), ("chance", "chance")):
        if is_number(rotation.get(key)):
            rows.append([name, "", fixed(rotation[key]), "", "", ""])
    single = [
        [SPLITS.get(n, n), ", ".join(fixed(v) for v in network_figures(rotation[n])) or DASH]
        for n in names
    ]
    heads = ("split", "networks", "mean", "minimum", "share under 0.35", "untrained mean")
    rest = {
        k: {name: item for name, item in v.items() if name not in _SPLIT_COLUMNS}
        if isinstance(v, dict)
        else v
        for k, v in rotation.items()
        if k not in ("ridge", "chance")
    }
    rest = {k: v for k, v in rest.items() if v != {}}
    extra = [facts(flat(rest))] if rest else []
    return [
        table("Rotation accuracy with predicted parameters", heads, rows),
        *extra,
        folded("Accuracy of every network", table("By network", ("split", "accuracy"), single, 2)),
    ]


def difference_table(comparisons: Sequence[Comparison], caption: str) -> Html:
    """The paired differences of the hyper start with each other one, and what they allow."""
    heads = ["hyper-initializer", "difference", "95\u00a0% interval", "sd", "seeds", "ahead in"]
    several = any(c.settings > 1 for c in comparisons)
    rows = []
    for c in comparisons:
        colon = ":" if c.outcome == UNKNOWN else ""
        cells = [
            f"{c.outcome}{colon} {NAMES[c.other]}",
            signed(c.difference.mean),
            _interval(c.difference),
            fixed(c.difference.sd),
            str(c.difference.count),
            f"{c.ahead} of {c.settings}",
        ]
        rows.append(cells if several else cells[:-1])
    return table(caption, heads if several else heads[:-1], rows)


def _interval(difference: Difference) -> str:
    if not is_number(difference.low):
        return DASH
    return f"{signed(difference.low)} to {signed(difference.high)}"


def finetune_table(entries: Sequence[dict[str, Any]]) -> Html:
    """Fine-tuning: the last epoch and the best validation epoch, mean and deviation over seeds."""
    heads = (
        "network", "labels", "start", "learning rate", "seeds", "last epoch", "best epoch"
    )  # fmt: skip
    rows = [
        [
            entry.get("network"),
            percent(entry.get("fraction")),
            look(str(entry.get("start"))).name,
            plain(entry.get("learning_rate")),
            str(len(curves(entry))),
            spread(entry.get("final_mean"), entry.get("final_sd")),
            spread(entry.get("best_mean"), entry.get("best_sd")),
        ]
        for entry in entries
    ]
    return table("Fine-tuning, test AUC", heads, rows, texts=3)


def curve_tables(entries: Sequence[dict[str, Any]]) -> list[Html]:
    """The test figure after every epoch, of the mean and of each seed."""
    tables = []
    for entry in entries:
        rows = [
            ["mean", *(fixed(v) for v in entry.get("mean") or [])],
            ["sd", *(fixed(v) for v in entry.get("sd") or [])],
        ]
        rows += [[f"seed {i}", *map(fixed, values)] for i, values in enumerate(curves(entry))]
        epochs = max(len(row) for row in rows) - 1
        rows = [row + [DASH] * (epochs + 1 - len(row)) for row in rows]
        start = look(str(entry.get("start"))).name
        caption = f"{entry.get('network')}, {percent(entry.get('fraction'))} of the labels, {start}"
        tables.append(table(caption, ["epoch", *range(1, epochs + 1)], rows))
    return tables


def probe_table(entries: Sequence[dict[str, Any]]) -> Html:
    """The frozen probe: mean, deviation and each seed."""
    heads = ("network", "labels", "depth", "start", "mean", "sd", "seeds")
    rows = [
        [
            entry.get("network"),
            percent(entry.get("fraction")),
            plain(entry.get("depth")),
            look(str(entry.get("start"))).name,
            fixed(entry.get("mean")),
            fixed(entry.get("sd")),
            ", ".join(fixed(v) for v in seed_values(entry)) or DASH,
        ]
        for entry in entries
    ]
    return table("Frozen ridge probe, test AUC", heads, rows, texts=4)


def training_facts(train: dict[str, Any]) -> Html:
    """What the training run did, under readable names."""
    rows = []
    for key, value in train.items():
        name = _TRAIN_NAMES.get(key, key)
        if key == "seconds":
            rows.append(("time", f"{duration(value)} ({fixed(value, 1)} s)"))
        elif key == "takeoff_step" and value is None:
            rows.append((name, "did not leave chance"))
        elif isinstance(value, int) and is_number(value):
            rows.append((name, count(value)))
        elif isinstance(value, (dict, list)):
            rows += flat(value, name)
        else:
            rows.append((name, fixed(value) if is_number(value) else plain(value)))
    return facts(rows, short=True)
