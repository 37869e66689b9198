"""The coverage table: runs grouped by coupling, intervals over training seeds and episodes, paired differences."""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.evaluation.report_data import (
    POLICY_SCRIPT,
    RunRecord,
    all_runs,
    arm_labels,
    read_run,
    unusual_noise,
)
from immiscible_policy.evaluation.statistics import (
    RULES,
    Interval,
    episodes_interval,
    hierarchical_bootstrap_mean,
)
from immiscible_policy.evaluation.variance_components import paired_difference_t
from immiscible_policy.run_setup import made_by

_KEPT = ("coupling", "seed", "demonstrations", "command", "versions", "training_seconds", "curve")
MEASURES = ("max_reward", "max_coverage", "final_coverage", "success")


def load_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Final evaluations of finished policy runs; a folder may be a run or hold runs (a sweep).

    Warns of every run that it leaves out: those of other scripts, and those without a finished evaluation.

    Raises:
        ValueError: a folder without any finished run of a policy.
    """
    runs: list[dict[str, Any]] = []
    for folder in folders:
        found, left_out = [], []
        for path in all_runs(folder):
            try:
                if (script := made_by(path)) not in (None, POLICY_SCRIPT):
                    raise ValueError(f"a run of scripts/{script}.py")
                found.append(table_run(read_run(path)))
            except ValueError as error:
                left_out.append(f"{path}: {error}")
        if not found:
            told = f": {'; '.join(left_out)}" if left_out else " (no summary.json)"
            raise ValueError(f"{folder}: no finished run of {POLICY_SCRIPT}.py in or below it{told}")
        for text in left_out:
            warnings.warn(f"left out {text}", stacklevel=2)
        runs += found
    return runs


def table_run(run: RunRecord) -> dict[str, Any]:
    """A run as the table takes it: its summary, with ``episodes``, ``curve``, ``config`` and ``folder``.

    Raises:
        ValueError: its final evaluation is missing or damaged.
    """
    summary, evaluation = run.summary, run.evaluation
    if summary is None or evaluation is None:
        name = "summary.json" if summary is None else "media/eval.json"
        damage = [problem for problem in run.problems if problem.startswith(name)]
        raise ValueError(damage[0] if damage else f"no {name}, so its final evaluation has not finished")
    if "episodes" not in evaluation:
        raise ValueError("media/eval.json has no episodes")
    added = {"demonstrations": run.demonstrations, "config": run.config, "folder": str(run.folder)}
    return {**summary, "episodes": evaluation["episodes"], "curve": _curve(run.metrics), **added}


def _curve(lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Step, processor time of training (as last logged) and scores of every rollout point."""
    curve, seconds = [], math.nan
    for line in lines:
        seconds = line.get("train/cpu_seconds", seconds)
        if line.get("rollout/max_coverage") is not None:
            curve.append({"step": line["step"], "cpu_seconds": seconds, **_rollout_scores(line)})
    return curve


def _rollout_scores(line: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("rollout/"): value for name, value in line.items() if name.startswith("rollout/")}


def arm_names(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What each run is pooled under: its coupling, and whatever else in its training sets the runs apart."""
    records = [
        RunRecord(Path(run["folder"]), run.get("config", {}), summary=run, demonstrations=run.get("demonstrations"))
        for run in runs
    ]
    return arm_labels(records)


def _differing(values: list[Any]) -> list[str]:
    """The different values in order, as JSON; of mappings those entries alone that are not the same in all."""
    first = values[0]
    if isinstance(first, dict):
        names = {name for value in values for name in value}
        names = {name for name in names if any(value.get(name) != first.get(name) for value in values)}
        values = [{name: value.get(name) for name in names} for value in values]
    return sorted({json.dumps(value, sort_keys=True) for value in values})


def coverage_table(runs: Sequence[dict[str, Any]], baseline: str = "Independent()") -> dict[str, Any]:
    """Means with 95% intervals for every coupling, and its paired difference from the baseline coupling.

    Runs may be compared only under the same evaluation settings and training steps, which is checked. Runs that differ
    in demonstrations or training settings stand in rows of their own, named by what differs; differences are between
    couplings with the same. Intervals resample training seeds and episodes (``hierarchical_bootstrap_mean``); with one
    training seed, episodes only. Of successes that is Wilson's interval, also over several seeds where all or no
    episodes succeeded.
    Differences use the training seeds that both arms have, and t quantiles (``paired_difference_t``).
    """
    for key in ("evaluation_settings", "steps", "parameters"):
        if any(run[key] != runs[0][key] for run in runs):
            told = " / ".join(_differing([run[key] for run in runs]))
            raise ValueError(f"runs differ in {key}, so they cannot stand in one table: {told}")
    arms: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for run, name in zip(runs, arm_names(runs), strict=True):
        if run["seed"] in arms[name]:
            raise ValueError(f"two runs of {name} with seed {run['seed']}: {run['folder']} is the second")
        arms[name][run["seed"]] = run
    rows = []
    for name in sorted(arms, key=lambda name: (not name.startswith(baseline), name)):
        arm = arms[name]
        coupling = next(iter(arm.values()))["coupling"]
        row: dict[str, Any] = {"coupling": name, "seeds": sorted(arm)}
        row["rollouts"] = {seed: arm[seed]["rollouts"] for seed in row["seeds"]}
        other = arms.get(baseline + name.removeprefix(coupling), {})
        for measure in MEASURES:
            values = _scores(arm, row["seeds"], measure)
            row[measure] = asdict(_interval(values, measure))
            row[f"{measure}_by_seed"] = values.mean(axis=1).tolist()
            shared = sorted(set(arm) & set(other))
            if coupling != baseline and shared:
                difference = paired_difference_t(
                    values[[row["seeds"].index(s) for s in shared]], _scores(other, shared, measure)
                )
                row[f"{measure}_difference"] = asdict(difference)
        rows.append(row)
    return {
        "rows": rows,
        "baseline": baseline,
        "steps": runs[0]["steps"],
        "parameters": runs[0]["parameters"],
        "evaluation_settings": runs[0]["evaluation_settings"],
        "runs": [{key: run.get(key) for key in _KEPT} for run in runs],
    }


def markdown(table: dict[str, Any]) -> str:
    """The table as Markdown, percentages with 95% intervals, under a line that states the settings."""
    settings = table["evaluation_settings"]
    told = [f"legacy={settings['task']['legacy']}"]
    told += [settings["mixed_precision"]] if "mixed_precision" in settings else []
    told += unusual_noise(settings)
    lines = [
        f"{table['parameters'] / 1e6:.1f}M parameters, {table['steps']:,} steps; {settings['n_episodes']} episodes a "
        f"training seed from initial state {settings['seed_start']}, {settings['sampler']} "
        f"{settings['num_inference_steps']} steps, {', '.join(told)}; mean [95% interval, with one training seed over "
        "episodes only].",
        "",
        "| coupling | training seeds | max coverage | max reward (published score) | success | max coverage by seed "
        "| difference in max coverage |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        by_seed = ", ".join(f"{100 * value:.1f}" for value in row["max_coverage_by_seed"])
        difference = row.get("max_coverage_difference")
        cells = [
            f"`{row['coupling']}`",
            str(len(row["seeds"])),
            *(_percent(row[measure]) for measure in ("max_coverage", "max_reward", "success")),
            by_seed,
            _percent(difference, signed=True) if difference else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_rule_lines(table)])


def _rule_lines(table: dict[str, Any]) -> list[str]:
    """The published checkpoint rules over each run's own rollouts, with the rule that each column follows."""
    if not all(rollouts for row in table["rows"] for rollouts in row["rollouts"].values()):
        return []
    rules = [("last_k_mean", "last 10"), ("k_min_train_loss_mean", "10 lowest losses"), ("max_score", "max")]
    lines = [
        "Max reward over each run's own rollouts while training, mean of the training seeds (each seed): "
        + "; ".join(f'"{label}" is the {RULES[rule]}' for rule, label in rules).replace(" k ", " 10 ")
        + ". Of fewer than 10 points all are taken.",
        "",
        f"| coupling | {' | '.join(label for _, label in rules)} | rollout points |",
        "|---|---|---|---|---|",
    ]
    for row in table["rows"]:
        cells = []
        for rule, _ in rules:
            values = [100 * rollouts["max_reward"][rule]["value"] for rollouts in row["rollouts"].values()]
            cells.append(f"{np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})")
        points = [str(rollouts["max_reward"]["max_score"]["n_points"]) for rollouts in row["rollouts"].values()]
        cells.append(points[0] if len(set(points)) == 1 else ", ".join(points))
        lines.append(f"| `{row['coupling']}` | {' | '.join(cells)} |")
    return lines


def _interval(values: np.ndarray, measure: str) -> Interval:
    """Mean of a measure's scores (n_seeds, n_episodes) with its interval."""
    # Resampling episodes that all went the same way would give an interval without width.
    if len(values) == 1 or (measure == "success" and np.ptp(values) == 0):
        return episodes_interval(measure, values.ravel())
    return hierarchical_bootstrap_mean(values)


def _scores(arm: dict[int, dict[str, Any]], seeds: Sequence[int], measure: str) -> np.ndarray:
    return np.array([[float(episode[measure]) for episode in arm[seed]["episodes"]] for seed in seeds])


def _percent(interval: dict[str, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * interval[key]:{sign}.1f}" for key in ("mean", "low", "high"))
    return mean if math.isnan(interval["low"]) else f"{mean} [{low}, {high}]"
