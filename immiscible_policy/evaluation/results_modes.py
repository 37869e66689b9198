"""Which way round the block the policies and the demonstrations of an experiment go, as rows of its tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from envs.pusht.modes import MODES
from immiscible_policy.evaluation.modes import split_entropy
from immiscible_policy.evaluation.results import Results
from immiscible_policy.evaluation.results_cells import Rows, of_seeds, percent_cell, plain_cell
from immiscible_policy.evaluation.statistics import Interval
from immiscible_policy.evaluation.variance_components import TInterval, mean_t

# What ways of inference are called in tables -> the measurement.
MEASURED = {"none": "modes", "warm": "modes_warm"}

MODE_NOTE = (
    "Which way round the block from mirror-symmetric starts, sampled from N(0, I) or (warm) from noise that the "
    "coupling chooses as in training. Entropy of the split per start in bits (1 is an even split, 0 always the same "
    "way), Miller-Madow corrected, and its difference to the baseline's from N(0, I), paired by training seed and, "
    "where they count for both, by start; imbalance is |share - 1/2| per start, beside it what a fair coin would show. "
    "A start counts where the policy went round from it at least twice; starts says how many did, fewest to most by "
    "seed. Means over training seeds [95% t interval over them], not adjusted for their number. Demonstrations begin "
    "anywhere and once in each place: theirs is the split over all of these [Wilson interval], not that of a start."
)


def mode_rows(results: Results, fixed: dict[str, Any], baseline: str) -> Rows:
    """Which way round the block, for the demonstrations, every coupling, and both ways of inference."""
    head = [
        "coupling",
        "inference",
        "seeds",
        "starts",
        "clockwise",
        "entropy, bits",
        "difference",
        "imbalance (fair coin)",
        "direct",
    ]
    rows, content = [head], []
    plain = {run["seed"]: _entropies(run["modes"]) for run in results.runs_with("modes", **fixed, coupling=baseline)}
    arms = itertools.product(results.levels("coupling", **fixed), MEASURED.items())
    for coupling, (inference, measurement) in arms:
        wanted = {**fixed, "coupling": coupling}
        runs = results.runs_with(measurement, **wanted)
        measures = _mode_measures(runs, measurement)
        if measures is None:
            continue
        fair = float(np.nanmean([_number(run[measurement]["imbalance_fair"]) for run in runs]))
        is_baseline = (coupling, inference) == (baseline, "none")
        own = {} if is_baseline else {run["seed"]: _entropies(run[measurement]) for run in runs}
        differences = [_mean_difference(own[seed], plain[seed]) for seed in own if seed in plain]
        pairs = [[value] for value in differences if value is not None]
        difference = mean_t(np.array(pairs)) if pairs else None
        of_all = {name: of_seeds(found.n, len(runs)) for name, found in measures.items()}
        cells = [percent_cell(measures["p_clockwise"]) + of_all["p_clockwise"]]
        cells += [plain_cell(measures["entropy"]) + of_all["entropy"]]
        cells += ["" if difference is None else plain_cell(difference, "+") + of_seeds(len(pairs), len(runs))]
        cells += [f"{plain_cell(measures['imbalance'])} ({fair:.2f})", percent_cell(measures["direct"])]
        starts = [run[measurement]["entropy"]["n"] for run in runs]
        counted = " to ".join(map(str, sorted({min(starts), max(starts)})))
        rows.append([coupling, inference, str(len(runs)), counted, *cells])
        numbers: dict[str, Any] = {k: asdict(v) for k, v in measures.items()}
        numbers["entropy_difference"] = None if difference is None else asdict(difference)
        seeds = {"n_seeds": len(runs), "n_shared_seeds": len(pairs), "n_starts": [min(starts), max(starts)]}
        content.append({**wanted, "inference_coupling": inference, **seeds, **numbers})
    if content:
        shown, splits = _demonstration_rows(results, fixed)
        rows[1:1], content[:0] = shown, splits
    return rows, content


def _demonstration_rows(results: Results, fixed: dict[str, Any]) -> Rows:
    """The split of the demonstrations that these runs were trained on, without a head.

    Those that training held out for validation are among them.
    """
    rows, content = [], []
    runs = results.runs_with("modes", **fixed)
    records = [run["demonstrations"] for run in runs if run["demonstrations"]]
    sets = ("path", "n_episodes", "max_train_episodes")
    for record in {tuple(record.get(name) for name in sets): record for record in records}.values():
        ways = record.get("ways")
        if not ways:
            continue
        split, counts = Interval(**ways["p_clockwise"], level=0.95), ways["counts"]
        direct = 100 * counts["direct"] / sum(counts.values())
        name = f"{sum(counts.values())} demonstrations"
        rows.append([name, "", "", "", percent_cell(split), "", "", "", f"{direct:.1f}"])
        content.append({**fixed, "demonstrations": record["path"], **ways})
    return rows, content


def _entropies(modes: Mapping[str, Any]) -> np.ndarray:
    """(n_starts,) bits of the split at every start; NaN where the policy went round from it less than twice."""
    clockwise, other = (np.array([start[way] for start in modes["per_start"]]) for way in MODES[:2])
    return np.where(clockwise + other >= 2, split_entropy(clockwise, np.maximum(clockwise + other, 1)), np.nan)


def _mean_difference(own: np.ndarray, others: np.ndarray) -> float | None:
    """Over the starts that count for both; None where there are none."""
    differences = own - others
    counted = differences[~np.isnan(differences)]
    return float(counted.mean()) if counted.size else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mode_measures(runs: Sequence[Mapping[str, Any]], measurement: str) -> dict[str, TInterval] | None:
    """Means over the training runs that have them; None where no policy goes round from any start."""
    found = {}
    for name in ("p_clockwise", "entropy", "imbalance", "direct"):
        means = np.array([_number(run[measurement][name]["mean"]) for run in runs])
        known = means[~np.isnan(means)]
        if not known.size:
            return None
        found[name] = mean_t(known[:, None])
    return found


def ways_entropy(results: Results, levels: dict[str, Any], steps: int, inference: str) -> TInterval | None:
    """Entropy of the way round of policies sampled in so many steps, of those of which it was measured so.

    Args:
        inference: as tables call it; only those in ``MEASURED`` are measured.
    """
    if inference not in MEASURED:
        return None
    measurement = MEASURED[inference]
    runs = results.runs_with(measurement, **levels)
    chosen = [run for run in runs if run[measurement].get("settings", {}).get("num_inference_steps") == steps]
    measures = _mode_measures(chosen, measurement)
    return None if measures is None else measures["entropy"]
