"""What couplings do to the noise, as a report: Markdown tables, JSON and figures of one analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.coupling import Coupling
from immiscible_policy.coupling.batches import Track, check_sizes, untracked
from immiscible_policy.coupling.divergence import fit_gaussian
from immiscible_policy.coupling.miscibility import NoiseClusters, independent_distance, noise_clusters
from immiscible_policy.coupling.survey import survey

_P_VALUE = ".1g"
_PUBLISHED_COUNT = 10_000  # noises of a cluster in "Improved Immiscible Diffusion", section 3.2
# Statistic, column head, format, factor.
_COLUMNS = (
    ("distance_change", "distance change, %", "+.2f", 1.0),
    ("from_shorter_noise", "from shorter noise, %", ".0f", 100.0),
    ("alignment", "alignment", "+.3f", 1.0),
    ("noise_mean", "noise mean", "+.4f", 1.0),
    ("noise_variance", "variance", ".4f", 1.0),
    ("noise_norm", "norm²/D", ".4f", 1.0),
    ("ks_rejected", "KS rejected, %", ".1f", 100.0),
    ("reuse", "reuse, %", ".1f", 100.0),
    ("divergence", "KL per datum", ".3f", 1.0),
)
_SKEW_COLUMNS = (
    ("data_skew", "explained by data, %", ".2f", 100.0),
    ("condition_skew", "explained by condition, %", ".3f", 100.0),
    ("condition_alignment", "along predicted data", "+.3f", 1.0),
    ("condition_divergence", "KL given condition, at least", ".3f", 1.0),
    ("class_shift", "class shift", ".3f", 1.0),
    ("class_p_value", "p of class shift", _P_VALUE, 1.0),
)


def analyze(
    data: Tensor,
    couplings: Mapping[str, Coupling],
    condition: Tensor | None = None,
    batch_sizes: Sequence[int] = (256,),
    n_noises: int = 10_240,
    seed: int = 0,
    n_tracked: int = 0,
    n_cluster_noises: int = 2_000,
    n_fit_noises: int = 0,
    track: Track = untracked,
) -> dict[str, Any]:
    """Everything that the report states, as plain values.

    Args:
        couplings: by name. data, condition, seed, track: as :func:`survey` takes them.
        batch_sizes: with several, each coupling has a row for each.
        n_noises: for the table, by coupling and batch size, in ``n_noises // batch_size`` batches.
        n_tracked: data whose noise clusters are measured; 0 leaves the section out.
        n_cluster_noises: noises for each of them.
        n_fit_noises: noises for the Gaussian fit; 0 leaves the section out.
    """
    if not batch_sizes or min(batch_sizes) < 1 or n_noises < max(batch_sizes):
        raise ValueError(f"n_noises must be at least a batch, got {n_noises} noises in batches of {list(batch_sizes)}")
    for size in batch_sizes:  # before the long work
        check_sizes(len(data), size, least=max(2, n_tracked))
    analysis: dict[str, Any] = {"settings": [], "rows": {}, "clusters": {}, "gaussian_fit": {}}
    for size in batch_sizes:
        named = {n if len(batch_sizes) == 1 else f"{n}, B={size}": coupling for n, coupling in couplings.items()}
        one = survey(data, named, condition, size, n_noises // size, seed, track).as_dict()
        analysis["settings"].append(one["settings"])
        analysis["definitions"] = one["definitions"]
        analysis["rows"].update(one["rows"])
        for name, coupling in named.items():
            if n_tracked:
                tracked = tracked_data(len(data), n_tracked, seed)
                clusters = noise_clusters(coupling, data, tracked, n_cluster_noises, size, condition, seed, track)
                analysis["clusters"][name] = _cluster_row(clusters)
            if n_fit_noises:
                fit = fit_gaussian(coupling, data, n_fit_noises, size, condition, seed, track)
                analysis["gaussian_fit"][name] = {**asdict(fit), "excess": fit.excess}
    return analysis


def _cluster_row(clusters: NoiseClusters) -> dict[str, Any]:
    """Cluster distances, also as 10,000 noises (the published number) would show them."""
    values = {
        "shift": clusters.shift(),
        "distance": clusters.distance(),
        "distance_at_10000": clusters.distance(_PUBLISHED_COUNT),
    }
    n_tracked, dims = clusters.centres.shape
    return {
        **{name: asdict(value) for name, value in values.items()},
        "n_tracked": n_tracked,
        "n_noises": clusters.count,
        "independent": independent_distance(dims, clusters.count),
        "pair_distances": [round(value, 4) for value in clusters.distances().tolist()],
    }


def tracked_data(n_data: int, n_tracked: int, seed: int) -> Tensor:
    """(T,) indices of the data whose clusters are followed, in increasing order."""
    if not 2 <= n_tracked <= n_data:
        raise ValueError(f"tracked data must number from 2 to {n_data}, got {n_tracked}")
    return torch.randperm(n_data, generator=torch.Generator().manual_seed(seed))[:n_tracked].sort().values


# --- Markdown ----------------------------------------------------------------------------------------


def markdown(analysis: Mapping[str, Any]) -> str:
    """The analysis as Markdown tables, each under a sentence that says how it was measured."""
    all_settings = analysis["settings"]
    first = all_settings[0]
    shape = " x ".join(str(size) for size in first["shape"])
    batches = " or ".join(f"{one['n_batches']:,} batches of {one['batch_size']:,}" for one in all_settings)
    groups = " or ".join(f"{one['groups_for_regressions']} x {one['rows_of_a_group']:,}" for one in all_settings)
    lines = [
        f"{batches} of {first['n_data']:,} data ({shape}, mean norm {first['mean_norm_of_data']:.3g}), seed "
        f"{first['seed']}; mean over batches [95% interval].",
        "",
        *_table(analysis["rows"], _COLUMNS),
        "",
        f"Skew: linear regressions within groups of rows ({groups}), mean over groups [95% interval].",
        "",
        *_table(analysis["rows"], _SKEW_COLUMNS),
    ]
    if analysis["clusters"]:
        lines += ["", *_cluster_lines(analysis["clusters"])]
    if analysis["gaussian_fit"]:
        lines += ["", *_fit_lines(analysis["gaussian_fit"])]
    return "\n".join([*lines, ""])


def _table(rows: Mapping[str, Any], columns: Sequence[tuple[str, str, str, float]]) -> list[str]:
    shown = [column for column in columns if any(_is_number(row[column[0]]["mean"]) for row in rows.values())]
    lines = [f"| coupling | {' | '.join(head for _, head, _, _ in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for name, row in rows.items():
        cells = [_cell(row[key], form, factor) for key, _, form, factor in shown]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _cell(estimate: Mapping[str, Any], form: str, factor: float) -> str:
    if not _is_number(estimate["mean"]):
        return "n/a"
    if form == _P_VALUE and estimate["mean"] < 1e-300:
        return "< 1e-300"
    text = format(factor * estimate["mean"], form)
    if not _is_number(estimate["low"]):
        return text
    return f"{text} [{format(factor * estimate['low'], form)}, {format(factor * estimate['high'], form)}]"


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _cluster_lines(clusters: Mapping[str, Any]) -> list[str]:
    first = next(iter(clusters.values()))
    columns = {"distance": f"{first['n_noises']:,} noises"}
    if first["n_noises"] != _PUBLISHED_COUNT:
        columns["distance_at_10000"] = f"as {_PUBLISHED_COUNT:,} noises would show it"
    lines = [
        f"Noise clusters of {first['n_tracked']} tracked data: distance between the mean noises of two data, mean ± "
        f"deviation over pairs (by sampling alone {first['independent']:.3f} at {first['n_noises']:,} noises), and the "
        "root mean square distance without sampling noise ± its standard error.",
        "",
        f"| coupling | {' | '.join(columns.values())} | without sampling noise |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, row in clusters.items():
        cells = [f"{row[key]['mean']:.2f} ± {row[key]['deviation']:.2f}" for key in columns]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {row['shift']['mean']:.2f} ± {row['shift']['error']:.2f} |")
    return lines


def _fit_lines(fits: Mapping[str, Any]) -> list[str]:
    first = next(iter(fits.values()))
    lines = [
        f"Gaussian fit to {first['n']:,} noises: KL(N(mean, covariance) || N(0, I)) in nats; draws of N(0, I) give "
        f"{first['bias']:.2f} ± {first['deviation']:.2f} (analytic).",
        "",
        "| coupling | fitted KL | less the bias | tr S / D |",
        "|---|---|---|---|",
    ]
    for name, fit in fits.items():
        lines.append(f"| `{name}` | {fit['divergence']:.2f} | {fit['excess']:+.2f} | {fit['trace']:.4f} |")
    return lines


# --- files -------------------------------------------------------------------------------------------


def write_report(folder: Path, analysis: Mapping[str, Any]) -> list[Path]:
    """Write ``analysis.json``, ``table.md`` and the figures to a folder; each file appears whole or not at all."""
    from immiscible_policy.evaluation.coupling_figure import plot_clusters, plot_statistics
    from immiscible_policy.files import write_json, write_text

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "analysis.json", folder / "table.md", folder / "statistics.png"]
    write_json(written[0], dict(analysis))
    write_text(written[1], markdown(analysis))
    plot_statistics(analysis, written[2])
    if analysis["clusters"]:
        written.append(folder / "clusters.png")
        plot_clusters(analysis["clusters"], written[-1])
    return written
