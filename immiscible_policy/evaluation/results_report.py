"""Tables and figures of an experiment, made from its tidy table alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.evaluation.comparison import ArmComparison, compare_arms, rule_scores
from immiscible_policy.evaluation.results import Results, load_results
from immiscible_policy.evaluation.results_figure import coverage_by_steps, coverage_while_training
from immiscible_policy.evaluation.statistics import RULES
from immiscible_policy.evaluation.table_files import write_table
from immiscible_policy.evaluation.variance_components import TInterval, mean_t

NOTE = (
    "Max coverage in percent, mean over training seeds and initial states [95% interval over both; of one seed over "
    "initial states alone, which does not say what another seed would give]. Differences are paired by training seed "
    "and initial state; p by Holm for the rows of a number of steps; P(better) is the probability that an episode goes "
    "better than the paired one of the baseline; detectable is the smallest true difference that this design finds "
    "with power 0.8."
)
GAIN_NOTE = (
    "What choosing the initial noise adds to the same networks, in points of max coverage, paired by training seed and "
    "initial state [95% interval], p of each row by itself (not adjusted for their number), and success without and "
    "with, of the training seeds that have both."
)
MODE_NOTE = (
    "Which way round the block from mirror-symmetric starts. Entropy of the split per start in bits (1 is an even "
    "split, 0 always the same way), Miller-Madow corrected; imbalance is |share - 1/2| per start. Means over training "
    "seeds [95% t interval over them]; beside the imbalance what a fair coin would show."
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


def write_tables(results_path: Path, folder: Path, baseline: str = "none") -> list[Path]:
    """Write ``tables/*.md, *.tex, *.json`` and ``figures/*.png`` into ``folder``; returns their paths.

    Args:
        results_path: as ``collect_results`` writes it.
        baseline: the coupling that the others are compared with.
    """
    results = load_results(results_path)
    written: list[Path] = []
    if not len(results):
        return written
    others = [name for name in results.factors if name != "coupling"]
    for values in itertools.product(*(results.levels(name) for name in others)):
        fixed = dict(zip(others, values, strict=True))
        stem = "-".join(str(value) for value in values) or "all"
        tables = {
            f"coverage-{stem}": coverage_rows(results, fixed, baseline),
            f"coupled_inference-{stem}": gain_rows(results, fixed),
            f"rules-{stem}": rules_rows(results, fixed),
            f"modes-{stem}": mode_rows(results, fixed),
            f"prior_gap-{stem}": gap_rows(results, fixed),
        }
        notes = (NOTE, GAIN_NOTE, RULE_NOTE, MODE_NOTE, GAP_NOTE)
        mixed = precision_note(results, fixed)
        for (name, (rows, content)), note in zip(tables.items(), notes, strict=True):
            if len(rows) > 1:
                written += write_table(folder / "tables", name, rows, content, note + mixed)
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        training, steps = (folder / "figures" / f"{name}-{stem}.png" for name in ("training", "sampling_steps"))
        if coverage_while_training(results, fixed, training):
            written.append(training)
        if coverage_by_steps(results, fixed, baseline, steps):
            written.append(steps)
    return written


def precision_note(results: Results, fixed: dict[str, Any]) -> str:
    """What to tell the reader where ``auto`` became different precisions on different machines, else nothing."""
    trained = {str(run["precision"]) for run in results.runs if all(run[k] == v for k, v in fixed.items())}
    known = "mixed_precision" in results.columns  # which older results do not have
    evaluated = {str(value) for value in results.levels("mixed_precision", kind="final", **fixed)} if known else set()
    told = [
        f" **Not all rows were {what} in the same precision** ({', '.join(sorted(found))})."
        for what, found in (("trained", trained), ("evaluated", evaluated))
        if len(found) > 1
    ]
    return "".join(told)


def coverage_rows(results: Results, fixed: dict[str, Any], baseline: str) -> tuple[list[list[str]], list[dict]]:
    """Every coupling and way of inference against the baseline's plain inference, for each number of sampling steps."""
    rows = [
        [
            "steps",
            "coupling",
            "inference",
            "seeds",
            "max coverage",
            "success",
            "difference",
            "p",
            "P(better)",
            "detectable",
        ]
    ]
    content: list[dict[str, Any]] = []
    for steps in sorted(results.levels("num_inference_steps", kind="final", **fixed), reverse=True):
        coverage, success = {}, {}
        for coupling in results.levels("coupling", **fixed):
            for inference, chosen in _inferences(
                results, {**fixed, "coupling": coupling, "num_inference_steps": steps}
            ):
                arm = f"{coupling}|{inference}"
                coverage[arm] = _table(results, "max_coverage", chosen)
                success[arm] = _table(results, "success", chosen)
        first = f"{baseline}|none"
        if first not in coverage:
            continue
        for row in compare_arms(_same_states(coverage), first):
            coupling, inference = row.arm.split("|")
            share = float(np.mean([value for scores in success[row.arm].values() for value in scores.values()]))
            rows.append([str(steps), coupling, inference, str(len(row.seeds)), *_cells(row, share)])
            content.append({**fixed, "num_inference_steps": steps, "success": share, **asdict(row)})
    return rows, content


def gain_rows(results: Results, fixed: dict[str, Any]) -> tuple[list[list[str]], list[dict]]:
    """Coupled against plain inference of the same networks."""
    rows = [["steps", "coupling", "inference", "seeds", "max coverage", "gain", "p", "success, plain", "success"]]
    content: list[dict[str, Any]] = []
    for steps in sorted(results.levels("num_inference_steps", kind="final", **fixed), reverse=True):
        for coupling in results.levels("coupling", **fixed):
            found = dict(_inferences(results, {**fixed, "coupling": coupling, "num_inference_steps": steps}))
            if "none" not in found:
                continue
            tables = {name: _table(results, "max_coverage", chosen) for name, chosen in found.items()}
            successes = _same_states({name: _table(results, "success", chosen) for name, chosen in found.items()})
            for row in compare_arms(_same_states(tables), "none")[1:]:
                # Of the training seeds that have both.
                plain, success = (
                    float(np.mean([successes[name][seed] for seed in row.shared_seeds])) for name in ("none", row.arm)
                )
                cells = [_percent(row.mean), _points(row.difference), _p(row.difference)]
                shares = [f"{100 * plain:.1f}", f"{100 * success:.1f}"]
                rows.append([str(steps), coupling, row.arm, str(len(row.shared_seeds)), *cells, *shares])
                numbers = {"success_plain": plain, "success": success}
                content.append({**fixed, "coupling": coupling, "num_inference_steps": steps, **numbers, **asdict(row)})
    return rows, content


def rules_rows(results: Results, fixed: dict[str, Any]) -> tuple[list[list[str]], list[dict]]:
    """ "Last 10", "10 lowest losses" and "max" for every coupling."""
    rows, content = [["coupling", "seeds", "points", *RULES]], []
    for coupling in results.levels("coupling", **fixed):
        curves = training_curves(results, {**fixed, "coupling": coupling}, "max_reward")
        lengths = {len(curve[0]) for curve in curves.values()}
        if len(lengths) != 1 or not all(np.isfinite(loss).all() for _, _, loss in curves.values()):
            continue  # no rollouts, runs that are not finished, or rollouts before the first logged loss
        scores = rule_scores({seed: (rewards, losses) for seed, (_, rewards, losses) in curves.items()})
        cells = [_percent(scores[rule].interval) for rule in RULES]
        rows.append([coupling, str(len(curves)), str(lengths.pop()), *cells])
        content.append({**fixed, "coupling": coupling, **{rule: asdict(score) for rule, score in scores.items()}})
    return rows, content


def mode_rows(results: Results, fixed: dict[str, Any]) -> tuple[list[list[str]], list[dict]]:
    """Which way round the block, for every coupling."""
    rows, content = [["coupling", "seeds", "clockwise", "entropy, bits", "imbalance (fair coin)", "direct"]], []
    for coupling in results.levels("coupling", **fixed):
        wanted = {**fixed, "coupling": coupling}
        runs = [run for run in results.runs if run["modes"] and all(run[k] == v for k, v in wanted.items())]
        if not runs:
            continue
        names = ("p_clockwise", "entropy", "imbalance", "direct")
        means = {name: np.array([[run["modes"][name]["mean"]] for run in runs], float) for name in names}
        if any(np.isnan(values).any() for values in means.values()):
            continue  # a policy that goes round the block from no start has no split
        measures = {name: mean_t(values) for name, values in means.items()}
        fair = float(np.mean([run["modes"]["imbalance_fair"] for run in runs]))
        cells = [_percent(measures["p_clockwise"]), _plain(measures["entropy"])]
        cells += [f"{_plain(measures['imbalance'])} ({fair:.2f})", _percent(measures["direct"])]
        rows.append([coupling, str(len(runs)), *cells])
        content.append({**wanted, "n_seeds": len(runs), **{k: asdict(v) for k, v in measures.items()}})
    return rows, content


def gap_rows(results: Results, fixed: dict[str, Any]) -> tuple[list[list[str]], list[dict]]:
    """What the training noise differs in from N(0, I), and the actions that follow from either."""
    columns = ("shift", "power", "error", "bias", "spread", "error, matched noise")
    rows, content = [["coupling", "seeds", *columns]], []
    for coupling in results.levels("coupling", **fixed):
        wanted = {**fixed, "coupling": coupling}
        runs = [run for run in results.runs if run["prior_gap"] and all(run[k] == v for k, v in wanted.items())]
        if not runs:
            continue
        gaps = [run["prior_gap"] for run in runs]
        measures: dict[str, TInterval] = {
            name: mean_t(np.array([[gap["prior"][name]] for gap in gaps])) for name in ("error", "bias", "spread")
        }
        if all(gap["matched"] for gap in gaps):
            measures |= {name: mean_t(np.array([[gap[name]] for gap in gaps])) for name in ("shift", "power")}
            measures["error, matched noise"] = mean_t(np.array([[gap["matched"]["error"]] for gap in gaps]))
        cells = [_plain(measures[name]) if name in measures else "" for name in columns]
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


def _inferences(results: Results, values: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Names and column values of the ways of inference that were evaluated."""
    chosen = results.where(kind="final", **values)
    names = ("inference_coupling", "selection", "first_chunk", "known_only", "noise_seed")
    ways = dict.fromkeys(zip(*(results.columns[name][chosen].tolist() for name in names), strict=True))
    for way in ways:
        mode, selection, first, known, noise_seed = way
        text = mode
        if mode != "none":
            text += "" if selection is None else f" {selection}"
            text += " first independent" if mode == "warm" and first == "independent" else ""
            text += " known only" if known else ""
        text += f" noise {noise_seed}" if noise_seed else ""
        yield text, {"kind": "final", **values, **dict(zip(names, way, strict=True))}


def _table(results: Results, measure: str, values: dict[str, Any]) -> dict[int, dict[int, float]]:
    return results.scores(measure, **values)


def _same_states(tables: dict[str, dict[int, dict[int, float]]]) -> dict[str, dict[int, np.ndarray]]:
    """Scores as arrays over the initial states that all arms and seeds have, so that columns are paired."""
    states = set.intersection(*(set(scores) for arm in tables.values() for scores in arm.values()))
    order = sorted(states)
    return {
        name: {seed: np.array([scores[state] for state in order]) for seed, scores in arm.items()}
        for name, arm in tables.items()
    }


def _cells(row: ArmComparison, success: float) -> list[str]:
    cells = [_percent(row.mean), f"{100 * success:.1f}"]
    if row.difference is None:
        return [*cells, "", "", "", ""]
    better = row.improvement_episodes
    return [
        *cells,
        _points(row.difference),
        "" if row.p_holm is None else _probability(row.p_holm),
        "" if better is None else f"{better.mean:.2f}",
        "" if row.detectable is None or not np.isfinite(row.detectable) else f"{100 * row.detectable:.1f}",
    ]


def _percent(interval: TInterval) -> str:
    ends = "" if not np.isfinite(interval.low) else f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{100 * interval.mean:.1f}{ends}"


def _plain(interval: TInterval) -> str:
    ends = "" if not np.isfinite(interval.low) else f" [{interval.low:.2f}, {interval.high:.2f}]"
    return f"{interval.mean:.2f}{ends}"


def _points(interval: TInterval | None) -> str:
    if interval is None:
        return ""
    ends = "" if not np.isfinite(interval.low) else f" [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    return f"{100 * interval.mean:+.1f}{ends}"


def _p(interval: TInterval | None) -> str:
    return "" if interval is None or not np.isfinite(interval.p_value) else _probability(interval.p_value)


def _probability(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
