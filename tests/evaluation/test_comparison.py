"""Rows of a comparison, Holm's adjustment, checkpoint rules over training seeds."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from immiscible_policy.evaluation.comparison import compare_arms, holm, rule_scores
from immiscible_policy.evaluation.detectable_difference import smallest_detectable_difference
from immiscible_policy.evaluation.improvement import interquartile_mean, probability_of_improvement
from immiscible_policy.evaluation.statistics import RULES
from immiscible_policy.evaluation.variance_components import mean_t, paired_difference_t


def test_holm_on_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04: the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])


@settings(max_examples=80, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), alpha=st.floats(0.001, 0.5), data=st.data())
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha, data):
    adjusted = holm(p)
    rejected = np.zeros(len(p), dtype=bool)
    for rank, index in enumerate(np.argsort(p)):
        if p[index] * (len(p) - rank) > alpha:
            break
        rejected[index] = True
    assert ((adjusted <= alpha) == rejected).all()
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p))).all()
    order = data.draw(st.permutations(range(len(p))))
    assert holm(np.array(p)[order]) == pytest.approx(adjusted[order])


def test_holm_keeps_false_alarms_in_the_family_rare():
    p = np.random.default_rng(0).random((2000, 4))
    assert np.mean([holm(row).min() <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("p_values", "message"),
    [
        ([], r"p_values must have shape \(n,\) and not be empty"),
        ([0.1, math.nan], "p_values must be finite"),
        ([0.1, 1.2], r"p_values must be in \[0, 1\], got 1\.2"),
        ([-0.1], r"got -0\.1"),
    ],
)
def test_holm_refuses_what_is_no_probability(p_values, message):
    with pytest.raises(ValueError, match=message):
        holm(p_values)


def arms() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    states = rng.random(60)
    return {
        "knn": states + 0.05 + rng.normal(0, 0.02, (4, 60)),
        "none": states + rng.normal(0, 0.02, (4, 60)),
        "assignment": states - 0.3 + rng.normal(0, 0.02, (4, 60)),
    }


def test_a_row_holds_what_each_function_gives():
    tables = arms()
    rows = compare_arms(tables, "none", level=0.9, n_resamples=200, seed=3)
    assert [row.arm for row in rows] == ["none", "knn", "assignment"]
    baseline, knn, _ = rows
    assert (baseline.difference, baseline.p_holm, baseline.improvement_runs, baseline.detectable) == (None,) * 4
    a, b = tables["knn"], tables["none"]
    assert (knn.seeds, knn.shared_seeds, knn.n_episodes) == ((0, 1, 2, 3), (0, 1, 2, 3), 60)
    assert knn.mean == mean_t(a, 0.9)
    assert knn.iqm == interquartile_mean(a, level=0.9, n_resamples=200, seed=3)
    assert knn.difference == paired_difference_t(a, b, 0.9)
    assert knn.improvement_runs == probability_of_improvement(a, b, "runs", 0.9, 200, 3)
    assert knn.improvement_episodes == probability_of_improvement(a, b, "episodes", 0.9, 200, 3)
    assert knn.detectable == smallest_detectable_difference(a, b, level=0.9)
    assert knn.difference.low > 0
    assert [row.p_holm for row in rows[1:]] == pytest.approx(list(holm([row.difference.p_value for row in rows[1:]])))
    json.dumps([asdict(row) for row in rows])


def test_the_order_of_arms_and_seeds_changes_no_number():
    tables = {name: dict(enumerate(table)) for name, table in arms().items()}
    turned = {name: dict(reversed(arm.items())) for name, arm in reversed(tables.items())}
    rows = {row.arm: row for row in compare_arms(tables, "none", n_resamples=50)}
    assert {row.arm: row for row in compare_arms(turned, "none", n_resamples=50)} == rows
    assert {row.arm: row for row in compare_arms(arms(), "none", n_resamples=50)} == rows


def test_arms_are_paired_over_the_seeds_they_share():
    tables = arms()
    knn = dict(zip([7, 2, 0, 9], tables["knn"], strict=True))
    none = dict(zip([0, 1, 2, 3], tables["none"], strict=True))
    row = compare_arms({"none": none, "knn": knn}, "none", n_resamples=50)[1]
    assert (row.seeds, row.shared_seeds) == ((0, 2, 7, 9), (0, 2))
    assert row.difference == paired_difference_t([knn[0], knn[2]], [none[0], none[2]])
    assert row.difference.n_seeds == 2
    assert (row.improvement_episodes.n, row.improvement_runs.n) == (120, 16)
    assert row.mean.n_seeds == 4


def test_arms_without_a_shared_seed_have_no_paired_numbers():
    tables = arms()
    strangers = {seed + 10: scores for seed, scores in enumerate(tables["knn"])}
    rows = compare_arms({**tables, "strangers": strangers}, "none", n_resamples=50)
    row = rows[-1]
    assert (row.shared_seeds, row.difference, row.p_holm, row.improvement_episodes, row.detectable) == ((), *[None] * 4)
    assert row.improvement_runs.mean == 1.0
    # It takes no part in the adjustment either.
    others = compare_arms(tables, "none", n_resamples=50)
    assert [r.p_holm for r in rows[:-1]] == [r.p_holm for r in others]


def test_one_training_seed_is_compared_over_episodes_only():
    tables = {name: table[:1] for name, table in arms().items()}
    row = compare_arms(tables, "none", n_resamples=50)[1]
    assert row.mean.over == row.difference.over == "episodes only"
    assert row.p_holm < 1e-6
    assert row.improvement_episodes.low > 0.5
    assert math.isnan(row.improvement_runs.low)
    assert 0 < row.detectable < 0.05


def test_single_values_have_a_difference_and_no_p_value():
    row = compare_arms({"a": [[0.5]], "b": [[0.75]]}, "a", n_resamples=50)[1]
    assert (row.difference.mean, row.p_holm) == (0.25, None)
    assert math.isnan(row.detectable)


def test_only_a_baseline_is_one_row():
    assert [row.arm for row in compare_arms({"none": arms()["none"]}, "none", n_resamples=50)] == ["none"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "baseline must be one of no arms, got 'none'"),
        ({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, "baseline must be one of 'a', 'b', got 'none'"),
        ({"none": np.ones((2, 3)), "a": np.ones((2, 4))}, r"got numbers of episodes \{'none': 3, 'a': 4\}"),
        ({"none": {}}, r"tables\['none'\] must hold at least one training seed, got none"),
        ({"none": {0: [1.0], 1: [1.0, 2.0]}}, r"as many episodes for every training seed, got \{0: 1, 1: 2\}"),
        ({"none": {4: [1.0, math.nan]}}, r"tables\['none'\]\[4\] must be finite"),
        ({"none": [[1.0, math.nan]]}, r"tables\['none'\] must be finite"),
        ({"none": [1.0, 2.0]}, r"tables\['none'\] must have shape \(n_seeds, n_episodes\)"),
    ],
)
def test_bad_arms_are_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        compare_arms(tables, "none")


SCORES = {0: [0.1, 0.9, 0.3, 0.4], 7: [0.2, 0.5, 0.6, 0.8]}
LOSSES = {0: [0.4, 0.1, 0.2, 0.3], 7: [0.4, 0.3, 0.2, 0.1]}


def test_rules_are_applied_to_each_seed_and_then_averaged():
    summaries = rule_scores({seed: (SCORES[seed], LOSSES[seed]) for seed in SCORES}, k=2)
    expected = {
        "last_k_mean": (0.35, 0.7),
        "k_min_train_loss_mean": (0.6, 0.7),  # seed 0: its losses are lowest at the second and third point
        "max_score": (0.9, 0.8),  # of each run: the maximum of the averaged curve would be 0.7
    }
    assert set(summaries) == set(expected) == set(RULES)
    for rule, values in expected.items():
        summary = summaries[rule]
        assert summary.rule == rule
        assert {seed: score.value for seed, score in summary.per_seed.items()} == pytest.approx(
            dict(zip([0, 7], values, strict=True))
        )
        assert all(score.rule == rule for score in summary.per_seed.values())
        reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        interval = summary.interval
        assert interval.over == "training seeds only"
        assert [interval.mean, interval.low, interval.high] == pytest.approx(
            [np.mean(values), reference.low, reference.high]
        )


def test_one_run_has_rule_scores_without_an_interval():
    summaries = rule_scores({3: (SCORES[0], LOSSES[0])})
    assert summaries["last_k_mean"].interval.mean == pytest.approx(np.mean(SCORES[0]))
    assert summaries["last_k_mean"].per_seed[3].n_points == 4
    assert all(math.isnan(summary.interval.low) for summary in summaries.values())


@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        ({}, {}, "at least one training seed's scores and losses, got none"),
        ({0: ([0.1], [0.2]), 1: ([0.1, 0.2], [0.1, 0.2])}, {}, r"as many rollout points, got \{0: 1, 1: 2\}"),
        ({0: ([0.1, 0.2], [0.2])}, {}, "one length, got 2 and 1"),
        ({0: ([0.1], [math.nan])}, {}, "train_losses must be finite"),
        ({0: ([0.1], [0.2])}, {"k": 0}, "k must be at least 1, got 0"),
    ],
)
def test_bad_curves_are_refused(curves, options, message):
    with pytest.raises(ValueError, match=message):
        rule_scores(curves, **options)
