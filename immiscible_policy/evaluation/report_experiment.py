"""What the report of an experiment shows, for ``report_templates/experiment.html.jinja``."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from immiscible_policy.evaluation import report_figures as figures
from immiscible_policy.evaluation.report_data import (
    DAMAGE,
    REPORT,
    RunRecord,
    arm_labels,
    context_labels,
    damaged,
    evaluation_labels,
    find_runs,
    part,
    read_run,
    series,
)
from immiscible_policy.evaluation.report_media import Media, markdown_html
from immiscible_policy.evaluation.report_run import checked_episodes, headlines
from immiscible_policy.evaluation.table import coverage_table, markdown, table_run


def experiment_context(folder: Path, media: Media) -> dict[str, Any]:
    """The template's variables; ``problems`` names every file that could not be read.

    Raises:
        ValueError: nothing below the folder can be reported.
    """
    runs = [read_run(path) for path in find_runs(folder)]
    pictures = [_picture(media, folder, path) for path in sorted(folder.glob("figures/**/*.png"))]
    pictures += [
        media.item(str(path.relative_to(folder)), f"ways round the block{told}, {path.parent.name}")
        for name, told in (("modes", ""), ("modes_warm", " with chosen noise"))
        for path in _of_first_seeds(folder.glob(f"cells/*/{name}.png"))
    ]
    tables = [_markdown_file(media, folder, path) for path in sorted(folder.glob("tables/**/*.md"))]
    if not (runs or pictures or tables):
        raise ValueError(f"{folder}: neither a run folder nor one that holds runs, figures/*.png or tables/*.md")
    labels = arm_labels(runs)
    evaluated = [_joined(label, evaluation) for label, evaluation in zip(labels, evaluation_labels(runs), strict=True)]
    curves: dict[str, list[figures.Curve]] = defaultdict(list)
    coverages: dict[str, list[float]] = defaultdict(list)
    for run, label, evaluated_label in zip(runs, labels, evaluated, strict=True):
        curves[label].append(series(run.metrics, "rollout/max_coverage"))
        coverages[evaluated_label] += [episode["max_coverage"] for episode in checked_episodes(run)]
    histograms = [
        {"arm": label, "svg": Markup(figures.coverage_histogram(values, f"max coverage, {label}")), "n": len(values)}
        for label, values in sorted(coverages.items())
        if values
    ]
    chart = figures.arm_curves(dict(sorted(curves.items())))
    context = {
        "title": folder.resolve().name,
        "runs": [_run_row(run, label, folder) for run, label in zip(runs, evaluated, strict=True)],
        "n_finished": sum(run.finished for run in runs),
        "coverage_tables": _coverage_tables(runs),
        "chart": Markup(chart[0]) if chart else None,
        "legend": chart[1] if chart else [],
        "histograms": histograms,
        "pictures": [picture for picture in pictures if picture],
        "tables": [table for table in tables if table],
        "files": sorted(path.name for path in folder.iterdir() if path.suffix in (".parquet", ".csv", ".json")),
    }
    problems = [f"{run.folder.relative_to(folder)}: {text}" for run in runs for text in run.problems]
    return {**context, "problems": problems + media.problems}  # last: all of the above may add to them


def _of_first_seeds(paths: Iterable[Path]) -> list[Path]:
    """Of files in cells' folders, ``<levels>-seed<n>``, one for all levels."""
    first: dict[str, Path] = {}
    for path in sorted(paths):
        first.setdefault(path.parent.name.rpartition("-seed")[0], path)
    return list(first.values())


def _run_row(run: RunRecord, label: str, folder: Path) -> dict[str, Any]:
    final = [value for value in headlines(run) if value["name"] == "max_coverage"]
    rollouts = series(run.metrics, "rollout/max_coverage")[1]
    name = run.folder.relative_to(folder)
    return {
        "name": str(name),
        "report": str(name / REPORT) if (run.folder / REPORT).is_file() else None,
        "arm": label,
        "seed": run.seed,
        "steps": run.last_step,
        "state": "finished" if run.finished else "not finished",
        "coverage": final[0] if final else None,
        "last_rollout": float(rollouts[-1]) if len(rollouts) else None,
    }


def _coverage_tables(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A coverage table for every set of finished runs that can be compared; ``problem`` says where one cannot be made.

    Couplings and demonstrations make the rows of a table, whatever else differs makes tables.
    """
    finished = [run for run in runs if run.finished]
    groups: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    for run, *labels in zip(finished, context_labels(finished), evaluation_labels(finished), strict=True):
        comparable = (str(part(run.summary, key)) for key in ("evaluation_settings", "steps", "parameters"))
        groups[(_joined(*labels), *comparable)].append(run)
    tables = []
    for (title, *_), group in sorted(groups.items()):
        loaded, unreadable = [], []
        for run in group:
            try:
                loaded.append(table_run(run))
            except ValueError as error:
                unreadable.append(f"{run.folder.name}: {error}")
        html, problem = None, None
        try:
            html = markdown_html(markdown(coverage_table(loaded))) if loaded else None
        except DAMAGE as error:
            problem = " ".join(str(error).split())
        tables.append({"title": title, "html": html, "problem": "; ".join(filter(None, [problem, *unreadable]))})
    return tables


def _joined(*labels: str) -> str:
    return ", ".join(label for label in labels if label)


def _picture(media: Media, folder: Path, path: Path) -> dict[str, Any] | None:
    return media.item(str(path.relative_to(folder)), path.stem.replace("_", " "))


def _markdown_file(media: Media, folder: Path, path: Path) -> dict[str, Any] | None:
    name = str(path.relative_to(folder))
    try:
        return {"path": name, "title": path.stem.replace("_", " "), "html": markdown_html(path.read_text())}
    except DAMAGE as error:
        media.problems.append(damaged(name, error))
        return None
