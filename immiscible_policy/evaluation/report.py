"""``report.html``: a training run, or an experiment of several, as one file that needs no network and no other file.

Charts are inline SVG, pictures and videos data URIs; beyond a size limit media are linked beside the file instead. The
page runs no script and forbids every request by its content security policy.
"""

import os
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from immiscible_policy.evaluation.report_data import POLICY_SCRIPT, REPORT, SOURCES, find_runs, is_run
from immiscible_policy.evaluation.report_experiment import experiment_context
from immiscible_policy.evaluation.report_media import Media
from immiscible_policy.evaluation.report_run import run_context
from immiscible_policy.files import write_text
from immiscible_policy.run_setup import made_by

MAX_EMBEDDED_MB = 24.0


class Report(NamedTuple):
    """A report that was written, and what could not be read for it, a line each."""

    path: Path
    problems: list[str]


def write_reports(folder: Path, max_embedded_mb: float = MAX_EMBEDDED_MB) -> list[Report]:
    """``write_report`` for the folder, after those of the runs below it that have none or an outdated one."""
    below = [] if is_run(folder) else [run for run in find_runs(folder) if not _is_up_to_date(run)]
    return [write_report(each, max_embedded_mb) for each in (*below, folder)]


def write_report(folder: Path, max_embedded_mb: float = MAX_EMBEDDED_MB) -> Report:
    """Write ``report.html`` into a run folder, or into a folder that holds runs or their ``figures`` and ``tables``.

    The file is replaced atomically. A half-finished run's report says so; files that cannot be read are named in it.

    Args:
        folder: a run folder (see ``report_data.is_run``), else an experiment's.
        max_embedded_mb: megabytes of pictures and videos put into the file, >= 0; what is left is linked relatively.

    Raises:
        ValueError: max_embedded_mb is negative, or the folder holds nothing to report.
        OSError: the folder cannot be read or written.
    """
    if not max_embedded_mb >= 0:
        raise ValueError(f"max_embedded_mb={max_embedded_mb}: must be at least 0")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    media = Media(folder, max_embedded_mb)
    if is_run(folder):
        if (script := made_by(folder)) not in (None, POLICY_SCRIPT):
            raise ValueError(f"{folder}: a run of scripts/{script}.py; reports are of runs of {POLICY_SCRIPT}.py")
        name, context = "run.html.jinja", run_context(folder, media)
    else:
        name, context = "experiment.html.jinja", experiment_context(folder, media)
    html = _template(name).render(context, generated=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    target = folder / REPORT
    write_text(target, html)
    return Report(target, context["problems"])


def _is_up_to_date(run: Path) -> bool:
    report = run / REPORT
    sources = [run / name for name in SOURCES if (run / name).exists()]
    return report.exists() and all(source.stat().st_mtime <= report.stat().st_mtime for source in sources)


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "report_templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, relative=_relative)
    return environment.get_template(name)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _relative(path: str) -> str:
    """A relative path as a link's target."""
    return quote(path.replace(os.sep, "/"))
