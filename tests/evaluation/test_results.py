"""The tidy table of an experiment, and the tables made from it, on made-up scores whose answers are known."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kept_figures import kept_figures
from made_up_cells import episode
from scipy.stats import entropy

from immiscible_policy.evaluation.results import collect_results, load_results, write_evaluation
from immiscible_policy.evaluation.results_cells import percent_cell
from immiscible_policy.evaluation.results_figure import coverage_by_gap, coverage_by_steps, single_variant
from immiscible_policy.evaluation.results_modes import mode_rows
from immiscible_policy.evaluation.results_report import precision_note, write_tables
from immiscible_policy.evaluation.results_tables import (
    coverage_rows,
    gain_rows,
    gap_rows,
    level_rows,
    pooled_rows,
    rules_rows,
    step_rows,
    training_curves,
)
from immiscible_policy.evaluation.variance_components import mean_t

FIXED = {"observation": "keypoints"}
STATES = range(100, 140)


def settings(inference: str, steps: int = 4) -> dict[str, Any]:
    shared = {"sampler": "ddim", "selection": None, "first_chunk": "two_pass", "known_only": False, "noise_seed": 0}
    return {"num_inference_steps": steps, "inference_coupling": inference, **shared}


def ways(*clockwise: int) -> list[dict[str, int]]:
    """Of 16 repeats from each start, all of which go round."""
    return [{"clockwise": count, "counter_clockwise": 16 - count} for count in clockwise]


def write_cell(folder: Path, seed: int, offset: float, warm: float) -> None:
    """A run whose scores are shared noise of the states, plus ``offset``, plus ``warm`` with coupled inference."""
    rng = np.random.default_rng(seed)
    states = np.random.default_rng(99).uniform(0.2, 0.6, len(STATES))
    run = folder / "run"
    run.mkdir(parents=True)
    kept = ("versions", "training_seconds", "precision", "parameters", "demonstrations")
    summary = {"coupling": "KNN(k=2)", "steps": 20, "command": f"python train.py to={run}", **dict.fromkeys(kept)}
    (run / "summary.json").write_text(json.dumps(summary))
    for inference, gain in (("none", 0.0), ("warm", warm)):
        scores = states + offset + gain + rng.normal(0, 0.01, len(STATES))
        report = {
            "episodes": [episode(s, c) for s, c in zip(STATES, scores.tolist(), strict=True)],
            "settings": settings(inference),
            "seconds": {"policy": 1.0, "simulator": 1.0},
        }
        write_evaluation(folder / "evaluations" / f"{inference}.parquet", report)
    lines = [{"step": step, "train/loss": 1.0 / step} for step in range(1, 21)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rollouts = [
        {"step": step, "settings": settings("none", 2), "episodes": [episode(s, step / 40 + offset) for s in (1, 2)]}
        for step in (10, 20, 20)  # a resumed run repeats its last
    ]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rollouts))
    names = ("p_clockwise", "entropy", "imbalance", "direct")
    measures = {name: {"mean": 0.5 + seed / 100, "n": 16 - seed} for name in names}
    modes = {**measures, "imbalance_fair": 0.1, "per_start": ways(8, 4, 16, 1)}
    (folder / "modes.json").write_text(json.dumps(modes))
    error = {"error": 5.0 + seed, "bias": 3.0, "spread": 4.0}
    gap = {"shift": 0.25, "power": 0.875, "prior": error, "matched": None if seed == 7 else {**error, "error": 2.0}}
    (folder / "prior_gap.json").write_text(json.dumps(gap))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cells = []
    for seed in (0, 1, 2):
        for coupling, offset, warm in (("none", 0.0, 0.0), ("knn", -0.1, 0.15)):
            folder = tmp_path / "cells" / f"{coupling}-{seed}"
            write_cell(folder, seed, offset, warm)
            cells.append((folder, {**FIXED, "coupling": coupling}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    return tmp_path / "results.parquet"


def test_every_episode_stands_in_the_table_once(path: Path) -> None:
    results = load_results(path)
    assert results.name == "made up"
    assert results.factors == ["observation", "coupling"]
    assert int(results.where(kind="final").sum()) == 3 * 2 * 2 * len(STATES)
    assert int(results.where(kind="training").sum()) == 3 * 2 * 2 * 2
    scores = results.scores("max_coverage", kind="final", coupling="knn", inference_coupling="warm")
    assert sorted(scores) == [0, 1, 2]
    assert sorted(scores[1]) == list(STATES)
    with pytest.raises(ValueError, match="several episodes of initial state 100"):
        results.scores("max_coverage", kind="final", coupling="knn")
    assert results.levels("coupling") == ["none", "knn"]
    assert len(results.runs) == 6
    assert results.runs[0]["command"] == "python train.py to=outputs/experiments/made up/cells/none-0/run"


def test_differences_and_gains_are_those_put_in(path: Path) -> None:
    results = load_results(path)
    rows, content = coverage_rows(results, FIXED, "none")
    assert [row[1:3] for row in rows[1:]] == [["none", "none"], ["none", "warm"], ["knn", "none"], ["knn", "warm"]]
    differences = [row["difference"] for row in content]
    assert differences[0] is None
    assert differences[2]["mean"] == pytest.approx(-0.1, abs=0.01)
    assert differences[2]["high"] < 0
    assert differences[3]["mean"] == pytest.approx(0.05, abs=0.01)
    assert content[2]["n_episodes"] == len(STATES)
    _, gains = gain_rows(results, FIXED)
    assert [gain["coupling"] for gain in gains] == ["none", "knn"]
    assert gains[1]["difference"]["mean"] == pytest.approx(0.15, abs=0.01)
    assert gains[0]["difference"]["low"] < 0 < gains[0]["difference"]["high"]


def test_rows_of_another_sampler_are_named_and_compared_among_each_other(tmp_path: Path) -> None:
    """Their scores are higher by 0.2, and no choice of noise and no coupling gains from it."""
    cells = []
    for seed in (0, 1, 2):
        for coupling, offset in (("none", 0.0), ("knn", -0.1)):
            folder = tmp_path / "cells" / f"{coupling}-{seed}"
            write_cell(folder, seed, offset, 0.15)
            for path in sorted((folder / "evaluations").glob("*.parquet")):
                rows = pq.read_table(path).to_pylist()
                other = {**settings(path.stem), "sampler": "ddpm"}
                raised = [{**row, "max_coverage": row["max_coverage"] + 0.2} for row in rows]
                write_evaluation(
                    folder / "evaluations" / f"0_{path.name}",  # before the policies' own
                    {"episodes": raised, "settings": other, "seconds": {}},
                )
            cells.append((folder, {**FIXED, "coupling": coupling}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    results = load_results(tmp_path / "results.parquet")
    assert results.own_sampler(**FIXED) == "ddim"
    rows, content = coverage_rows(results, FIXED, "none")
    ways = [(coupling, inference) for coupling in ("none", "knn") for inference in ("none", "warm")]
    assert [tuple(row[1:3]) for row in rows[1:]] == [*ways, *((coupling, f"{way} ddpm") for coupling, way in ways)]
    assert [row["sampler"] for row in content] == 4 * ["ddim"] + 4 * ["ddpm"]
    own, other = content[:4], content[4:]
    for one, two in zip(own, other, strict=True):
        assert two["mean"]["mean"] == pytest.approx(one["mean"]["mean"] + 0.2)
        assert (one["difference"] is None) == (two["difference"] is None)
        if one["difference"] is not None:
            assert two["difference"]["mean"] == pytest.approx(one["difference"]["mean"])
    rows, content = gain_rows(results, FIXED)
    gains = {(row["coupling"], row["arm"]): row["difference"]["mean"] for row in content}
    assert set(gains) == {(c, name) for c in ("none", "knn") for name in ("warm", "none ddpm", "warm ddpm")}
    for (_, name), gain in gains.items():
        assert gain == pytest.approx(0.2 if name == "none ddpm" else 0.15, abs=0.01)
    chosen = single_variant(results, {**FIXED, "kind": "final", "coupling": "knn", "inference_coupling": "none"})
    assert chosen["sampler"] == "ddim"


def test_two_passes_stand_beside_one_of_as_many_network_calls(tmp_path: Path, monkeypatch) -> None:
    """Two passes of 2 steps gain 0.3; of 4 steps, which nothing of 8 stands beside, they go with what has 4."""
    cells = []
    for seed in (0, 1, 2):
        folder = tmp_path / f"cell-{seed}"
        write_cell(folder, seed, 0.0, 0.15)
        plain = pq.read_table(folder / "evaluations" / "none.parquet").to_pylist()
        for steps, gain in ((2, 0.3), (4, 0.4)):
            raised = [{**row, "max_coverage": row["max_coverage"] + gain} for row in plain]
            report = {"episodes": raised, "settings": settings("two_pass", steps), "seconds": {}}
            write_evaluation(folder / "evaluations" / f"twice{steps}.parquet", report)
        cells.append((folder, {**FIXED, "coupling": "none"}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    results = load_results(tmp_path / "results.parquet")
    rows, content = coverage_rows(results, FIXED, "none")
    names = ["warm", "two_pass", "two_pass 2 x 2"]
    assert [row[:3] for row in rows[1:]] == [["4", "none", name] for name in ("none", *names)]
    for of in (content[1:], gain_rows(results, FIXED)[1]):
        assert [row["arm"].split("|")[-1] for row in of] == names
        gains = [row["difference"]["mean"] for row in of]
        assert gains == pytest.approx([0.15, 0.4, 0.3], abs=0.01)
    drawn = kept_figures(monkeypatch, "results_figure")
    assert coverage_by_steps(results, FIXED, "none", tmp_path / "steps.png")
    axes = drawn[0].axes[0]
    assert axes.get_xticks().tolist() == [4, 8]  # 2 x 2 and 2 x 4
    assert any(line.get_xdata() == pytest.approx([4, 8], rel=0.1) for line in axes.lines if len(line.get_xdata()) == 2)
    assert "both passes" in drawn[0].get_supxlabel()


def test_differences_in_success_are_paired_by_training_seed(tmp_path: Path) -> None:
    cells = []
    for coupling, offset, seeds in (("none", 0.0, (0, 1)), ("knn", 0.5, (0, 1, 2))):
        for seed in seeds:
            folder = tmp_path / f"{coupling}-{seed}"
            write_cell(folder, seed, offset + 0.1 * (seed == 2), 0.0)
            cells.append((folder, {**FIXED, "coupling": coupling}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    results = load_results(tmp_path / "results.parquet")
    _, content = coverage_rows(results, FIXED, "none")
    scores = results.scores("success", kind="final", coupling="knn", inference_coupling="none")
    shares = {seed: np.mean(list(episodes.values())) for seed, episodes in scores.items()}
    assert 0.1 < shares[0] < shares[2]
    row = next(row for row in content if row["arm"] == "knn|none")
    assert row["success"] == pytest.approx(np.mean(list(shares.values())))
    assert row["success_difference"]["mean"] == pytest.approx(
        (shares[0] + shares[1]) / 2
    )  # the baseline never succeeds
    assert content[0]["success_difference"] is None


def test_gains_need_a_seed_that_has_both(tmp_path: Path) -> None:
    cells = [(tmp_path / f"cell-{seed}", {**FIXED, "coupling": "none"}, seed) for seed in (0, 1)]
    for (folder, _, seed), lacking in zip(cells, ("none", "warm"), strict=True):
        write_cell(folder, seed, 0.0, 0.4)
        (folder / "evaluations" / f"{lacking}.parquet").unlink()
    collect_results("made up", cells, tmp_path / "results.parquet")
    assert gain_rows(load_results(tmp_path / "results.parquet"), FIXED)[1] == []


def test_gains_in_success_are_of_the_seeds_that_have_both(tmp_path: Path) -> None:
    cells = []
    for seed, offset in ((0, 0.0), (1, 0.5)):
        folder = tmp_path / f"cell-{seed}"
        write_cell(folder, seed, offset, 0.4)
        cells.append((folder, {**FIXED, "coupling": "none"}, seed))
    (tmp_path / "cell-1" / "evaluations" / "warm.parquet").unlink()
    collect_results("made up", cells, tmp_path / "results.parquet")
    results = load_results(tmp_path / "results.parquet")
    rows, content = gain_rows(results, FIXED)
    warm, plain = (
        results.scores("max_coverage", kind="final", inference_coupling=name)[0] for name in ("warm", "none")
    )
    assert rows[1][3:5] == ["1", percent_cell(mean_t(np.array([list(warm.values())])))]
    assert content[0]["difference"]["mean"] == pytest.approx(
        np.mean(list(warm.values())) - np.mean(list(plain.values()))
    )
    plain = results.scores("success", kind="final", inference_coupling="none")
    assert content[0]["success_plain"] == np.mean(list(plain[0].values()))
    assert content[0]["success_plain"] != np.mean([list(scores.values()) for scores in plain.values()])


def with_fewer_steps(folder: Path, inference: str, steps: int, lost: float, moved: int = 0) -> None:
    """Evaluate the made-up run once more, with so many sampling steps and scores that are lower by ``lost``.

    Args:
        moved: how far the initial states are from the usual ones.
    """
    kept = pq.read_table(folder / "evaluations" / f"{inference}.parquet").to_pylist()
    episodes = [{**row, "seed": row["seed"] + moved, "max_coverage": row["max_coverage"] - lost} for row in kept]
    report = {"episodes": episodes, "settings": settings(inference, steps), "seconds": {}}
    write_evaluation(folder / "evaluations" / f"{inference}-{steps}.parquet", report)


def test_fewer_steps_are_compared_with_the_most_of_the_same_policies(tmp_path: Path) -> None:
    cells = []
    for seed in (0, 1, 2):
        folder = tmp_path / f"cell-{seed}"
        write_cell(folder, seed, 0.0, 0.1)
        with_fewer_steps(folder, "none", 1, lost=0.2)
        if seed < 2:
            with_fewer_steps(folder, "none", 2, lost=0.05)
        cells.append((folder, {**FIXED, "coupling": "none"}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    rows, content = step_rows(load_results(tmp_path / "results.parquet"), FIXED)
    # Warm sampling has one number of steps.
    assert [row[:4] for row in rows[1:]] == [
        ["none", "none", steps, n] for steps, n in (("4", "3"), ("2", "2"), ("1", "3"))
    ]
    assert content[0]["difference"] is None
    assert [row["difference"]["mean"] for row in content[1:]] == pytest.approx([-0.05, -0.2], abs=1e-6)
    assert [row["shared_seeds"] for row in content[1:]] == [(0, 1), (0, 1, 2)]
    assert [row["num_inference_steps"] for row in content] == [4, 2, 1]


def test_numbers_of_steps_are_compared_over_the_states_that_all_have(tmp_path: Path) -> None:
    cells = [(tmp_path / "cell", {**FIXED, "coupling": "none"}, 0)]
    write_cell(tmp_path / "cell", 0, 0.0, 0.1)
    with_fewer_steps(tmp_path / "cell", "none", 2, lost=0.05, moved=10)
    with_fewer_steps(tmp_path / "cell", "warm", 2, lost=0.05, moved=len(STATES))
    collect_results("made up", cells, tmp_path / "results.parquet")
    _, content = step_rows(load_results(tmp_path / "results.parquet"), FIXED)
    assert [(row["inference"], row["n_episodes"]) for row in content] == [("none", 30), ("none", 30)]


def test_evaluations_of_an_earlier_experiment_are_left_out(tmp_path: Path) -> None:
    write_cell(tmp_path / "cell", 0, 0.0, 0.1)
    cells, wanted = [(tmp_path / "cell", {**FIXED, "coupling": "none"}, 0)], {tmp_path / "cell": ["none.parquet"]}
    collect_results("made up", cells, tmp_path / "results.parquet", wanted)
    assert load_results(tmp_path / "results.parquet").levels("inference_coupling", kind="final") == ["none"]


def test_different_precisions_are_told(tmp_path: Path) -> None:
    write_cell(tmp_path / "cell", 0, 0.0, 0.1)
    for name, precision in (("none", "bf16"), ("warm", "fp32")):
        report = {
            "episodes": [episode(state, 0.9) for state in STATES],
            "settings": {**settings(name), "mixed_precision": precision},
            "seconds": {"policy": 1.0, "simulator": 1.0},
        }
        write_evaluation(tmp_path / "cell" / "evaluations" / f"{name}.parquet", report)
    collect_results("made up", [(tmp_path / "cell", {**FIXED, "coupling": "none"}, 0)], tmp_path / "results.parquet")
    write_tables(tmp_path / "results.parquet", tmp_path)
    note = "evaluated in the same precision** (1 in bf16 and fp32): 0 of the 0 that are compared"
    assert note in (tmp_path / "tables" / "coverage.md").read_text()


def test_it_is_told_whether_pairs_differ_in_precision(tmp_path: Path) -> None:
    trained = {(0, "none"): "bf16", (0, "knn"): "bf16", (1, "none"): "bf16", (1, "knn"): "fp32", (2, "knn"): "fp32"}
    cells = []
    for (seed, coupling), precision in trained.items():
        folder = tmp_path / f"{coupling}-{seed}"
        write_cell(folder, seed, 0.0, 0.0)
        summary = json.loads((folder / "run" / "summary.json").read_text())
        (folder / "run" / "summary.json").write_text(json.dumps({**summary, "precision": precision}))
        cells.append((folder, {**FIXED, "coupling": coupling}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    note = precision_note(load_results(tmp_path / "results.parquet"), "none")
    assert "trained in the same precision** (3 in bf16, 2 in fp32): 1 of the 2 that are compared with none" in note
    assert note.endswith("of the same training seed differ from it in that.")
    assert "evaluated" not in note


def test_gaps_between_training_noise_and_prior(path: Path, tmp_path: Path) -> None:
    rows, content = gap_rows(load_results(path), FIXED)
    assert [row[:5] for row in rows[1:]] == [
        [name, "3", "0.25 [0.25, 0.25]", "0.88 [0.88, 0.88]", "6.00 [3.52, 8.48]"] for name in ("none", "knn")
    ]
    assert content[0]["error, matched noise"]["mean"] == 2.0
    # Of a coupling that cannot choose for new data, only what follows from the prior is known.
    write_cell(tmp_path / "cache", 7, 0.0, 0.0)
    collect_results("made up", [(tmp_path / "cache", {**FIXED, "coupling": "cache"}, 7)], tmp_path / "one.parquet")
    rows, content = gap_rows(load_results(tmp_path / "one.parquet"), FIXED)
    assert rows[1] == ["cache", "1", "", "", "12.00", "3.00", "4.00", ""]
    assert "shift" not in content[0]


def test_figures_show_the_default_variant(tmp_path: Path) -> None:
    write_cell(tmp_path / "cell", 0, 0.0, 0.1)
    changes = (
        {"first_chunk": "independent"},
        {"known_only": True},
        {"noise_seed": 1},
        {"noise_scale": 0.9},
        {"num_inference_steps": 8},
    )
    for name, change in zip("abcde", changes, strict=True):
        report = {
            "episodes": [episode(state, 0.9) for state in STATES],
            "settings": {**settings("warm"), **change},
            "seconds": {"policy": 1.0, "simulator": 1.0},
        }
        write_evaluation(tmp_path / "cell" / "evaluations" / f"{name}.parquet", report)
    collect_results("made up", [(tmp_path / "cell", {**FIXED, "coupling": "knn"}, 0)], tmp_path / "results.parquet")
    results = load_results(tmp_path / "results.parquet")
    values = single_variant(results, {"kind": "final", "inference_coupling": "warm", "num_inference_steps": 4})
    assert (values["first_chunk"], values["known_only"], values["noise_seed"]) == ("two_pass", False, 0)
    assert values["noise_scale"] == 1.0  # also of evaluations from before there was such a setting
    assert "warm x 0.9" in [row[2] for row in coverage_rows(results, FIXED, "knn")[0]]
    assert max(results.scores("max_coverage", **values)[0].values()) < 0.85
    assert coverage_by_steps(results, FIXED, "none", tmp_path / "steps.png")


def test_marks_are_open_where_fewer_training_seeds_were_evaluated(tmp_path: Path, monkeypatch) -> None:
    drawn = kept_figures(monkeypatch, "results_figure")
    cells = [(tmp_path / f"cell-{seed}", {**FIXED, "coupling": "none"}, seed) for seed in (0, 1)]
    for folder, _, seed in cells:
        write_cell(folder, seed, 0.0, 0.0)
    for seeds in ((0, 1), (0,)):
        for folder, _, seed in cells:
            more = {"episodes": [episode(s, 0.75) for s in STATES], "settings": settings("none", 16), "seconds": {}}
            (folder / "evaluations" / "more.parquet").unlink(missing_ok=True)
            if seed in seeds:
                write_evaluation(folder / "evaluations" / "more.parquet", more)
        collect_results("made up", cells, tmp_path / "results.parquet")
        assert coverage_by_steps(load_results(tmp_path / "results.parquet"), FIXED, "none", tmp_path / "steps.png")
    every, fewer = (figure.axes[0] for figure in drawn)
    assert [line.get_markerfacecolor() for line in every.lines].count("white") == 0
    opened = [line for line in fewer.lines if line.get_markerfacecolor() == "white"]
    assert [np.asarray(line.get_data()).ravel().tolist() for line in opened] == [[16, 75]]
    assert "open: fewer seeds" in drawn[1].legends[0].get_title().get_text()
    assert "open" not in drawn[0].legends[0].get_title().get_text()


def test_curves_rules_and_modes(path: Path) -> None:
    results = load_results(path)
    curves = training_curves(results, {**FIXED, "coupling": "none"}, "max_coverage")
    steps, scores, losses = curves[0]
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(scores, [0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(losses, [0.1, 0.05], rtol=1e-6)
    _, rules = rules_rows(results, FIXED)
    assert rules[0]["max_score"]["interval"]["mean"] == pytest.approx(0.5 / 0.95, rel=1e-6)
    _, modes = mode_rows(results, FIXED, "none")
    assert modes[0]["entropy"]["mean"] == pytest.approx(0.51)
    assert modes[0]["n_seeds"] == 3
    assert modes[0]["entropy_difference"] is None
    for run in results.runs:  # an arm that is even from the second start on, of four
        if run["levels"]["coupling"] == "knn":
            run["modes"] = {**run["modes"], "per_start": ways(8, 8, 16, 1)}
    rows, modes = mode_rows(results, FIXED, "none")
    second = (1 - entropy([4, 12], base=2)) / 4
    assert modes[1]["entropy_difference"]["mean"] == pytest.approx(second)
    assert rows[2][6] == "+0.05 [+0.05, +0.05]"
    for run in results.runs:  # with chosen noise from the third one, too
        if run["levels"]["coupling"] == "knn":
            run["modes_warm"] = {**run["modes"], "per_start": ways(8, 8, 8, 1), "entropy": {"mean": 0.7, "n": 16}}
    rows, modes = mode_rows(results, FIXED, "none")
    assert [row[:2] for row in rows[1:]] == [["none", "none"], ["knn", "none"], ["knn", "warm"]]
    assert [row["inference_coupling"] for row in modes] == ["none", "none", "warm"]
    assert [row[3] for row in rows] == ["starts", "14 to 16", "14 to 16", "16"]
    assert modes[0]["n_starts"] == [14, 16]
    third = (1 + 1 / (2 * 16 * math.log(2))) / 4
    assert modes[2]["entropy_difference"]["mean"] == pytest.approx(second + third)  # from the baseline's from N(0, I)
    for run in results.runs:  # not measured of all seeds of the baseline
        if run["levels"]["coupling"] == "none" and run["seed"] > 0:
            run["modes"] = None
    rows, modes = mode_rows(results, FIXED, "none")
    assert [row[6] for row in rows[1:]] == ["", "+0.05 (1 of 3 seeds)", "+0.31 (1 of 3 seeds)"]
    assert [(row["n_seeds"], row["n_shared_seeds"]) for row in modes[1:]] == [(3, 1), (3, 1)]


def test_starts_that_do_not_count_for_both_are_in_no_difference(path: Path) -> None:
    results = load_results(path)
    for run in results.runs:
        if run["levels"]["coupling"] == "knn":
            run["modes"]["per_start"] = [*ways(8, 8), {"clockwise": 1, "counter_clockwise": 0}, *ways(1)]
    _, modes = mode_rows(results, FIXED, "none")
    assert modes[1]["entropy_difference"]["mean"] == pytest.approx((1 - entropy([4, 12], base=2)) / 3)
    for run in results.runs:
        if run["levels"]["coupling"] == "knn":
            run["modes"]["per_start"] = [{"clockwise": 0, "counter_clockwise": 1}] * 4
    assert mode_rows(results, FIXED, "none")[1][1]["entropy_difference"] is None


def test_a_policy_that_goes_round_from_nowhere_does_not_hide_its_arm(path: Path) -> None:
    results = load_results(path)
    for run in results.runs:
        if (run["levels"]["coupling"], run["seed"]) == ("knn", 2):
            nothing: dict[str, Any] = {"mean": None, "n": 0}
            run["modes"] |= {name: nothing for name in ("p_clockwise", "entropy", "imbalance")}
            run["modes"] |= {"imbalance_fair": None, "per_start": [{"clockwise": 0, "counter_clockwise": 0}] * 4}
    rows, modes = mode_rows(results, FIXED, "none")
    assert rows[2][2:4] == ["3", "0 to 16"]
    assert rows[2][5].startswith("0.51 [")
    assert [cell.endswith(" (2 of 3 seeds)") for cell in rows[2][4:]] == [True, True, True, False, False]
    assert modes[1]["entropy"]["mean"] == pytest.approx(0.505)
    for run in results.runs:
        if run["levels"]["coupling"] == "knn":
            run["modes"]["entropy"] = nothing
    assert [row[0] for row in mode_rows(results, FIXED, "none")[0][1:]] == ["none"]


def test_coverage_is_drawn_against_shift_and_spread_of_each_run(path: Path, tmp_path: Path, monkeypatch) -> None:
    drawn = kept_figures(monkeypatch, "results_figure")
    results = load_results(path)
    for run in results.runs:  # the worse arm shifts the noise, and spreads more the worse it is
        run["prior_gap"]["shift"] = 0.5 if run["levels"]["coupling"] == "knn" else 0.0
        scores = results.scores(
            "max_coverage", kind="final", inference_coupling="none", coupling=run["levels"]["coupling"]
        )
        run["prior_gap"]["prior"]["spread"] = 1 - float(np.mean(list(scores[run["seed"]].values())))
    assert coverage_by_gap(results, FIXED, tmp_path / "gap.png")
    shift, spread = drawn[0].axes
    assert spread.get_title() == "rank correlation -1.00, 6 runs"
    assert "rank correlation -0.88" in shift.get_title()  # ties within the arms
    assert [line.get_label() for line in spread.lines] == ["none", "knn"]
    x, y = spread.lines[1].get_data()
    np.testing.assert_allclose(np.asarray(y) / 100, 1 - np.asarray(x), rtol=1e-6)
    for run in results.runs:
        run["prior_gap"]["shift"] = 0.0
    assert coverage_by_gap(results, FIXED, tmp_path / "gap.png")
    assert drawn[1].axes[0].get_title() == "6 runs"
    for run in results.runs:  # couplings that cannot choose for new data have no shift
        run["prior_gap"]["shift"] = None
    assert coverage_by_gap(results, FIXED, tmp_path / "gap.png")
    assert [axes.get_title() for axes in drawn[2].axes] == ["0 runs", "rank correlation -1.00, 6 runs"]
    results.runs = [run for run in results.runs if run["levels"]["coupling"] == "none"]
    assert not coverage_by_gap(results, FIXED, tmp_path / "gap.png")  # nothing to compare


def test_a_run_that_was_evaluated_from_shorter_noise_alone_is_not_drawn(
    path: Path, tmp_path: Path, monkeypatch
) -> None:
    drawn = kept_figures(monkeypatch, "results_figure")
    results = load_results(path)
    own = results.where(kind="final", coupling="knn", training_seed=1, inference_coupling="none")
    results.columns["noise_scale"] = np.where(own, 0.8, results.columns["noise_scale"])
    assert coverage_by_gap(results, FIXED, tmp_path / "gap.png")
    assert "5 runs" in drawn[0].axes[1].get_title()


def test_the_demonstrations_own_ways_stand_beside_the_policies(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    write_cell(folder, 0, 0.0, 0.0)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    summary["demonstrations"] = {"path": "data/made_up.zarr", "n_episodes": 10, "n_steps": 50}
    (folder / "run" / "summary.json").write_text(json.dumps(summary))
    modes = json.loads((folder / "modes.json").read_text())
    (folder / "modes.json").write_text(json.dumps({**modes, "settings": {"num_inference_steps": 4}}))
    counts = {"clockwise": 3, "counter_clockwise": 5, "direct": 2, "none": 0}
    split = {"mean": 0.375, "low": 0.14, "high": 0.69, "n": 8}
    ways = {"counts": counts, "sides": {}, "p_clockwise": split}
    cells = [(folder, {**FIXED, "coupling": "none"}, 0)]

    def describe(demonstrations: Mapping[str, Any]) -> Mapping[str, Any]:
        assert demonstrations["path"] == "data/made_up.zarr"
        return {**demonstrations, "ways": ways}

    collect_results("made up", cells, tmp_path / "results.parquet", describe=describe)
    results = load_results(tmp_path / "results.parquet")
    rows, content = mode_rows(results, FIXED, "none")
    assert rows[1] == ["10 demonstrations", "", "", "", "37.5 [14.0, 69.0]", "", "", "", "20.0"]
    assert content[0]["counts"] == counts
    rows, content = coverage_rows(results, FIXED, "none")
    assert {row[2]: row[-1] for row in rows[1:]} == {"none": "0.50", "warm": ""}  # measured from N(0, I) alone
    assert [row["ways"] and row["ways"]["mean"] for row in content] == [0.5, None]
    for run in results.runs:
        run["modes_warm"] = {**run["modes"], "entropy": {"mean": 0.7}}
    rows, _ = coverage_rows(results, FIXED, "none")
    assert {row[2]: row[-1] for row in rows[1:]} == {"none": "0.50", "warm": "0.70"}
    (folder / "modes.json").write_text(json.dumps({**modes, "settings": {"num_inference_steps": 16}}))
    collect_results("made up", cells, tmp_path / "results.parquet")
    results = load_results(tmp_path / "results.parquet")
    assert [row[-1] for row in coverage_rows(results, FIXED, "none")[0][1:]] == ["", ""]  # of other sampling steps
    assert [row[0] for row in mode_rows(results, FIXED, "none")[0][1:]] == ["none"]


def test_tables_and_figures_are_written(path: Path, tmp_path: Path) -> None:
    written = write_tables(path, tmp_path)
    names = {p.relative_to(tmp_path).as_posix() for p in written}
    assert {f"tables/coverage.{kind}" for kind in ("md", "tex", "json")} <= names
    assert {"figures/training-keypoints.png", "figures/differences-keypoints.png"} <= names
    assert not {"figures/sampling_steps-keypoints.png", "tables/steps.md"} & names  # of one number of steps
    (tmp_path / "tables" / "pooled.md").write_text("of other results")
    (tmp_path / "tables" / "mine.md").write_text("of the user")
    write_tables(path, tmp_path)
    assert not (tmp_path / "tables" / "pooled.md").exists()
    assert (tmp_path / "tables" / "mine.md").exists()
    assert all(p.stat().st_size > 0 for p in written)
    assert "| 4 | knn | warm | 3 |" in (tmp_path / "tables" / "coverage.md").read_text()
    for name in ("coverage", "coupled_inference"):
        assert (
            "A sampler is named where it is not the policies' own" in (tmp_path / "tables" / f"{name}.md").read_text()
        )
        assert "The policies' own: ddim." in (tmp_path / "tables" / f"{name}.md").read_text()
    loaded = json.loads((tmp_path / "tables" / "coupled_inference.json").read_text())
    assert len(loaded["rows"]) == 2


def test_an_experiment_without_results_makes_no_tables(tmp_path: Path) -> None:
    collect_results("empty", [], tmp_path / "results.parquet")
    assert write_tables(tmp_path / "results.parquet", tmp_path) == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="not the results of an experiment"):
        load_results(tmp_path / "results.parquet")


@pytest.fixture
def two_sets(tmp_path: Path) -> Path:
    """Two data sets: the coupling costs 0.1 with one and gains 0.3 with the other, which has one training seed less.

    The factor is called as the record of a run's demonstrations is.
    """
    cells = []
    for demonstrations, offset, seeds in (("few", -0.1, (0, 1, 2)), ("many", 0.3, (0, 1))):
        for coupling, shift in (("none", 0.0), ("knn", offset)):
            for seed in seeds:
                folder = tmp_path / "cells" / f"{demonstrations}-{coupling}-{seed}"
                write_cell(folder, seed, shift, 0.05)
                cells.append((folder, {"demonstrations": demonstrations, "coupling": coupling}, seed))
    collect_results("made up", cells, tmp_path / "results.parquet")
    return tmp_path / "results.parquet"


def test_a_table_has_a_column_for_a_factor_with_several_levels(two_sets: Path, tmp_path: Path) -> None:
    written = {p.relative_to(tmp_path).as_posix() for p in write_tables(two_sets, tmp_path)}
    text = (tmp_path / "tables" / "coverage.md").read_text()
    assert "| few | 4 | knn | warm | 3 |" in text
    assert "| many | 4 | knn | warm | 2 |" in text
    numbers = json.loads((tmp_path / "tables" / "coverage.json").read_text())["rows"]
    assert [row["demonstrations"] for row in numbers] == ["few"] * 4 + ["many"] * 4
    assert {f"tables/{name}.md" for name in ("modes", "prior_gap", "rules", "pooled", "levels")} <= written
    assert "figures/coverage_by-demonstrations.png" in written


def test_pooled_differences_weigh_all_levels_alike(two_sets: Path) -> None:
    results = load_results(two_sets)
    combinations = [{"demonstrations": name} for name in ("few", "many")]
    rows, content = pooled_rows(results, combinations, "none")
    assert [row[:4] for row in rows[1:]] == [
        ["4", coupling, inference, "4"] for coupling in ("none", "knn") for inference in ("none", "warm")
    ]
    assert content[2]["difference"]["mean"] == pytest.approx((-0.1 + 0.3) / 2, abs=0.01)
    assert content[2]["seeds"] == ["few-seed0", "few-seed1", "many-seed0", "many-seed1"]
    # Four runs, two near -0.1 and two near 0.3: an interval over runs is far wider than over states.
    assert content[2]["difference"]["low"] < -0.1 < 0.3 < content[2]["difference"]["high"]
    assert content[1]["difference"]["mean"] == pytest.approx(0.05, abs=0.01)
    assert pooled_rows(results, [*combinations, {"demonstrations": "none yet"}], "none")[1] == []


def test_levels_of_a_factor_are_compared_without_a_coupling(two_sets: Path) -> None:
    results = load_results(two_sets)
    rows, content = level_rows(results, "demonstrations", {}, "none")
    assert [row[:4] for row in rows[1:]] == [["demonstrations", "4", "few", "3"], ["demonstrations", "4", "many", "2"]]
    plain = {"kind": "final", "inference_coupling": "none", "coupling": "none"}
    means = {
        level: {
            seed: np.mean(list(episodes.values()))
            for seed, episodes in results.scores("max_coverage", **plain, demonstrations=level).items()
        }
        for level in ("few", "many")
    }
    assert content[0]["difference"] is None
    expected = np.mean([means["many"][seed] - means["few"][seed] for seed in (0, 1)])
    assert content[1]["difference"]["mean"] == pytest.approx(expected)


def test_levels_without_evaluations_yet_do_not_empty_the_pooled_table(two_sets: Path, tmp_path: Path) -> None:
    cells = [
        (
            folder,
            dict(zip(("demonstrations", "coupling"), folder.name.split("-")[:2], strict=True)),
            int(folder.name[-1]),
        )
        for folder in sorted((tmp_path / "cells").iterdir())
    ]
    for file in (tmp_path / "cells").glob("many-*/evaluations/*.parquet"):
        file.unlink()
    more = tmp_path / "cells" / "most-none-0"
    write_cell(more, 0, 0.0, 0.0)
    cells.append((more, {"demonstrations": "most", "coupling": "none"}, 0))
    collect_results("made up", cells, two_sets)
    write_tables(two_sets, tmp_path)
    rows = json.loads((tmp_path / "tables" / "pooled.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [["few-seed0", "most-seed0"]] * 2
