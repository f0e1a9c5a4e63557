"""What predicted networks see: rank of their features by depth, likeness, distance to twins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from medinit_jax.arch.families import Member
from medinit_jax.arch.space import Space
from medinit_jax.data.augment import Augmentation
from medinit_jax.data.catalog import batch_options
from medinit_jax.data.pipeline import load_examples
from medinit_jax.data.sources import Source
from medinit_jax.downstream import classify
from medinit_jax.downstream.classify import Labeled
from medinit_jax.downstream.likeness import effective_rank, linear_cka
from medinit_jax.downstream.protocol import fold_seed
from medinit_jax.hyper.comparison import budget_of, transfer_of
from medinit_jax.hyper.hypernetwork import Theta
from medinit_jax.hyper.setup import Bilevel
from medinit_jax.hyper.starts import hyper_start, matched_start, predict_body, random_start
from medinit_jax.models.network import feature_taps
from medinit_jax.models.zoo import by_name


def diagnose(
    config: ml_collections.ConfigDict, bilevel: Bilevel, theta: Theta, source: Source
) -> dict[str, Any]:
    """Compares the features of unseen networks from three starts on the same images, no labels.

    Args:
        config: The experiment; `config.evaluate.diagnostics` says how many networks and images.
        bilevel: Hypernetwork and design space.
        theta: The hypernetwork's parameters.
        source: Held-out images.

    Returns:
        "networks", "depths"; by start ("hyper", "random", "matched") "effective_rank" of each
        network at each depth, and "cka", the mean likeness of the last features of two networks;
        "twin_distance", 1 - CKA of the last features of each network and its permuted twin.
    """
    settings, space = config.evaluate.diagnostics, bilevel.space
    options = batch_options(config.data, config.seed)
    mirrored = options.augmentation.normalize_laterality
    plain = dataclasses.replace(options, augmentation=Augmentation(normalize_laterality=mirrored))
    chosen = np.arange(min(settings.images, len(source)))
    images = load_examples(source, chosen, plain)["image"]
    labeled = Labeled(images, np.zeros(len(images), np.int32))
    transfer, budget = transfer_of(config.evaluate.downstream), budget_of(config)
    names = [f"test:{i}" for i in range(min(settings.networks, space.size("test")))]
    ranks: dict[str, list[list[float]]] = {"hyper": [], "random": [], "matched": []}
    last: dict[str, list[np.ndarray]] = {start: [] for start in ranks}
    for name in names:
        network = by_name(name, bilevel.module.num_classes, space)
        program = network.program
        key = jax.random.key(fold_seed(config.seed, "diagnostics", name))
        predicted = predict_body(bilevel.module, theta, program)
        starts = {
            "hyper": hyper_start(bilevel.module, theta, program, key, transfer, predicted),
            "random": random_start(program, key),
            "matched": matched_start(bilevel.module, theta, program, key, transfer, predicted),
        }
        taps = feature_taps(program, tuple(settings.depths))
        for start, params in starts.items():
            statistics = classify.calibrate(network, params, labeled, budget)
            found = classify.outputs(network, params, statistics, images, taps)[: len(taps)]
            finite = [np.nan_to_num(np.asarray(f), posinf=0.0, neginf=0.0) for f in found]
            ranks[start].append([effective_rank(f) for f in finite])
            last[start].append(finite[-1])
        classify.forget_compiled()
    twins = [linear_cka(a, b) for a, b in zip(last["hyper"], last["matched"], strict=True)]
    return {
        "networks": names,
        "families": families_of(names, space),
        "depths": list(settings.depths),
        "images": len(images),
        "effective_rank": ranks,
        "cka": {
            start: _mean([linear_cka(a, b) for a, b in itertools.combinations(features, 2)])
            for start, features in last.items()
        },
        "twin_distance": [1 - value for value in twins],
    }


def families_of(names: Sequence[str], space: Space) -> list[str]:
    """Returns the family of each network: that of a member of one, "cells", or its own name.

    Args:
        names: As "test:3", or of the zoo.
        space: The design space.
    """
    found = []
    for name in names:
        split, _, index = name.partition(":")
        if split not in space.splits or not index.isdigit():
            found.append(split)
            continue
        drawn = space.sample(split, int(index))
        found.append(drawn.family if isinstance(drawn, Member) else "cells")
    return found


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
