"""Rows of an experiment's tables, and the numbers behind them, from its tidy table alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from immiscible_policy.evaluation.comparison import ArmComparison, compare_arms, rule_scores
from immiscible_policy.evaluation.results import INITIAL_NOISE, Results
from immiscible_policy.evaluation.results_cells import (
    Rows,
    of_seeds,
    p_cell,
    percent_cell,
    plain_cell,
    points_cell,
    probability_cell,
)
from immiscible_policy.evaluation.results_modes import ways_entropy
from immiscible_policy.evaluation.statistics import RULES
from immiscible_policy.evaluation.variance_components import TInterval, mean_t, paired_difference_t

Scores = dict[int, dict[int, float]]
"""Training seed -> initial state's seed -> score."""

COVERAGE_COLUMNS = (
    "max coverage",
    "IQM",
    "success",
    "difference",
    "p",
    "P(better)",
    "detectable",
    "difference in success",
)
NOTE = (
    "Max coverage in percent, mean over training seeds and initial states [95% interval over both; of one seed over "
    "initial states alone, which does not say what another seed would give]; IQM is the interquartile mean of the "
    "training runs (of less than four, the mean). Differences are paired by training seed and initial state; p by "
    "Holm for the rows of a number of steps, those of each combination of the other factors and of each sampler for "
    "themselves (of one seed over initial states alone); P(better) is the probability that an episode goes better than "
    "the paired one of the baseline; detectable is the smallest true difference that this design finds with power 0.8, "
    "not adjusted. Differences in success (the share of episodes that pass 0.95) are in points, their intervals not "
    "adjusted. A sampler is named where it is not the policies' own, and its rows are compared among each other. Two "
    "passes (2 x 8) stand beside one of as many network calls (16)."
)
WAYS_NOTE = (
    " Ways, in bits, is how evenly a policy splits between the two ways round the block from mirror-symmetric starts "
    "(1 evenly, 0 always the same; more in the table of modes), of the training seeds where that was measured of this "
    "inference."
)
POOLED_NOTE = (
    "As in the table of coverage, over all levels of {factors}, of the training seeds that all of them have. "
    "Differences are paired within a level and a training seed, intervals over these runs and the initial states. "
    "Arms that lack a level are left out."
)
LEVEL_NOTE = (
    "As in the table of coverage: what the other factors do without a coupling, sampled from N(0, I), against the "
    "first level of each."
)
GAIN_NOTE = (
    "What choosing the initial noise adds to the same networks, in points of max coverage, paired by training seed and "
    "initial state [95% interval], p of each row by itself (not adjusted for their number), and success without and "
    "with; all of the training seeds that have both. A sampler is named where it is not the policies' own: what it "
    "adds to that one, and what choosing the noise adds with it. Two passes (2 x 8) are compared with one of as many "
    "network calls (16)."
)
STEPS_NOTE = (
    "As in the table of coverage: what fewer sampling steps cost the same policies, sampled in the same way, against "
    "the most that they were sampled with; p by Holm for the numbers of steps of a way."
)
GAP_NOTE = (
    "What the coupling does to the training noise (shift: mean along the actions that the observation predicts, in "
    "standard deviations, 0 for N(0, I); power: |noise|^2 / D, 1 for N(0, I)), and how far sampled actions are from "
    "demonstrated ones that were held out, in pixels (root mean squares over the executed steps; error^2 = bias^2 + "
    "spread^2): sampled from N(0, I), and from noise chosen for the demonstrated action as in training, which hints at "
    "it. Means over training seeds [95% t interval over them]."
)
RULE_NOTE = (
    "The published rules over the rollouts made while training, in max reward (percent), mean over training seeds."
)


def coverage_rows(results: Results, fixed: dict[str, Any], baseline: str) -> Rows:
    """Every coupling and way of inference against the baseline's plain inference, for each number of sampling steps."""
    rows, content = [["steps", "coupling", "inference", "seeds", *COVERAGE_COLUMNS, "ways, bits"]], []
    for steps, sampler in itertools.product(_step_counts(results, fixed), _samplers(results, fixed)):
        coverage, success = _arms(results, fixed, steps, sampler)
        first = f"{baseline}|{_with_sampler('none', sampler, results.own_sampler(**fixed))}"
        if first not in coverage:
            continue
        successes = _same_states(success)
        for row in compare_arms(_same_states(coverage), first):
            cells, succeeded = _cells(row, successes, first)
            coupling, inference = row.arm.split("|")
            ways = ways_entropy(results, {**fixed, "coupling": coupling}, steps, inference)
            cells.append("" if ways is None else plain_cell(ways))
            rows.append([str(steps), coupling, inference, str(len(row.seeds)), *cells])
            numbers = {**succeeded, **asdict(row), "ways": None if ways is None else asdict(ways)}
            content.append({**fixed, "num_inference_steps": steps, "sampler": sampler, **numbers})
    return rows, content


def pooled_rows(results: Results, combinations: Sequence[dict[str, Any]], baseline: str) -> Rows:
    """``coverage_rows`` over all combinations of factors, of the training seeds that all of them have.

    Differences stay within a combination and a training seed. Arms that lack a combination are left out.
    """
    rows, content = [["steps", "coupling", "inference", "runs", *COVERAGE_COLUMNS]], []
    for steps in _step_counts(results, {}):
        found = [_arms(results, fixed, steps) for fixed in combinations]
        everywhere = [arm for arm in found[0][0] if all(arm in coverage for coverage, _ in found)]
        first = f"{baseline}|none"
        if first not in everywhere:
            continue
        seeds = set.intersection(*(set(coverage[arm]) for coverage, _ in found for arm in everywhere))
        # One training run is a combination and a seed.
        units = [(number, seed) for number in range(len(combinations)) for seed in sorted(seeds)]
        if not units:
            continue
        pooled, success = (
            {
                arm: {unit: found[number][measure][arm][seed] for unit, (number, seed) in enumerate(units)}
                for arm in everywhere
            }
            for measure in (0, 1)
        )
        successes = _same_states(success)
        for row in compare_arms(_same_states(pooled), first):
            cells, succeeded = _cells(row, successes, first)
            # The interval of a mean over different tasks would say how different the tasks are.
            rows.append([str(steps), *row.arm.split("|"), str(len(units)), f"{100 * row.mean.mean:.1f}", *cells[1:]])
            runs = ["-".join([*map(str, combinations[number].values()), f"seed{seed}"]) for number, seed in units]
            shared = {"seeds": runs, "shared_seeds": runs if row.shared_seeds else []}
            content.append({"num_inference_steps": steps, **succeeded, **asdict(row), **shared})
    return rows, content


def level_rows(results: Results, factor: str, fixed: dict[str, Any], baseline: str) -> Rows:
    """The levels of another factor than the coupling against its first: the baseline, sampled from N(0, I).

    Args:
        fixed: levels of the other factors.
    """
    rows, content = [["factor", "steps", "level", "seeds", *COVERAGE_COLUMNS]], []
    place = [str(level) for name, level in fixed.items() if len(results.levels(name)) > 1]
    for steps in _step_counts(results, fixed):
        coverage, success = {}, {}
        for level in results.levels(factor, **fixed):
            found, succeeded = _arms(results, {**fixed, factor: level, "coupling": baseline}, steps)
            if f"{baseline}|none" in found:
                coverage[level], success[level] = found[f"{baseline}|none"], succeeded[f"{baseline}|none"]
        if len(coverage) < 2:
            continue
        first = next(iter(coverage))
        successes = _same_states(success)
        for row in compare_arms(_same_states(coverage), first):
            cells, numbers = _cells(row, successes, first)
            rows.append([factor, str(steps), ", ".join([*place, row.arm]), str(len(row.seeds)), *cells])
            content.append({**fixed, "factor": factor, "num_inference_steps": steps, **numbers, **asdict(row)})
    return rows, content


def _step_counts(results: Results, fixed: dict[str, Any]) -> list[int]:
    return sorted(results.levels("num_inference_steps", kind="final", **fixed), reverse=True)


def _samplers(results: Results, fixed: dict[str, Any]) -> list[str]:
    """Those that policies were evaluated with, their own first."""
    own = results.own_sampler(**fixed)
    return sorted(results.levels("sampler", kind="final", **fixed), key=lambda name: name != own)


def _with_sampler(inference: str, sampler: str, own: str | None) -> str:
    """What a way of inference is called in tables."""
    return inference if sampler == own else f"{inference} {sampler}"


def _arms(
    results: Results, fixed: dict[str, Any], steps: int, sampler: str | None = None
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Coverage and success of every coupling and way of inference, by ``coupling|inference``.

    Args:
        sampler: None takes the policies' own.
    """
    coverage, success = {}, {}
    wanted = sampler or results.own_sampler(**fixed)
    for coupling in results.levels("coupling", **fixed):
        for inference, chosen in _ways(results, {**fixed, "coupling": coupling}, steps).items():
            if chosen["sampler"] != wanted:
                continue
            coverage[f"{coupling}|{inference}"] = results.scores("max_coverage", **chosen)
            success[f"{coupling}|{inference}"] = results.scores("success", **chosen)
    return coverage, success


def gain_rows(results: Results, fixed: dict[str, Any]) -> Rows:
    """Coupled against plain inference of the same networks."""
    rows = [["steps", "coupling", "inference", "seeds", "max coverage", "gain", "p", "success, plain", "success"]]
    content: list[dict[str, Any]] = []
    own = results.own_sampler(**fixed)
    for steps in _step_counts(results, fixed):
        for coupling in results.levels("coupling", **fixed):
            found = _ways(results, {**fixed, "coupling": coupling}, steps)
            tables = {name: results.scores("max_coverage", **chosen) for name, chosen in found.items()}
            successes = {name: results.scores("success", **chosen) for name, chosen in found.items()}
            for name, chosen in found.items():
                unchosen = _with_sampler("none", chosen["sampler"], own)
                base = "none" if name == unchosen else unchosen
                both = [seed for seed in tables.get(base, {}) if seed in tables[name]]
                if name == base or not both:
                    continue
                pair, succeeded = (
                    _same_states({arm: {seed: scores[arm][seed] for seed in both} for arm in (base, name)})
                    for scores in (tables, successes)
                )
                row = compare_arms(pair, base)[1]
                plain, success = (float(np.mean(list(succeeded[arm].values()))) for arm in (base, name))
                cells = [percent_cell(row.mean), points_cell(row.difference), p_cell(row.difference)]
                shares = [f"{100 * plain:.1f}", f"{100 * success:.1f}"]
                rows.append([str(steps), coupling, row.arm, str(len(row.shared_seeds)), *cells, *shares])
                numbers = {"success_plain": plain, "success": success}
                content.append({**fixed, "coupling": coupling, "num_inference_steps": steps, **numbers, **asdict(row)})
    return rows, content


def step_rows(results: Results, fixed: dict[str, Any]) -> Rows:
    """The same policies with fewer sampling steps, for each coupling and way of inference with several numbers."""
    rows, content = [["coupling", "inference", "steps", "seeds", *COVERAGE_COLUMNS]], []
    for coupling in results.levels("coupling", **fixed):
        wanted = {**fixed, "coupling": coupling}
        ways: dict[str, dict[str, dict[str, Any]]] = {}
        for steps in _step_counts(results, wanted):
            for name, chosen in _inferences(results, {**wanted, "num_inference_steps": steps}):
                ways.setdefault(name, {})[str(steps)] = chosen
        for name, found in ways.items():
            if len(found) < 2:
                continue
            coverage, success = (
                _same_states({steps: results.scores(measure, **chosen) for steps, chosen in found.items()})
                for measure in ("max_coverage", "success")
            )
            most = next(iter(found))
            if not next(iter(coverage[most].values())).size:  # no initial state in common
                continue
            for row in compare_arms(coverage, most):
                cells, numbers = _cells(row, success, most)
                rows.append([coupling, name, row.arm, str(len(row.seeds)), *cells])
                content.append(
                    {**wanted, "inference": name, "num_inference_steps": int(row.arm), **numbers, **asdict(row)}
                )
    return rows, content


def rules_rows(results: Results, fixed: dict[str, Any]) -> Rows:
    """ "Last 10", "10 lowest losses" and "max" for every coupling."""
    rows, content = [["coupling", "seeds", "points", *RULES]], []
    for coupling in results.levels("coupling", **fixed):
        curves = training_curves(results, {**fixed, "coupling": coupling}, "max_reward")
        lengths = {len(curve[0]) for curve in curves.values()}
        if len(lengths) != 1 or not all(np.isfinite(loss).all() for _, _, loss in curves.values()):
            continue  # no rollouts, runs that are not finished, or rollouts before the first logged loss
        scores = rule_scores({seed: (rewards, losses) for seed, (_, rewards, losses) in curves.items()})
        cells = [percent_cell(scores[rule].interval) for rule in RULES]
        rows.append([coupling, str(len(curves)), str(lengths.pop()), *cells])
        content.append({**fixed, "coupling": coupling, **{rule: asdict(score) for rule, score in scores.items()}})
    return rows, content


def gap_rows(results: Results, fixed: dict[str, Any]) -> Rows:
    """What the training noise differs in from N(0, I), and the actions that follow from either."""
    columns = ("shift", "power", "error", "bias", "spread", "error, matched noise")
    rows, content = [["coupling", "seeds", *columns]], []
    for coupling in results.levels("coupling", **fixed):
        wanted = {**fixed, "coupling": coupling}
        runs = results.runs_with("prior_gap", **wanted)
        if not runs:
            continue
        gaps = [run["prior_gap"] for run in runs]
        measures: dict[str, TInterval] = {
            name: mean_t(np.array([[gap["prior"][name]] for gap in gaps])) for name in ("error", "bias", "spread")
        }
        if all(gap["matched"] for gap in gaps):
            measures |= {name: mean_t(np.array([[gap[name]] for gap in gaps])) for name in ("shift", "power")}
            measures["error, matched noise"] = mean_t(np.array([[gap["matched"]["error"]] for gap in gaps]))
        cells = [plain_cell(measures[name]) if name in measures else "" for name in columns]
        rows.append([coupling, str(len(runs)), *cells])
        content.append({**wanted, "n_seeds": len(runs), **{k: asdict(v) for k, v in measures.items()}})
    return rows, content


def training_curves(
    results: Results, values: dict[str, Any], measure: str
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Training seed -> (checkpoints' steps, mean score, training loss), from the rollouts made while training."""
    curves = {}
    chosen = results.where(kind="training", **values)
    seeds, steps = results.columns["training_seed"], results.columns["checkpoint_step"]
    for seed in sorted(set(seeds[chosen].tolist())):
        points = sorted(set(steps[chosen & (seeds == seed)].tolist()))
        masks = [chosen & (seeds == seed) & (steps == point) for point in points]
        score = np.array([results.columns[measure][mask].astype(float).mean() for mask in masks])
        loss = np.array([float(results.columns["train_loss"][mask][0]) for mask in masks])
        curves[seed] = (np.array(points), score, loss)
    return curves


def _ways(results: Results, values: dict[str, Any], steps: int) -> dict[str, dict[str, Any]]:
    """Names and column values of the ways of inference that belong to a number of sampling steps.

    Two passes belong to twice their steps, which take as many network calls, where one pass of that many is there.
    """

    def passes(n: int) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Those of one pass of n steps, and those of two."""
        ways = dict(_inferences(results, {**values, "num_inference_steps": n}))
        two = {name: way for name, way in ways.items() if way["inference_coupling"] == "two_pass"}
        return {name: way for name, way in ways.items() if name not in two}, two

    found, two = passes(steps)
    if two and not passes(2 * steps)[0]:
        found |= two
    if found and steps % 2 == 0:
        found |= {f"{name} 2 x {steps // 2}": way for name, way in passes(steps // 2)[1].items()}
    return found


def _inferences(results: Results, values: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Names and column values of the ways of inference that were evaluated."""
    chosen = results.where(kind="final", **values)
    names = ("sampler", *INITIAL_NOISE)
    ways = dict.fromkeys(zip(*(results.columns[name][chosen].tolist() for name in names), strict=True))
    own = results.own_sampler(**values)
    named: set[str] = set()
    for way in ways:
        sampler, mode, selection, first, known, scale, noise_seed = way
        text = mode
        if mode != "none":
            text += "" if selection is None else f" {selection}"
            text += " first independent" if mode == "warm" and first == "independent" else ""
            text += " known only" if known else ""
        text += "" if scale == 1 else f" x {scale:g}"
        text += f" noise {noise_seed}" if noise_seed else ""
        text = _with_sampler(text, sampler, own)
        if text in named:
            raise ValueError(f"{values}: two ways of inference are called {text!r}; one of them is {way}")
        named.add(text)
        yield text, {"kind": "final", **values, **dict(zip(names, way, strict=True))}


def _same_states(tables: Mapping[str, Scores]) -> dict[str, dict[int, np.ndarray]]:
    """Scores as arrays over the initial states that all arms and seeds have, so that columns are paired."""
    states = set.intersection(*(set(scores) for arm in tables.values() for scores in arm.values()))
    order = sorted(states)
    return {
        name: {seed: np.array([scores[state] for state in order]) for seed, scores in arm.items()}
        for name, arm in tables.items()
    }


def _cells(
    row: ArmComparison, success: Mapping[str, dict[int, np.ndarray]], baseline: str
) -> tuple[list[str], dict[str, Any]]:
    """The cells of ``COVERAGE_COLUMNS``, and the numbers of those about success.

    Args:
        success: of all arms, training seed -> episodes.
        baseline: the arm that ``row`` was compared with.
    """
    share = float(np.mean(list(success[row.arm].values())))
    cells = [percent_cell(row.mean), f"{100 * row.iqm.mean:.1f}", f"{100 * share:.1f}"]
    if row.difference is None:
        return [*cells, "", "", "", "", ""], {"success": share, "success_difference": None}
    better = row.improvement_episodes
    own, others = (np.stack([success[arm][seed] for seed in row.shared_seeds]) for arm in (row.arm, baseline))
    more = paired_difference_t(own, others)
    cells += [
        points_cell(row.difference) + of_seeds(len(row.shared_seeds), len(row.seeds)),
        "" if row.p_holm is None else probability_cell(row.p_holm),
        "" if better is None else f"{better.mean:.2f}",
        "" if row.detectable is None or not np.isfinite(row.detectable) else f"{100 * row.detectable:.1f}",
        points_cell(more),
    ]
    return cells, {"success": share, "success_difference": asdict(more)}
