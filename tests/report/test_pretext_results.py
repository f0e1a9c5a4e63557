"""Gains, wins and intervals of the study of pretexts, by hand."""

import numpy as np
import pytest

from medinit_jax.report.pretext_results import (
    confirmed,
    confirmed_segmentation,
    gain_by_network,
    probe_figure,
    rule_score,
)

BASE = {"random": 0.6, "matched": 0.5, "hyper": 0.0}


def entries(gains, depth=1.0, fraction=0.05):
    """Probe entries: over random each network gains what is given, over matched 0.1 more."""
    return [
        {"network": f"test:{i}", "fraction": fraction, "start": start, "depth": depth,
         "mean": 0.6 + gain if start == "hyper" else value}
        for i, gain in enumerate(gains)
        for start, value in BASE.items()
    ]  # fmt: skip


def curves(gains, fraction=0.2):
    return [
        {"network": f"test:{i}", "fraction": fraction, "start": start,
         "mean": [0.5, 0.5, 0.6 + gain if start == "hyper" else 0.6,
                  0.6 + gain if start == "hyper" else 0.7]}
        for i, gain in enumerate(gains)
        for start in ("hyper", "matched")
    ]  # fmt: skip


def test_the_rule_takes_the_smaller_gain():
    runs = [entries([0.1, 0.3]) + entries([0.0, 0.2], fraction=0.2)]
    figure = probe_figure(1.0)
    assert rule_score(runs, (0.05,), figure) == pytest.approx(0.2)
    assert rule_score(runs, (0.05, 0.2), figure) == pytest.approx(0.15)
    assert rule_score(runs, (0.05, 0.5), figure) == -np.inf
    assert rule_score(runs, (0.05,), probe_figure(0.5)) == -np.inf


def test_networks_are_means_over_seeds_and_count_only_if_whole():
    second = entries([0.3, 0.1])
    broken = next(e for e in second if e["network"] == "test:1" and e["start"] == "hyper")
    broken["mean"] = None
    both = gain_by_network([entries([0.1, 0.1, 0.1]), second], 0.05, "random", probe_figure(1.0))
    assert both == {"test:0": pytest.approx(0.2)}


def test_the_confirmation_by_hand():
    gains = [[0.1, 0.02, -0.1], [0.2, 0.04, -0.1]]
    summaries = [{"probe": entries(g), "finetune": curves(g)} for g in gains]
    options = {"depth": 1.0, "epoch": 3, "margin": 0.05, "resamples": 500}
    found = confirmed(summaries, (0.05, 0.2), **options)
    assert found["networks"] == ["test:0", "test:1", "test:2"]
    assert found["hypernetwork_seeds"] == 2
    assert found["probe_gain_over_random"] == {"0.05": pytest.approx(0.08 / 3)}
    assert found["probe_gain_over_matched"] == {"0.05": pytest.approx(0.08 / 3 + 0.1)}
    assert found["probe_wins_over_random"] == {"0.05": 1}
    assert found["probe_ahead_over_random"] == {"0.05": 2}
    assert found["probe_wins_over_matched"] == {"0.05": 2}
    assert found["finetune_epoch3_gain_over_matched"] == {"0.2": pytest.approx(0.08 / 3)}
    assert found["finetune_epoch3_wins_over_matched"] == {"0.2": 1}
    assert found["finetune_last_gain_over_matched"] == {"0.2": pytest.approx(0.08 / 3 - 0.1)}
    # Over random the gain is the smaller one everywhere; fine-tuned, random was not run.
    assert found["probe_wins_over_both"] == {"0.05": 1}
    assert found["probe"]["both"]["by_network"] == found["probe"]["random"]["by_network"]
    assert "finetune_epoch3_wins_over_both" not in found
    assert "probe_gain_over_rotnet" not in found
    low, high = found["probe_interval_over_random"]["0.05"]
    # Whole networks are drawn: the ends lie near the worst and the best network.
    assert -0.101 < low < -0.05 and 0.1 < high < 0.151


def dice(task, gains, fraction=0.2):
    """Fine-tunings of one network by seed: hyper lies by what is given above matched."""
    return [
        {"task": task, "network": f"{task} unet s{seed}", "fraction": fraction, "start": start,
         "dice": 0.5 + gain * (start == "hyper")}
        for seed, gain in enumerate(gains)
        for start in ("hyper", "matched")
    ]  # fmt: skip


def test_segmentations_by_hand():
    runs = [
        dice("drive_seg", [0.1, 0.2]) + dice("stare_seg", [-0.1]),
        dice("drive_seg", [0.2, 0.4]) + dice("stare_seg", [-0.2]),
    ]
    # A run without a figure: its network is left out, not taken for 0.
    runs[1] += dice("stare_seg", [0.0, 0.5])[2:]
    runs[0] += [row | {"dice": None} for row in dice("stare_seg", [0.0, 0.5])[2:]]
    found = confirmed_segmentation(runs, (0.2,))
    assert found["hypernetwork_seeds"] == 2 and len(found["networks"]) == 4
    assert found["dice_gain_over_matched"] == {"0.2": pytest.approx(0.1)}
    assert found["dice_ahead_over_matched"] == {"0.2": 2}
    drive = found["dice_by_task"]["drive_seg"]["matched"]
    assert drive["gain"] == {"0.2": pytest.approx(0.225)}
    # Two seeds, 0.15 and 0.3: Student's quantile with one degree of freedom is 12.7062.
    half = 12.7062 * 0.075
    assert drive["interval"]["0.2"] == pytest.approx([0.225 - half, 0.225 + half], abs=1e-4)
    assert drive["by_network"]["0.2"] == {
        "drive_seg unet s0": pytest.approx(0.15), "drive_seg unet s1": pytest.approx(0.3)
    }  # fmt: skip
    stare = found["dice_by_task"]["stare_seg"]["matched"]
    assert stare["networks"] == {"0.2": 1} and np.isnan(stare["interval"]["0.2"]).all()
    assert "dice_gain_over_random" not in found
