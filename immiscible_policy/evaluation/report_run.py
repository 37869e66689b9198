"""What the report of one training run shows, for ``report_templates/run.html.jinja``."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from markupsafe import Markup

from immiscible_policy.evaluation import report_figures as figures
from immiscible_policy.evaluation.evaluate import DEFINITIONS
from immiscible_policy.evaluation.report_data import (
    DAMAGE,
    RunRecord,
    damaged,
    mapping,
    objective_label,
    part,
    read_run,
    series,
    unusual_noise,
)
from immiscible_policy.evaluation.report_media import Media
from immiscible_policy.evaluation.statistics import RULES

_HEADLINES = ("max_coverage", "max_reward", "success", "final_coverage", "length")
_EXTREMES = 5  # episodes listed at either end


def run_context(folder: Path, media: Media) -> dict[str, Any]:
    """The template's variables; ``problems`` names every file that could not be read."""
    run = read_run(folder)
    episodes = checked_episodes(run)
    coverages = [episode["max_coverage"] for episode in episodes]
    charts = {
        "coverage": figures.coverage_curve(run.metrics),
        "loss": figures.loss_curves(run.metrics),
        "learning_rate": figures.learning_rate_curve(run.metrics),
        "histogram": figures.coverage_histogram(coverages, "max coverage of the episodes"),
    }
    videos = _videos(run, media)
    strip = part(run.evaluation, "film_strip")
    context = {
        "run": run,
        "title": run.coupling,
        "objective": objective_label(run),
        "status": _status(run),
        "headlines": headlines(run),
        "rules": _rules(run),
        "charts": {name: svg and Markup(svg) for name, svg in charts.items()},
        "has_intervals": bool(len(series(run.metrics, "rollout/max_coverage_low")[0])),
        "rollout_episodes": part(run.config, "rollout", "n_episodes"),
        "n_episodes": len(episodes),
        "extremes": _extremes(episodes),
        "videos": videos,
        "recorded": [video["seed"] for video in videos],
        "strip": media.item(f"media/{strip}", "film strip") if isinstance(strip, str) else None,
        "facts": _facts(run),
        "watch_command": _watch_command(run),
        "config_text": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else None,
    }
    return {**context, "problems": run.problems + media.problems}  # last: all of the above may add to them


def _videos(run: RunRecord, media: Media) -> list[dict[str, Any]]:
    names = part(run.evaluation, "videos")
    found = []
    for name in names if isinstance(names, list) else []:
        stem = Path(str(name)).stem
        item = media.item(f"media/{name}", stem.replace("_", " "))
        if item is not None:
            found.append({**item, "seed": stem.rpartition("_")[2]})
    return found


def _status(run: RunRecord) -> str | None:
    """What is unusual about the run, in one sentence; None for a finished one."""
    if run.finished:
        return None
    of = f" of {run.planned_steps:,}" if run.planned_steps is not None else ""
    begun = f"its last logged step is {run.last_step:,}{of}" if run.last_step else "it has logged no step yet"
    return f"This run has not finished: it has no readable summary.json, and {begun}."


def headlines(run: RunRecord) -> list[dict[str, Any]]:
    """The final evaluation's numbers as text, in the order in which they are quoted."""
    source = mapping(part(run.summary, "final")) or mapping(part(run.evaluation, "metrics"))
    definitions = {**DEFINITIONS, **mapping(part(run.evaluation, "definitions"))}
    known = [name for name in _HEADLINES if name in source]
    found = []
    for name in (*known, *(name for name in source if name not in known)):
        value = source[name]
        try:
            mean, n = float(value["mean"]), int(value["n"])
            ends = None if None in (value["low"], value["high"]) else (float(value["low"]), float(value["high"]))
        except DAMAGE:
            run.problems.append(f"summary.json: {name} of the final evaluation is no mean with an interval: {value!r}")
            continue
        shown = f"{mean:.0f}" if name == "length" else f"{100 * mean:.1f}%"
        definition = str(definitions.get(name, ""))
        found.append({"name": name, "shown": shown, "interval": _ends(name, ends), "n": n, "definition": definition})
    return found


def _ends(name: str, ends: tuple[float, float] | None) -> str:
    """An interval in percent, of lengths in steps."""
    if ends is None:
        return ""
    return f"[{ends[0]:.0f}, {ends[1]:.0f}]" if name == "length" else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def _rules(run: RunRecord) -> list[dict[str, Any]]:
    """The published checkpoint rules over the rollouts made while training."""
    rollouts = part(run.summary, "rollouts")
    rows = []
    for rule, definition in RULES.items():
        values = {measure: part(rollouts, measure, rule, "value") for measure in ("max_reward", "max_coverage")}
        n_points = part(rollouts, "max_reward", rule, "n_points")
        if all(isinstance(value, int | float) for value in values.values()):
            # The library's words name a k, which is 10 in the published tables.
            rows.append({**values, "n_points": n_points, "definition": definition.replace(" k ", " 10 ")})
    return rows


def checked_episodes(run: RunRecord) -> list[dict[str, Any]]:
    """The final evaluation's episodes, from the lowest to the highest max coverage."""
    try:
        checked = [
            {
                "seed": int(episode["seed"]),
                "success": bool(episode["success"]),
                "length": int(episode["length"]),
                **{name: float(episode[name]) for name in ("max_coverage", "final_coverage")},
            }
            for episode in part(run.evaluation, "episodes") or []
        ]
    except DAMAGE as error:
        run.problems.append(damaged("media/eval.json (episodes)", error))
        return []
    return sorted(checked, key=lambda episode: (episode["max_coverage"], episode["seed"]))


def _extremes(episodes: Sequence[dict[str, Any]]) -> list[tuple[str, Sequence[dict[str, Any]]]]:
    if len(episodes) <= 2 * _EXTREMES:
        return [("All episodes, worst first", episodes)]
    return [("Worst episodes", episodes[:_EXTREMES]), ("Best episodes", episodes[: -_EXTREMES - 1 : -1])]


def _watch_command(run: RunRecord) -> str:
    settings = mapping(part(run.evaluation, "settings"))
    names = ["num_inference_steps", "noise_seed", "mixed_precision", "sampler"]
    if settings.get("inference_coupling", "none") != "none":
        names += ["inference_coupling", "first_chunk", "selection", "known_only"]
    names += ["noise_scale"] if settings.get("noise_scale", 1.0) != 1 else []
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    options = [f"{name}={value}" for name, value in given.items()]
    return run.command("eval_policy", f"checkpoint={run.path_for_commands()}", "n_episodes=1", "n_videos=1", *options)


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Label and text of what a reader asks of a run beyond its scores."""
    summary = run.summary or {}
    source, settings = mapping(run.demonstrations), mapping(part(run.evaluation, "settings"))
    demonstrations = (
        f"{source.get('n_episodes')} episodes, {source.get('n_steps')} steps, {source.get('path')}"
        if source
        else "not recorded"
    )
    steps = summary.get("steps", run.last_step)
    limit, available = run.max_train_episodes, source.get("n_episodes")
    if limit is not None and isinstance(available, int) and limit < available:
        demonstrations += f"; trained on {limit} of the episodes"
    facts = [
        ("training seed", str(run.seed)),
        ("demonstrations", demonstrations),
        ("training steps", f"{steps:,}" if isinstance(steps, int) else str(steps)),
    ]
    if isinstance(summary.get("parameters"), int):
        facts.append(("parameters", f"{summary['parameters'] / 1e6:.2f} million"))
    facts.append(("precision", str(summary.get("precision", "not recorded"))))
    wall, cpu = _training_seconds(run)
    if wall is not None:
        threads = f", num_threads={summary['num_threads']}" if "num_threads" in summary else ""
        facts.append(("training time", f"{_duration(wall)} by the clock, {_duration(cpu)} of processors{threads}"))
    if settings:
        facts.append(("final evaluation", _evaluation_text(run, settings)))
    versions = mapping(summary.get("versions"))
    if versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _training_seconds(run: RunRecord) -> tuple[float | None, float | None]:
    stored = part(run.summary, "training_seconds")
    if stored:
        return part(stored, "wall"), part(stored, "cpu")
    last = [series(run.metrics, f"train/{name}")[1] for name in ("seconds", "cpu_seconds")]
    return (last[0][-1], last[1][-1]) if all(map(len, last)) else (None, None)


def _evaluation_text(run: RunRecord, settings: dict[str, Any]) -> str:
    text = (
        f"{settings.get('n_episodes')} episodes from initial state {settings.get('seed_start')}, "
        f"{settings.get('sampler')} with {settings.get('num_inference_steps')} steps, "
        f"legacy={part(settings, 'task', 'legacy')}, "
        f"{', '.join([str(settings.get('mixed_precision')), *unusual_noise(settings)])}, "
        f"weights: {settings.get('weights')}"
    )
    seconds = [part(run.evaluation, "seconds", name) for name in ("policy", "simulator")]
    if None not in seconds:
        text += f"; {_duration(seconds[0])} in the policy, {_duration(seconds[1])} in the simulation"
    return text


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
