"""The verdict claims what the paired seeds carry, and nothing else."""

import numpy as np
import pytest

from medinit_jax.report import verdict


def _entry(start, finals, network="resnet18", fraction=0.1):
    return {
        "network": network,
        "fraction": fraction,
        "start": start,
        "seeds": [{"auc_per_epoch": [0.5, final]} for final in finals],
    }


def _four(hyper, random, matched, untrained, **where):
    starts = {"hyper": hyper, "random": random, "matched": matched, "untrained": untrained}
    return [_entry(start, finals, **where) for start, finals in starts.items()]


WIN = _four([0.80, 0.82, 0.84], [0.75, 0.76, 0.79], [0.78, 0.79, 0.82], [0.70, 0.72, 0.75])


def test_clear_win():
    found = verdict.compare_all(WIN)
    assert [c.other for c in found] == ["random", "matched", "untrained"]
    assert [c.outcome for c in found] == [verdict.BEATS] * 3
    # Differences .05, .06, .05: mean .0533, sd .00577, half width 4.302653 * sd / sqrt(3).
    assert found[0].difference.mean == pytest.approx(0.16 / 3)
    assert found[0].difference.low == pytest.approx(0.16 / 3 - 0.014342, abs=1e-6)
    assert verdict.headline(found) == "The hyper-initializer beats all three other starts."
    assert verdict.reading(found).startswith("Neither the scale of the weights")
    told = verdict.sentence(found)
    assert "+0.053 against random initialization (95\u00a0% interval +0.039 to +0.068)" in told
    assert told.endswith("paired over 3 seeds.")


def test_pairing_sees_what_unpaired_spread_hides():
    """Seeds differ by .1 and more, the gain by .002: paired it is a win, reordered it is not."""
    seeds = np.array([0.60, 0.72, 0.85])
    hyper, random = seeds + np.array([0.020, 0.021, 0.022]), seeds
    paired = verdict.compare([_entry("hyper", hyper), _entry("random", random)], "random")
    assert paired is not None and paired.outcome == verdict.BEATS
    crossed = verdict.compare([_entry("hyper", hyper), _entry("random", random[::-1])], "random")
    assert crossed is not None and crossed.outcome == verdict.DRAWS


def test_no_difference_is_no_claim():
    noise = [0.80, 0.83, 0.79]
    found = verdict.compare_all(
        _four(noise, [0.81, 0.80, 0.80], [0.79, 0.82, 0.81], [0.80, 0.81, 0.80])
    )
    assert {c.outcome for c in found} == {verdict.DRAWS}
    assert verdict.headline(found) == (
        "The hyper-initializer does not beat random initialization, matched statistics or the "
        "untrained hypernetwork."
    )
    assert "no gain over random initialization" in verdict.reading(found)
    assert "between −" in verdict.reading(found)


def test_identical_starts_do_not_beat_each_other():
    same = [0.8, 0.7, 0.9]
    found = verdict.compare_all(_four(same, same, same, same))
    assert {c.outcome for c in found} == {verdict.DRAWS}


def test_loss():
    found = verdict.compare_all(
        _four([0.70, 0.71, 0.72], [0.80, 0.81, 0.83], [0.70, 0.72, 0.71], [0.60, 0.61, 0.62])
    )
    assert [c.outcome for c in found] == [verdict.LOSES, verdict.DRAWS, verdict.BEATS]
    assert verdict.headline(found) == (
        "The hyper-initializer beats the untrained hypernetwork, does not beat matched "
        "statistics and falls behind random initialization."
    )
    assert verdict.reading(found) == "Random initialization is the better start here."


def test_one_seed_claims_nothing_however_large_the_difference():
    found = verdict.compare_all(_four([0.99], [0.5], [0.5], [0.5]))
    assert {c.outcome for c in found} == {verdict.UNKNOWN}
    assert "nothing can be claimed" in verdict.headline(found)
    assert "one seed" in verdict.sentence(found) and "interval" not in verdict.sentence(found)
    assert verdict.reading(found) == ""


def test_gain_over_random_that_the_controls_share():
    found = verdict.compare_all(
        _four([0.80, 0.82, 0.84], [0.75, 0.76, 0.79], [0.81, 0.81, 0.85], [0.90, 0.92, 0.95])
    )
    assert verdict.headline(found) == (
        "The hyper-initializer beats random initialization, does not beat matched statistics "
        "and falls behind the untrained hypernetwork."
    )
    told = verdict.reading(found)
    assert "not shown to be more than the scale" in told
    assert "not shown to come from its training" in told


def test_two_outcomes_are_joined_by_but():
    found = verdict.compare_all(
        _four([0.80, 0.82, 0.84], [0.75, 0.76, 0.79], [0.81, 0.81, 0.85], [0.70, 0.72, 0.75])
    )
    assert verdict.headline(found) == (
        "The hyper-initializer beats random initialization and the untrained hypernetwork, but "
        "does not beat matched statistics."
    )


def test_settings_are_averaged_within_a_seed():
    """Two settings with opposite effects: three pairs remain, not six, and nothing is claimed."""
    one = _four([0.80, 0.81, 0.82], [0.75, 0.76, 0.77], [0.7] * 3, [0.7] * 3, fraction=0.02)
    two = _four([0.80, 0.81, 0.82], [0.85, 0.86, 0.87], [0.7] * 3, [0.7] * 3, fraction=0.1)
    found = verdict.compare(one + two, "random")
    assert found is not None
    assert (found.difference.count, found.settings, found.ahead) == (3, 2, 1)
    assert found.difference.mean == pytest.approx(0.0, abs=1e-12)


def test_what_cannot_be_paired_is_left_out():
    entries = [_entry("hyper", [0.8, 0.9]), _entry("random", [0.7])]
    assert verdict.compare(entries, "random") is None
    assert verdict.compare_all([_entry("random", [0.7])]) == []
    assert verdict.headline([]) == "" and verdict.sentence([]) == "" and verdict.reading([]) == ""
    gap = _entry("hyper", [0.8, 0.9])
    gap["seeds"][0]["auc_per_epoch"][0] = None
    assert verdict.curves(gap) == [[], [0.5, 0.9]]


def test_mean_over_epochs_rewards_rising_early():
    early = {"start": "hyper", "seeds": [{"auc_per_epoch": [0.8, 0.8]}] * 2}
    late = {"start": "random", "seeds": [{"auc_per_epoch": [0.6, 0.8]}] * 2}
    found = verdict.compare([early, late], "random", verdict.mean_epoch)
    assert found is not None and found.difference.mean == pytest.approx(0.1)
    assert verdict.compare([early, late], "random").difference.mean == 0  # type: ignore[union-attr]
