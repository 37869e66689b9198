"""The two-dimensional benchmark over couplings and training seeds: resumable results, and the published numbers beside.

Training and measurement are in ``moons``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment, TargetRate
from immiscible_policy.evaluation.moons import Protocol, Scores, eight_gaussians, evaluate, train
from immiscible_policy.evaluation.table_files import markdown as markdown_table
from immiscible_policy.evaluation.variance_components import TInterval, mean_t, paired_difference_t
from immiscible_policy.files import write_json

MEASURES = ("euler", "adaptive")


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        couple: makes the coupling; a new one for every training, since some remember.
        conditions: what it is for.
        in_order: see ``moons.train``.
    """

    couple: Callable[[], Coupling]
    conditions: tuple[str, ...] = ("none", "class", "x")
    in_order: bool = False


ARMS = {
    "fm": Arm(lambda: Independent(source=eight_gaussians), in_order=True),
    "ot": Arm(lambda: LinearAssignment("sqeuclidean", source=eight_gaussians)),
    # A weight that is as good as infinite, in the authors' code: noises stay with their class.
    "c2ot": Arm(lambda: LinearAssignment("sqeuclidean", within="condition", source=eight_gaussians), ("class",)),
    "c2ot_rate": Arm(
        lambda: LinearAssignment(
            "sqeuclidean",
            condition_weight=TargetRate(0.05, initial=100.0, tolerance=1e-3, iterations=10),
            condition_metric="sqeuclidean",
            source=eight_gaussians,
        ),
        ("x",),
    ),
    "fm_shuffled": Arm(lambda: Independent(source=eight_gaussians)),
    "knn": Arm(lambda: KNN(k=4, source=eight_gaussians)),
}
"""fm, ot, c2ot and c2ot_rate are the published ones. fm_shuffled differs from fm in the order of the points alone. It
is the baseline of the others, whose order is random too."""

BASELINE = "fm_shuffled"

# Figure 1: mean and standard deviation (numpy's, of a population) over 10 training seeds, of one Euler step and of the
# adaptive solver.
PUBLISHED_SEEDS = 10
PUBLISHED = {
    ("none", "fm"): ((6.232, 0.186), (0.120, 0.045)),
    ("none", "ot"): ((0.072, 0.025), (0.050, 0.040)),
    ("class", "fm"): ((2.573, 0.112), (0.059, 0.029)),
    ("class", "ot"): ((0.483, 0.059), (0.462, 0.025)),
    ("class", "c2ot"): ((0.048, 0.010), (0.018, 0.006)),
    ("x", "fm"): ((0.732, 0.052), (0.028, 0.010)),
    ("x", "ot"): ((8.276, 6.510), (2.143, 1.993)),
    ("x", "c2ot_rate"): ((0.077, 0.024), (0.013, 0.003)),
}

NOTE = (
    "Squared 2-Wasserstein distance between {n:,} generated points and as many of the moons: mean [95% t interval over "
    "training seeds], the standard deviation over them, as published (mean ± standard deviation over 10), and the "
    "p-value of Welch's t test that the two means are of the same population. "
    "Differences to `{baseline}` are paired by training seed. Perfect points are not at distance 0: two draws of the "
    "moons are {floor:.3f} apart."
)


def check_arms(condition: str, arms: Sequence[str]) -> None:
    """Raise a ValueError for an arm that does not exist, or not with this condition."""
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"arm {arm!r}: choose some of {', '.join(ARMS)}")
        if condition not in ARMS[arm].conditions:
            raise ValueError(f"arm {arm!r} is for condition {' or '.join(ARMS[arm].conditions)}, not {condition!r}")


def run_benchmark(
    path: Path,
    cells: Sequence[tuple[str, str, int]],
    protocol: Protocol | None = None,
    on_result: Callable[[str, str, int, Mapping[str, float]], None] = lambda *result: None,
    track: Callable[[Sequence[int]], Sequence[int]] = lambda steps: steps,
) -> dict[str, Any]:
    """Train and measure what ``path`` does not hold yet, and write it there after every training.

    Args:
        path: a JSON file; started anew where it does not exist.
        cells: condition, arm and training seed of each training.
        on_result: told of every training, with its scores.

    Returns:
        what the file holds: ``protocol``, and ``results``, condition -> arm -> training seed -> scores and seconds.

    Raises:
        ValueError: an arm that does not exist, or a file of another protocol.
    """
    protocol = Protocol() if protocol is None else protocol
    for condition, arm, _ in cells:
        check_arms(condition, [arm])
    content = load_results(path, protocol)
    for condition, arm, seed in cells:
        done = content["results"].setdefault(condition, {}).setdefault(arm, {})
        if str(seed) not in done:
            done[str(seed)] = _one(condition, arm, seed, protocol, track)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        on_result(condition, arm, seed, done[str(seed)])
    return content


def load_results(path: Path, protocol: Protocol) -> dict[str, Any]:
    """What a file holds, or an empty beginning; a ValueError where it was made under another protocol."""
    if not path.is_file():
        return {"protocol": asdict(protocol), "results": {}}
    content = json.loads(path.read_text())
    if content.get("protocol") != asdict(protocol):
        raise ValueError(f"{path} holds results of another protocol, {content.get('protocol')}: take another file")
    return content


def markdown(content: Mapping[str, Any], floor: float) -> str:
    """A table for every condition.

    Args:
        floor: distance between two draws of the moons.
    """
    lines = [NOTE.format(n=content["protocol"]["n_points"], baseline=BASELINE, floor=floor), ""]
    for condition, arms in content["results"].items():
        told = {"none": "unconditional", "class": "told the moon", "x": "told the first coordinate"}[condition]
        head = [told, "training seeds"]
        for title in ("one Euler step", "adaptive"):
            head += [title, "SD", "published", "p", "difference"]
        rows = [[f"`{arm}`", str(len(arms[arm])), *_cells(condition, arm, arms)] for arm in ARMS if arms.get(arm)]
        lines.append(markdown_table([head, *rows]))
    return "\n".join(lines)


def p_of_published(condition: str, arm: str, measure: str, values: Sequence[float]) -> float | None:
    """Welch's two-sided t test of our training seeds against the published mean and standard deviation.

    Returns:
        its p-value; None where nothing is published, or of fewer than two seeds.
    """
    from scipy.stats import ttest_ind_from_stats  # slow to import

    if (condition, arm) not in PUBLISHED or len(values) < 2:
        return None
    mean, deviation = PUBLISHED[condition, arm][MEASURES.index(measure)]
    deviation *= np.sqrt(PUBLISHED_SEEDS / (PUBLISHED_SEEDS - 1))
    ours = (np.mean(values), np.std(values, ddof=1), len(values))
    return float(ttest_ind_from_stats(*ours, mean, deviation, PUBLISHED_SEEDS, equal_var=False).pvalue)


def _cells(condition: str, arm: str, arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    for index, measure in enumerate(MEASURES):
        values = {seed: scores[measure] for seed, scores in arms[arm].items()}
        yield _text(mean_t(np.array(list(values.values()))[:, None]))
        yield f"{np.std(list(values.values()), ddof=1):.3f}" if len(values) > 1 else ""
        published = PUBLISHED.get((condition, arm))
        yield "" if published is None else f"{published[index][0]:.3f} ± {published[index][1]:.3f}"
        p = p_of_published(condition, arm, measure, list(values.values()))
        yield "" if p is None else f"{p:.2g}"
        base = arms.get(BASELINE, {})
        shared = [seed for seed in values if seed in base]
        if arm == BASELINE or not shared:
            yield ""
            continue
        own, other = (np.array([[side[seed]] for seed in shared]) for side in (values, _measure(base, measure)))
        yield _text(paired_difference_t(own, other), "+.3f")


def _measure(arm: Mapping[str, Mapping[str, float]], measure: str) -> dict[str, float]:
    return {seed: scores[measure] for seed, scores in arm.items()}


def _text(interval: TInterval, form: str = ".3f") -> str:
    if np.isnan(interval.low):
        return format(interval.mean, form)
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _one(
    condition: str, arm: str, seed: int, protocol: Protocol, track: Callable[[Sequence[int]], Sequence[int]]
) -> dict[str, float]:
    began = time.process_time()
    network = train(ARMS[arm].couple(), condition, seed, protocol, ARMS[arm].in_order, track)
    trained = time.process_time()
    # The points that are compared are others than those of training.
    scores: Scores = evaluate(network, condition, seed + 1_000_003, protocol)
    return {
        **asdict(scores),
        "training_cpu_seconds": trained - began,
        "evaluation_cpu_seconds": time.process_time() - trained,
    }
