"""The benchmark's results: resumed, compared by training seed, beside the published numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t

from immiscible_policy.coupling import KNN, LinearAssignment
from immiscible_policy.evaluation import moons_report
from immiscible_policy.evaluation.moons import CONDITIONS, Protocol, eight_gaussians
from immiscible_policy.evaluation.moons_report import (
    ARMS,
    MEASURES,
    PUBLISHED,
    markdown,
    p_of_published,
    run_benchmark,
)

TINY = Protocol(iterations=4, batch_size=8, coupled_size=16, width=4, depth=1, n_points=20)


def test_every_arm_trains_and_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "moons.json"
    cells = [(condition, arm, 1) for condition in CONDITIONS for arm in ARMS if condition in ARMS[arm].conditions]
    told = []
    content = run_benchmark(path, cells, TINY, lambda *result: told.append(result))
    assert [result[:3] for result in told] == cells
    assert json.loads(path.read_text()) == content
    assert {"euler", "adaptive", "n_calls", "training_cpu_seconds"} < set(content["results"]["x"]["ot"]["1"])
    monkeypatch.setattr(moons_report, "train", None)
    assert run_benchmark(path, cells, TINY) == content
    text = markdown(content, 0.0)
    assert text.count("| `knn` |") == 3
    assert "| 6.232 ± 0.186 |" in text


def test_a_killed_run_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "moons.json"
    original = moons_report._one

    def one(condition, arm, seed, *others):
        if seed == 2:
            raise KeyboardInterrupt
        return original(condition, arm, seed, *others)

    monkeypatch.setattr(moons_report, "_one", one)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(path, [("none", "knn", seed) for seed in (1, 2)], TINY)
    assert list(json.loads(path.read_text())["results"]["none"]["knn"]) == ["1"]


def test_arms_and_files_that_do_not_fit_are_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "moons.json"
    with pytest.raises(ValueError, match="arm 'c2ot' is for condition class, not 'none'"):
        run_benchmark(path, [("none", "fm", 0), ("none", "c2ot", 0)], TINY)
    with pytest.raises(ValueError, match="choose some of fm, ot"):
        run_benchmark(path, [("none", "nothing", 0)], TINY)
    assert not path.exists()
    run_benchmark(path, [("none", "fm", 0)], TINY)
    with pytest.raises(ValueError, match="another protocol"):
        run_benchmark(path, [("none", "fm", 0)], Protocol())


def test_differences_are_to_the_baseline_of_the_same_seed() -> None:
    def scores(euler: float) -> dict[str, float]:
        return {"euler": euler, "adaptive": 0.5, "n_calls": 20.0}

    arms = {
        "knn": {"0": scores(1.0), "1": scores(3.0), "9": scores(5.0)},
        "fm_shuffled": {"1": scores(2.0), "0": scores(0.5)},
    }
    text = markdown({"protocol": {"n_points": 20}, "results": {"none": arms}}, 0.125)
    row = next(line for line in text.splitlines() if line.startswith("| `knn`"))
    assert row.startswith("| `knn` | 3 | 3.000 [-1.968, 7.968] | 2.000 |  |  | +0.750 [-2.427, +3.927] | 0.500")
    assert "0.125 apart" in text


def test_p_of_published_is_the_tail_of_welchs_t() -> None:
    ours = [5.6, 6.1, 6.0]
    mean, deviation = PUBLISHED["none", "fm"][0]
    errors = np.var(ours, ddof=1) / 3, deviation**2 / 9  # the published variance is over n, not n - 1
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 9)
    expected = 2 * t.sf(abs(np.mean(ours) - mean) / math.sqrt(sum(errors)), freedom)
    assert p_of_published("none", "fm", "euler", ours) == pytest.approx(expected, rel=1e-9)
    assert p_of_published("none", "fm", "euler", ours[:1]) is None
    assert p_of_published("none", "knn", "euler", ours) is None


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["fm", "ot"])
def test_the_published_distances_are_reached(arm: str, tmp_path: Path) -> None:
    """Of three trainings; about 20 minutes of one core for fm, and more than an hour for ot."""
    torch.set_num_threads(1)
    content = run_benchmark(tmp_path / "moons.json", [("none", arm, seed) for seed in range(3)])
    for measure in MEASURES:
        values = [scores[measure] for scores in content["results"]["none"][arm].values()]
        assert p_of_published("none", arm, measure, values) > 0.01, (measure, values)


def test_published_arms_exist_and_couple_squared_distances_from_the_source() -> None:
    for condition, arm in PUBLISHED:
        assert condition in ARMS[arm].conditions
        coupling = ARMS[arm].couple()
        assert coupling.source is eight_gaussians
        if arm != "fm":
            assert isinstance(coupling, LinearAssignment)
            assert coupling.metric == "sqeuclidean"
    knn = ARMS["knn"].couple()
    assert isinstance(knn, KNN)
    assert knn.k == 4
    assert ARMS["c2ot_rate"].couple().condition_weight is not ARMS["c2ot_rate"].couple().condition_weight
