"""Accuracy of the pretext with predicted, untrained parameters, on networks never seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.data.catalog import batch_options
from medinit_jax.data.pipeline import load_examples
from medinit_jax.data.sources import Source
from medinit_jax.hyper.bilevel import meta_batch
from medinit_jax.hyper.hypernetwork import Theta
from medinit_jax.hyper.initializer import graph_of
from medinit_jax.hyper.objective import known_facts, rotation_of, split
from medinit_jax.hyper.pretext import ridge_accuracy
from medinit_jax.hyper.setup import Bilevel

LOW = 0.35
# A thumbnail needs no more pixels than this, whatever the networks see.
RIDGE_SIZE = 64


class Views(NamedTuple):
    """Views of held-out images, each image once, at one random angle.

    Attributes:
        batches: (views, targets) per batch, split over the devices.
        indices: Number of each image in its source.
    """

    batches: list[tuple[Any, Any]]
    indices: np.ndarray


def held_out_views(bilevel: Bilevel, source: Source, batches: int) -> Views:
    """Makes batches of independent held-out images with the draws of training at full strength.

    Args:
        bilevel: Devices, pretext and configuration; batches are as large as in training.
        source: The held-out images.
        batches: How many batches, fewer if there are too few images.

    Raises:
        UsageError: If the images do not fill one batch.
    """
    config = bilevel.config
    # As many as a step of training has, so that compiled blocks serve here too.
    size = bilevel.objective.rows(config.train.batch_size)
    if len(source) < size:
        size = config.train.batch_size
    indices = _choose(source, batches * size, config.seed)
    indices = indices[: len(indices) // size * size]
    if len(indices) == 0:
        raise UsageError(
            f"{len(source)} held-out images do not fill a batch of config.train.batch_size="
            f"{config.train.batch_size}{_times(bilevel)}; give more held-out images or lower it."
        )
    split = bilevel.parallel.split(rotation_of(config, mode="one").views)
    options = batch_options(config.data, config.seed, size)
    made = []
    process, processes = bilevel.parallel.process
    share = size // processes
    for number, part in enumerate(indices.reshape(-1, size)):
        part = part[process * share : (process + 1) * share]
        images = load_examples(source, part, options)["image"]
        made.append(split(images, _view_key(config, number)))
    return Views(made, indices)


class Scores(NamedTuple):
    """What networks reach on views, in their order.

    Attributes:
        accuracies: Of each network, mean over the batches.
        not_finite: Names of the networks whose loss was not finite on some batch, which counts as
            chance there.
    """

    accuracies: list[float]
    not_finite: list[str]


def meta_batches(names: Sequence[str], config: ml_collections.ConfigDict) -> list[list[str]]:
    """Divides networks as `score` takes them: as in training, whose compiled pieces serve again.

    Args:
        names: The networks.
        config: The experiment.
    """
    size = config.train.meta_batch
    return [list(names[first : first + size]) for first in range(0, len(names), size)]


def score(
    bilevel: Bilevel, theta: Theta, programs: Mapping[str, Program], views: Views, size: int
) -> Scores:
    """Scores a meta-batch with predicted parameters, statistics of BatchNorm taken over groups.

    Args:
        bilevel: Hypernetwork and tape of training, whose compiled blocks are used again.
        theta: Parameters of the hypernetwork.
        programs: Networks by name.
        views: From `held_out_views`.
        size: Networks that the hypernetwork writes at once; the last one is repeated.
    """
    chance = 1 / bilevel.objective.num_targets
    judge = _scorer(bilevel)
    members = list(programs.values())
    padded = members + members[-1:] * (size - len(members))
    graphs = [graph_of(bilevel.module, program) for program in padded]
    raw, _ = bilevel.writer.write(theta, meta_batch(padded, graphs, bilevel.module))
    accuracies, not_finite = [], []
    for (name, program), given in zip(programs.items(), raw, strict=False):
        given = bilevel.parallel.copy(given)
        found = [judge(program, given, *batch) for batch in views.batches]
        losses, scores = np.asarray(jax.device_get(found), np.float64).T
        finite = np.isfinite(losses)
        if not finite.all():
            not_finite.append(name)
        accuracies.append(float(np.where(finite, scores, chance).mean()))
    return Scores(accuracies, not_finite)


def summarize(names: Sequence[str], scores: Sequence[Scores], views: Views) -> dict[str, Any]:
    """Returns the figures of a list of networks.

    Args:
        names: The networks.
        scores: Of their meta-batches, in order.
        views: What they saw.

    Returns:
        "per_network" in the order of `names`, "mean", "min", "share_below_035", "n", "images",
        "networks" and "not_finite".
    """
    accuracies = [value for part in scores for value in part.accuracies]
    return {
        "mean": float(np.mean(accuracies)),
        "min": float(np.min(accuracies)),
        "share_below_035": float(np.mean(np.array(accuracies) < LOW)),
        "n": len(accuracies),
        "images": len(views.indices),
        "per_network": accuracies,
        "networks": list(names),
        "not_finite": [name for part in scores for name in part.not_finite],
    }


def rotation_accuracy(
    bilevel: Bilevel, theta: Theta, programs: Mapping[str, Program], views: Views
) -> dict[str, Any]:
    """Scores networks one meta-batch after another; see `score` and `summarize`."""
    parts = meta_batches(list(programs), bilevel.config)
    scores = [
        score(bilevel, theta, {name: programs[name] for name in part}, views, len(parts[0]))
        for part in parts
    ]
    return summarize(list(programs), scores, views)


def _times(bilevel: Bilevel) -> str:
    count = len(bilevel.objective.parts)
    return "" if count == 1 else f" views of {count} pretexts"


def _scorer(bilevel: Bilevel):
    """Returns the function (program, raw, views, targets) -> (loss, accuracy) of rotation."""
    if bilevel.objective.plain:
        return bilevel.tape.loss
    parallel, loss = bilevel.parallel, rotation_of(bilevel.config).loss
    judge = parallel.map(lambda *given: jax.tree.map(lambda x: x / parallel.size, loss(*given)))

    def score_one(program, raw, views, targets):
        return parallel.total(judge(bilevel.tape.logits(program, raw, views), targets))

    return score_one


def pretext_scores(
    bilevel: Bilevel, source: Source, programs: Mapping[str, Program]
) -> Callable[[Any], dict[str, float]]:
    """Returns a function from what is trained to the scores of all pretexts on held-out images.

    Args:
        bilevel: What training runs on.
        source: The held-out images, of which one batch is taken.
        programs: Networks by name.

    Returns:
        params -> {"val/accuracy": score of the first pretext, "val/score/NAME": ...}, means over
        the networks.

    Raises:
        UsageError: The images do not fill one batch, or lack what a pretext needs.
    """
    config, objective = bilevel.config, bilevel.objective
    count = objective.images(config.train.batch_size)
    if len(source) < count:
        raise UsageError(
            f"{len(source)} held-out images are fewer than the {count} of one step; give more "
            "held-out images or lower config.train.batch_size."
        )
    options = batch_options(config.data, config.seed, count)
    process, processes = bilevel.parallel.process
    share = count // processes
    chosen = _choose(source, count, config.seed)[process * share : (process + 1) * share]
    examples = load_examples(source, chosen, options)
    facts = known_facts(objective, source, patients_needed=1)(examples)
    views, targets = bilevel.views(examples["image"], _view_key(config, 0), facts)
    graphs = {name: graph_of(bilevel.module, program) for name, program in programs.items()}

    def scores(params: Any) -> dict[str, float]:
        theta, heads = split(params)
        heads = bilevel.parallel.copy(heads)
        found = []
        for name, program in programs.items():
            (raw,), _ = bilevel.writer.write(
                theta, meta_batch([program], [graphs[name]], bilevel.module)
            )
            raw = bilevel.parallel.copy(raw)
            found.append(bilevel.tape.loss(program, raw, views, targets, heads)[1])
        means = jax.tree.map(lambda *values: float(np.mean(values)), *jax.device_get(found))
        named = {f"val/score/{name}": figures["score"] for name, figures in means.items()}
        return {"val/accuracy": means[objective.parts[0].name]["score"], **named}

    return scores


def ridge_figure(
    config: ml_collections.ConfigDict, train: Source, test: Source, views: Views, images: int
) -> float:
    """Returns what ridge regression on 8x8 thumbnails reaches on the same test views.

    Args:
        config: The experiment.
        train: Images to fit on.
        test: Source of the test views.
        views: The test views.
        images: How many images to fit on, each at all angles.
    """
    options = batch_options(config.data, config.seed)
    options = dataclasses.replace(options, size=min(config.data.size, RIDGE_SIZE))
    chosen = load_examples(train, _choose(train, images, config.seed + 1), options)["image"]
    fitted = rotation_of(config, mode="four").views(chosen, jax.random.key(config.seed))
    size = len(views.indices) // len(views.batches)
    pretext = rotation_of(config, mode="one")
    judged = [
        pretext.views(load_examples(test, part, options)["image"], _view_key(config, number))
        for number, part in enumerate(views.indices.reshape(-1, size))
    ]
    return ridge_accuracy(
        *(np.asarray(array) for array in fitted),
        *(np.concatenate([np.asarray(a) for a in arrays]) for arrays in zip(*judged, strict=True)),
    )


def samples(config: ml_collections.ConfigDict, source: Source, count: int) -> dict[str, np.ndarray]:
    """Returns held-out images beside their views, as `samples.npz` holds them.

    Args:
        config: The experiment.
        source: The images.
        count: How many.

    Returns:
        images uint8 (n, S, S, 3), views uint8 (n, 4, S, S, 3), targets (n, 4), and labels (n,)
        where there are any.
    """
    indices = _choose(source, count, config.seed)
    options = batch_options(config.data, config.seed)
    examples = load_examples(source, indices, options)
    pretext = rotation_of(config, mode="four")
    views, targets = pretext.views(examples["image"], jax.random.key(config.seed))
    scaled = np.asarray(views) * np.array(options.std) + np.array(options.mean)
    if pretext.circle:
        # Outside the circle a view is 0, which is the mean color; black says "nothing" better.
        scaled *= np.asarray(views).any(-1, keepdims=True)
    shape = (len(indices), 4, *scaled.shape[1:])
    found = {
        "images": np.stack([source[int(i)]["image"] for i in indices]),
        "views": np.clip(np.rint(scaled * 255), 0, 255).astype(np.uint8).reshape(shape),
        "targets": np.asarray(targets).reshape(-1, 4),
    }
    if "label" in examples:
        found["labels"] = examples["label"]
    return found


def _choose(source: Source, count: int, seed: int) -> np.ndarray:
    """Returns the numbers of `count` images of a source, or of all, in random order."""
    return np.random.default_rng([seed, len(source)]).permutation(len(source))[:count]


def _view_key(config: ml_collections.ConfigDict, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), number)


def names_of(
    splits: Mapping[str, int], sizes: Callable[[str], int], resnets: Sequence[str]
) -> dict[str, list[str]]:
    """Lists the networks of each part of the evaluation: the first indices, unfiltered.

    Args:
        splits: Networks per split.
        sizes: Networks that a split has.
        resnets: Names of the ResNets.

    Returns:
        {split: names}, and "resnets" if there are any.
    """
    parts = {
        split: [f"{split}:{index}" for index in range(min(count, sizes(split)))]
        for split, count in splits.items()
        if count
    }
    return {**parts, **({"resnets": list(resnets)} if resnets else {})}
