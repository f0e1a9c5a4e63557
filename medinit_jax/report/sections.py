"""The sections of the page, each from the part of the record that it needs."""

from collections.abc import Callable, Sequence
from typing import Any

from medinit_jax.report import parameters, pictures, starts, tables, training, verdict
from medinit_jax.report.looks import legend
from medinit_jax.report.markup import Html, element, fixed, is_number, percent
from medinit_jax.report.plot import NARROW, responsive
from medinit_jax.report.workdir import Record, part

ABSENT = "not run in this workdir"


def section(title: str, *content: Any) -> Html:
    """A titled section; without content it says that the part was not run."""
    kept = [c for c in content if c]
    body = kept or element("p", f"{ABSENT.capitalize()}.", class_="absent")
    return element("section", element("h2", title), body)


def figure(draw: Callable[[int], Html | None], *caption: Any) -> Html | None:
    """A drawing for both page widths with its caption; None if there is nothing to draw."""
    if draw(NARROW) is None:
        return None
    text = element("figcaption", *caption) if caption else None
    return element("figure", responsive(draw), text)  # pyright: ignore[reportArgumentType]


def entries(record: Record, key: str) -> list[dict[str, Any]]:
    """The entries of a list of the summary."""
    return [item for item in part(record.summary, key, list) if isinstance(item, dict)]


def differences(record: Record) -> Html:
    """What fine-tuning from each start is worth."""
    runs = entries(record, "finetune")
    found = verdict.compare_all(runs)
    course = verdict.compare_all(runs, verdict.mean_epoch)
    if not found:
        return section("What the start is worth")
    return section(
        "What the start is worth",
        figure(
            lambda width: starts.difference_figure(found, width),
            "Hyper-initializer minus each other start, AUC on the test images after the last "
            "epoch, paired over seeds. Bars are 95\u00a0% intervals of the mean difference "
            "(Student’s t). Where a bar crosses zero, no difference is shown.",
        ),
        tables.difference_table(found, "Test AUC after the last epoch, paired over seeds"),
        tables.difference_table(course, "The same, averaged over all epochs: who rises early"),
    )


def convergence(record: Record) -> Html:
    """Curves of fine-tuning, one panel per network and share of labels."""
    runs = [e for e in entries(record, "finetune") if e.get("mean")]
    if not runs:
        return section("Convergence")
    return section(
        "Convergence",
        element(
            "p",
            "Test AUC after each epoch of fine-tuning: mean over seeds, with a band of one "
            "standard deviation. Every start has the same budget, the same seeds and the same "
            "grid of learning rates, from which its rate was chosen on validation.",
        ),
        _panels(runs, starts.convergence_figure, _share_title),
    )


def probe(record: Record) -> Html:
    """The frozen probe by share of labels."""
    runs = entries(record, "probe")
    if not runs:
        return section("Frozen probe")
    found = verdict.compare_all(runs, verdict.seed_values)
    return section(
        "Frozen probe",
        element(
            "p",
            "The network is not trained at all: a ridge classifier reads its pooled features, "
            "after BatchNorm statistics were re-estimated on the labeled images for every start "
            "alike. Error bars are one standard deviation over seeds.",
        ),
        _panels(runs, starts.probe_figure, _depth_title),
        tables.difference_table(found, "Frozen probe, paired over seeds") if found else None,
    )


def learned(record: Record) -> Html:
    """The training curve."""
    train = part(record.summary, "train", dict)
    asked = str(part(part(record.config, "config", dict), "pretext", dict).get("name", "rotation"))
    asked = asked.replace("+", " and ").replace("_", " ")
    shown = "Drawn is rotation's loss. " if training.ROTATION_LOSS in record.metrics else ""
    takeoff = train.get("takeoff_step")
    text = None
    if "takeoff_step" in train and takeoff is None:
        text = "The loss never left its plateau at chance."
    elif is_number(takeoff) and is_number(train.get("steps")):
        text = (
            f"The loss stayed on its plateau for {tables.count(takeoff)} of "
            f"{tables.count(train['steps'])} steps."
        )
    return section(
        "Training the hypernetwork",
        figure(
            lambda width: training.training_figure(record.metrics, record.summary, width),
            "Each step predicts the parameters of fresh architectures and asks them the pretext of "
            f"the run, {asked}. {shown}Thin: means of consecutive steps; thick: smoothed further. ",
            text,
        )
        or (element("p", f"Training curve: {ABSENT}.", class_="absent") if train else None),
        tables.training_facts(train) if train else None,
    )


def rotation(record: Record) -> Html:
    """Accuracy with predicted parameters, by split."""
    figures = part(record.summary, "rotation_accuracy", dict)
    if not figures:
        return section("Rotation accuracy by split")
    ridge, chance = figures.get("ridge"), figures.get("chance")
    beside = [
        f"{name} {fixed(value)}"
        for name, value in (("Chance", chance), ("ridge regression on 8 × 8 thumbnails", ridge))
        if is_number(value)
    ]
    return section(
        "Rotation accuracy by split",
        element(
            "p",
            "Networks that were never in training, with predicted parameters and no training of "
            "their own, on held-out images; the first indices of every split, unfiltered. ",
            f"{', '.join(beside)}." if beside else None,
        ),
        figure(
            lambda width: training.split_figure(figures, width),
            "Bar: mean over networks, with its figure at the right. Dots: single networks; upright "
            "stroke: the worst. Thin bar beneath: the same networks from the hypernetwork before "
            "its training.",
        ),
        tables.rotation_table(figures),
    )


def images(record: Record) -> Html:
    """Sample images and the views that the pretext makes of them."""
    return section(
        "Images",
        [
            element(
                "p",
                "Images of the run and what the network is shown: each view is turned by the "
                "angle below it, which is what has to be told.",
            ),
            gallery,
        ]
        if (gallery := pictures.gallery(record.samples))
        else None,
    )


def weights(record: Record) -> Html:
    """Deviation of predicted and default weights by depth."""
    panels = [
        element(
            "div",
            element("h3", network),
            parameters.parameter_figure(str(network), tensors, NARROW),
            class_="panel",
        )
        for network, tensors in record.parameters.items()
        if parameters.parameter_figure(str(network), tensors, NARROW)
    ]
    if not panels:
        return section("Predicted parameters")
    return section(
        "Predicted parameters",
        element(
            "p",
            "Standard deviation of each weight tensor, log scale. Permuting the predicted values "
            "(matched statistics) leaves these figures as they are.",
        ),
        legend(("hyper", "random", "untrained")),
        element("div", panels, class_="panels"),
    )


def numbers(record: Record) -> Html:
    """Every number of the comparison."""
    runs, probes = entries(record, "finetune"), entries(record, "probe")
    known = {"rotation_accuracy", "finetune", "probe", "train", "provenance", "notes"}
    known.add("diagnostics")
    rest = {k: v for k, v in record.summary.items() if k not in known}
    return section(
        "Tables",
        tables.finetune_table(runs) if runs else None,
        tables.folded("Test AUC after every epoch", *tables.curve_tables(runs)) if runs else None,
        tables.probe_table(probes) if probes else None,
        [element("h3", "Other entries"), tables.facts(tables.flat(rest))] if rest else None,
    )


def provenance(record: Record) -> Html:
    """Where the numbers come from."""
    origin = part(record.summary, "provenance", dict)
    config = tables.flat(record.config) if record.config else []
    code = element("div", tables.facts(tables.flat(origin))) if origin else None
    return section(
        "Provenance",
        code,
        element("ul", [element("li", r) for r in record.remarks], class_="prose")
        if record.remarks
        else None,
        tables.folded("The whole config", tables.facts(config)) if config else None,
    )


def _panels(
    runs: Sequence[dict[str, Any]],
    draw: Callable[[Sequence[dict[str, Any]], str, int, Sequence[dict[str, Any]]], Html],
    title: Callable[[dict[str, Any]], str],
) -> list[Any]:
    """One panel per title: a single one takes the width of the page, several share it."""
    present = [s for s in verdict.NAMES if any(e.get("start") == s for e in runs)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(runs, key=lambda e: [*present, e.get("start")].index(e.get("start"))):
        groups.setdefault(title(entry), []).append(entry)
    panels = []
    for name in dict.fromkeys(title(entry) for entry in runs):
        members = groups[name]
        drawing = (
            responsive(lambda width, m=members, t=name: draw(m, t, width, runs))
            if len(groups) == 1
            else draw(members, name, NARROW, runs)
        )
        panels.append(element("div", element("h3", name), drawing, class_="panel"))
    body = panels if len(panels) == 1 else element("div", panels, class_="panels")
    return [legend(present), body]


def _share_title(entry: dict[str, Any]) -> str:
    """A panel of fine-tuning: network and share of labels."""
    return f"{entry.get('network')}, {percent(entry.get('fraction'))} of the labels"


def _depth_title(entry: dict[str, Any]) -> str:
    """A panel of the probe: network and where its features are taken."""
    depth = entry.get("depth")
    if depth is None:
        return f"{entry.get('network')}"
    place = f"{percent(depth)} of the depth" if isinstance(depth, float) else f"depth {depth}"
    return f"{entry.get('network')}, features at {place}"
