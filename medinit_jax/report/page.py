"""One self-contained page that says what a run was worth, and what it does not show."""

from pathlib import Path
from typing import Any

from medinit_jax.report import sections, verdict
from medinit_jax.report.diagnostics import diagnostics
from medinit_jax.report.document import document, write_page
from medinit_jax.report.markup import (
    DASH,
    Html,
    count,
    duration,
    element,
    fixed,
    is_number,
    percent,
    spread,
)
from medinit_jax.report.workdir import Record, part, read_workdir

# A mean below this is called chance: the share of networks under it is part of the summary.
_AT_CHANCE = 0.35


def write_report(workdir: str | Path) -> Path:
    """Write `report.html` from what a run left in its workdir.

    Args:
        workdir: a folder with `summary.json`, and as far as present `config.json`,
            `metrics.jsonl`, `samples.npz` and `parameters.json`; what is absent is named on the
            page.

    Returns:
        The path of the page: one file that loads nothing.

    Raises:
        UsageError: `summary.json` is missing or unreadable.
    """
    return write_page(Path(workdir), render(read_workdir(workdir)))


def render(record: Record) -> Html:
    """The whole page.

    Args:
        record: of `read_workdir`.

    Returns:
        An HTML document.
    """
    return document(
        f"{record.name}: report",
        opening(record),
        sections.differences(record),
        sections.convergence(record),
        sections.probe(record),
        sections.learned(record),
        sections.rotation(record),
        sections.images(record),
        sections.weights(record),
        diagnostics(record),
        limits(record),
        sections.numbers(record),
        sections.provenance(record),
        element("footer", "Written by medinit_jax from summary.json in the same folder."),
    )


def title(record: Record) -> str:
    """The headline: the verdict on fine-tuning, or what else the run shows."""
    found = verdict.compare_all(sections.entries(record, "finetune"))
    if found:
        return verdict.headline(found)
    found = verdict.compare_all(sections.entries(record, "probe"), verdict.seed_values)
    if found:
        return (
            f"In a frozen probe: {verdict.headline(found)[0].lower()}{verdict.headline(found)[1:]}"
        )
    mean = _validation(record).get("mean")
    if is_number(mean):
        return f"Unseen networks with predicted parameters tell {fixed(mean, 2)} of rotations."
    return "A run without an evaluation."


def opening(record: Record) -> Html:
    """Headline, the same with figures, alarms, and the figures at a glance."""
    runs = sections.entries(record, "finetune")
    origin = part(record.summary, "provenance", dict)
    kicker = " · ".join(
        str(v)
        for v in ("medinit_jax", record.name, origin.get("config_name"), origin.get("date"))
        if v
    )
    found = verdict.compare_all(runs)
    lead = f"Fine-tuning: {sections.ABSENT}."
    if runs:
        lead = f"{_scope(runs)} {verdict.sentence(found)}"
    notes = [note for note in part(record.summary, "notes", list) if isinstance(note, str)]
    return element(
        "header",
        element("p", kicker, class_="kicker"),
        element("h1", title(record)),
        [element("p", alarm, class_="alarm", role="alert") for alarm in alarms(record)],
        element("p", lead, class_="lead"),
        element("p", verdict.reading(found), class_="lead") if verdict.reading(found) else None,
        [element("p", note) for note in notes],
        _tiles(record),
    )


def alarms(record: Record) -> list[str]:
    """What a reader must know before any figure."""
    found = []
    mean = _validation(record).get("mean")
    chance = part(record.summary, "rotation_accuracy", dict).get("chance")
    if is_number(mean) and mean < _AT_CHANCE:
        found.append(
            f"The hypernetwork did not leave chance: rotation accuracy {fixed(mean)} on unseen "
            f"networks, chance {fixed(chance, 2)}. The comparison below says nothing about a "
            "trained one. Train longer or from an easier start."
        )
    train = part(record.summary, "train", dict)
    skipped, steps = train.get("skipped_steps"), train.get("steps")
    if is_number(skipped) and is_number(steps) and steps and skipped / steps > 0.02:
        found.append(f"{count(skipped)} of {count(steps)} steps were skipped as not finite.")
    return found


def limits(record: Record) -> Html:
    """What limits the run, from its figures, and how to read the page."""
    terms = (
        ("Hyper-initializer", "The trained hypernetwork reads the architecture and writes every "
         "parameter but the classifier’s, which is always the model’s own."),
        ("Random (He)", "The network’s own initialization: what one would use otherwise."),
        ("Matched statistics", "The predicted values, permuted within each tensor. If the "
         "hyper-initializer does not beat it, scale alone may explain a gain over random."),
        ("Untrained hypernetwork", "The same predictor before its training. If it is not beaten, "
         "training is not shown to matter."),
        ("Beats, does not beat", "A start beats another if the 95\u00a0% interval of the paired "
         "difference over seeds lies above zero. Otherwise nothing is claimed, which is not the "
         "same as being equal. The comparisons are not corrected for their number."),
        ("Last and best epoch", "The verdict is on the last epoch, which needs no choice. Best "
         "epoch means the test figure at the best validation epoch."),
    )  # fmt: skip
    items = [element("li", item) for item in limiting(record)]
    return element(
        "section",
        element("h2", "What limits it, and how to read it"),
        element("ul", items, class_="prose") if items else None,
        element("h3", "How to read it"),
        element("dl", [[element("dt", t), element("dd", d)] for t, d in terms], class_="terms"),
    )


def limiting(record: Record) -> list[str]:
    """Sentences on what narrows the conclusions, each one only where the figures call for it."""
    found = []
    rotation = part(record.summary, "rotation_accuracy", dict)
    validation, ridge = _validation(record), rotation.get("ridge")
    mean, low = validation.get("mean"), validation.get("share_below_035")
    if is_number(ridge) and is_number(mean):
        if mean > ridge:
            found.append(
                f"Ridge regression on 8 × 8 thumbnails tells {fixed(ridge)} of the rotations; the "
                f"unseen networks tell {fixed(mean)}. Only what lies above the thumbnail asks for "
                "more than coarse layout."
            )
        else:
            found.append(
                f"The unseen networks ({fixed(mean)}) do not exceed ridge regression on 8 × 8 "
                f"thumbnails ({fixed(ridge)}): nothing shows that more than coarse layout was "
                "learned."
            )
    if is_number(low) and low > 0:
        found.append(f"{percent(low)} of the validation networks stay under 0.35.")
    train = part(record.summary, "train", dict)
    if "published_step" in train:
        found.append(
            f"Labels of training and validation images chose step {train['published_step']} to be "
            "published (config.train.probe says how many); the other starts had no such help."
        )
    runs = sections.entries(record, "finetune")
    comparisons = verdict.compare_all(runs)
    random = next((c for c in comparisons if c.other == "random"), None)
    if random is not None:
        seeds, low_end, high_end = (
            random.difference.count,
            random.difference.low,
            random.difference.high,
        )
        if is_number(low_end):
            found.append(
                f"With {seeds} seeds a difference from random initialization smaller than about "
                f"{fixed((high_end - low_end) / 2)} cannot be told from none."
            )
        else:
            found.append("With one seed no spread is known, so no difference can be claimed.")
        if random.settings == 1:
            found.append("One network at one share of labels: nothing here speaks for others.")
    images = part(part(record.summary, "provenance", dict), "images", dict)
    if "phantom" in str(images.get("source")).lower():
        found.append(
            "The images are phantoms, drawn by a program. They show that the method runs and what "
            "it does on drawings, not what it does on patients."
        )
    skipped = part(record.summary, "train", dict).get("skipped_steps")
    if is_number(skipped) and skipped > 0:
        found.append(f"Training steps skipped because loss or gradient was not finite: {skipped}.")
    return found


def _scope(runs: list[dict[str, Any]]) -> str:
    """What was compared, in one sentence."""
    networks = list(dict.fromkeys(str(run.get("network")) for run in runs))
    shares = sorted({run["fraction"] for run in runs if is_number(run.get("fraction"))})
    names = verdict.listed(networks) if len(networks) <= 3 else f"{len(networks)} networks"
    percents = verdict.listed([percent(share) for share in shares])
    return (
        f"Fine-tuning {names} with {percents} of the labels, AUC on the test images after the "
        "last epoch."
    )


def _validation(record: Record) -> dict[str, Any]:
    return part(part(record.summary, "rotation_accuracy", dict), "val", dict)


def _tiles(record: Record) -> Html:
    rotation = part(record.summary, "rotation_accuracy", dict)
    validation, train = _validation(record), part(record.summary, "train", dict)
    runs = sections.entries(record, "finetune")
    first = runs[0] if runs else {}
    same = {
        str(run.get("start")): run for run in runs if verdict.setting(run) == verdict.setting(first)
    }
    hyper, random = same.get("hyper", {}), same.get("random", {})
    tiles = (
        (fixed(validation.get("mean"), 2), "rotation accuracy of unseen networks, "
         f"{count(validation.get('n'))} of the validation split"),
        (fixed(rotation.get("ridge"), 2), "ridge regression on thumbnails; chance is "
         f"{fixed(rotation.get('chance'), 2)}"),
        (fixed(hyper.get("final_mean")), f"test AUC of {first.get('network')} from the "
         "hyper-initializer, random "
         f"{spread(random.get('final_mean'), random.get('final_sd'))}"),
        (duration(train.get("seconds")), f"of training, {count(train.get('architectures'))} "
         "architectures seen"),
    )  # fmt: skip
    return element(
        "div",
        [element("div", element("b", value), element("span", name), class_="tile")
         for value, name in tiles if value != DASH],
        class_="tiles",
    )  # fmt: skip
