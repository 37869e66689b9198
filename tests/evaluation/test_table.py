"""The coverage table."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kept_figures import kept_figures

from immiscible_policy.evaluation.figure import coverage_curves
from immiscible_policy.evaluation.statistics import bootstrap_mean, success_interval
from immiscible_policy.evaluation.table import coverage_table, load_runs, markdown

SETTINGS = {
    "n_episodes": 40,
    "seed_start": 100000,
    "sampler": "ddim",
    "num_inference_steps": 20,
    "task": {"legacy": True},
}


def run(coupling: str, seed: int, shift: float = 0.0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    coverage = rng.uniform(0.2, 0.8, 40) + shift
    episodes = [
        {
            "max_reward": c / 0.95,
            "max_coverage": float(c),
            "final_coverage": float(c),
            "success": bool(c > 0.95),
            "seed": 100000 + i,
        }
        for i, c in enumerate(coverage.tolist())
    ]
    return {
        "coupling": coupling,
        "seed": seed,
        "steps": 10,
        "parameters": 4_600_000,
        "episodes": episodes,
        "evaluation_settings": copy.deepcopy(SETTINGS),
        "rollouts": {},
        "curve": [],
        "folder": f"{coupling}_{seed}",
        "command": "python scripts/train_policy.py",
        "versions": {},
        "training_seconds": {"wall": 1.0, "cpu": 1.0},
        **changes,
    }


RUNS = [run("Independent()", seed) for seed in (0, 1, 2)] + [run("KNN(k=2)", seed, 0.1) for seed in (0, 1, 2)]


def test_paired_difference_removes_what_both_arms_share() -> None:
    table = coverage_table(RUNS)
    baseline, coupled = table["rows"]
    assert baseline["coupling"] == "Independent()"
    assert "max_coverage_difference" not in baseline
    difference = coupled["max_coverage_difference"]
    # The arms differ by exactly 0.1 in every episode: no interval, though either arm's own is wide.
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["high"] - difference["low"] < 1e-9
    assert coupled["max_coverage"]["high"] - coupled["max_coverage"]["low"] > 0.05
    text = markdown(table)
    assert "+10.0 [+10.0, +10.0]" in text
    assert "4.6M parameters, 10 steps; 40 episodes" in text
    assert text.count("\n| `") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 20}, "runs differ in steps"),
        (
            {"evaluation_settings": {**SETTINGS, "num_inference_steps": 10}},
            r'settings, .*: {"num_inference_steps": 10} / {',
        ),
        ({"seed": 0}, "two runs of Independent"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coverage_table([*RUNS, run("Independent()", **{"seed": 3, **change})])


def test_checkpoint_rules_stand_beside_their_meaning() -> None:
    def rollouts(shift: float) -> dict[str, Any]:
        rules = {"last_k_mean": 0.5, "k_min_train_loss_mean": 0.6, "max_score": 0.7}
        return {"max_reward": {rule: {"value": value + shift, "n_points": 10} for rule, value in rules.items()}}

    runs = [run("Independent()", seed, rollouts=rollouts(0.1 * seed)) for seed in (0, 1)]
    text = markdown(coverage_table(runs))
    assert '"10 lowest losses" is the mean over the 10 rollout points with the lowest training loss' in text
    assert "| `Independent()` | 55.0 (50.0, 60.0) | 65.0 (60.0, 70.0) | 75.0 (70.0, 80.0) |" in text


def test_the_number_of_rollout_points_stands_beside_the_rules() -> None:
    def rollouts(n_points: int) -> dict[str, Any]:
        rules = ("last_k_mean", "k_min_train_loss_mean", "max_score")
        return {"max_reward": {rule: {"value": 0.5, "n_points": n_points} for rule in rules}}

    runs = [run("Independent()", seed, rollouts=rollouts(3)) for seed in (0, 1)]
    runs += [run("KNN(k=2)", seed, rollouts=rollouts(12 - seed)) for seed in (0, 1)]
    text = markdown(coverage_table(runs))
    assert "Of fewer than 10 points all are taken." in text
    assert "| coupling | last 10 | 10 lowest losses | max | rollout points |\n|---|---|---|---|---|\n" in text
    assert text.count("50.0 (50.0, 50.0) | 3 |") == 1
    assert text.count("50.0 (50.0, 50.0) | 12, 11 |") == 1


def test_the_interval_of_one_training_seed_is_over_its_episodes() -> None:
    table = coverage_table(RUNS[:1])
    values = [episode["max_coverage"] for episode in RUNS[0]["episodes"]]
    assert table["rows"][0]["max_coverage"] == asdict(bootstrap_mean(values))
    assert "nan" not in markdown(table)
    assert "with one training seed over episodes only" in markdown(table)


def test_successes_that_all_went_one_way_still_have_an_interval() -> None:
    """Of resampled episodes that never succeed none does; the chance of one is not known to be 0."""
    none, some = (
        coverage_table(RUNS)["rows"][0],
        coverage_table([run("Independent()", s, 0.2) for s in (0, 1)])["rows"][0],
    )
    assert none["success"] == asdict(success_interval(np.zeros(120)))
    assert 0.02 < none["success"]["high"] < 0.05
    assert some["success"]["n"] == 80
    assert 0 < some["success"]["mean"] < 1
    alone = coverage_table([run("Independent()", 0, 0.2)])["rows"][0]
    assert alone["success"] == asdict(
        success_interval([e["success"] for e in run("Independent()", 0, 0.2)["episodes"]])
    )


def test_runs_on_different_demonstrations_are_not_pooled() -> None:
    def on(name: str, n_episodes: int) -> list[dict[str, Any]]:
        source = {"path": f"data/{name}.zarr", "n_episodes": n_episodes, "n_steps": 10}
        return [{**each, "demonstrations": source} for each in RUNS]

    table = coverage_table([*on("human", 206), *on("generated", 200), *on("generated", 500)])
    assert [row["coupling"] for row in table["rows"]] == [
        "Independent(), 200 of generated.zarr",
        "Independent(), 206 of human.zarr",
        "Independent(), 500 of generated.zarr",
        "KNN(k=2), 200 of generated.zarr",
        "KNN(k=2), 206 of human.zarr",
        "KNN(k=2), 500 of generated.zarr",
    ]
    # Differences are between couplings on the same demonstrations.
    assert table["rows"][4]["max_coverage_difference"] == coverage_table(RUNS)["rows"][1]["max_coverage_difference"]
    assert "max_coverage_difference" not in table["rows"][2]
    assert table["runs"][0]["demonstrations"]["n_episodes"] == 206
    assert [row["coupling"] for row in coverage_table(on("human", 206))["rows"]] == ["Independent()", "KNN(k=2)"]


def test_runs_of_different_training_settings_are_not_pooled() -> None:
    def trained(**changes: Any) -> list[dict[str, Any]]:
        config = {
            "objective": {"name": "ddpm", "prediction_type": changes.pop("prediction_type", "epsilon")},
            "policy": {"mask_padding": changes.pop("mask_padding", False)},
            "dataset": {"path": None, "val_ratio": changes.pop("val_ratio", 0.02), "split_seed": 42},
            "trainer": {"batch_size": 64, "learning_rate": 1e-3, **changes.pop("trainer", {})},
            "batch_size": 64,
            **changes,
        }
        return [{**each, "config": {**config, "seed": each["seed"]}} for each in RUNS]

    assert [row["coupling"] for row in coverage_table(trained())["rows"]] == ["Independent()", "KNN(k=2)"]
    for change, names in (
        ({"prediction_type": "sample"}, ("ddpm prediction_type=epsilon", "ddpm prediction_type=sample")),
        ({"val_ratio": 0.1}, ("dataset.val_ratio=0.02", "dataset.val_ratio=0.1")),
        ({"mask_padding": True}, ("policy.mask_padding=False", "policy.mask_padding=True")),
        ({"trainer": {"learning_rate": 1e-4}}, ("trainer.learning_rate=0.0001", "trainer.learning_rate=0.001")),
        # Whichever way it was given.
        ({"batch_size": 32, "trainer": {"batch_size": 32}}, ("batch_size=32", "batch_size=64")),
        ({"trainer": {"batch_size": 32}}, ("", "trainer.batch_size=32")),
    ):
        table = coverage_table([*trained(), *trained(**change)])
        expected = [f"{coupling}, {name}" for coupling in ("Independent()", "KNN(k=2)") for name in names]
        assert [row["coupling"] for row in table["rows"]] == [name.removesuffix(", ") for name in expected]
        # Differences are between couplings of the same training.
        for row in table["rows"][2:]:
            assert row["max_coverage_difference"] == coverage_table(RUNS)["rows"][1]["max_coverage_difference"]
    # A coupling has none from a baseline of another training.
    alone = coverage_table([*trained()[:3], *trained(batch_size=32, trainer={"batch_size": 32})[3:]])
    assert [row["coupling"] for row in alone["rows"]] == ["Independent(), batch_size=64", "KNN(k=2), batch_size=32"]
    assert "max_coverage_difference" not in alone["rows"][1]


def test_the_heading_names_the_noise_and_the_precision() -> None:
    def heading(**settings: Any) -> str:
        return markdown(coverage_table([run("Independent()", 0, evaluation_settings={**SETTINGS, **settings})]))

    usual = {"inference_coupling": "none", "selection": None, "noise_scale": 1.0, "noise_seed": 0}
    assert "ddim 20 steps, legacy=True, bf16; mean" in heading(mixed_precision="bf16", **usual)
    assert "ddim 20 steps, legacy=True; mean" in heading()
    chosen = {"inference_coupling": "warm", "selection": "KNN(k=2)", "noise_scale": 0.8, "noise_seed": 7}
    told = "inference_coupling=warm, selection=KNN(k=2), noise_scale=0.8, noise_seed=7"
    assert f"legacy=True, fp32, {told}; mean" in heading(mixed_precision="fp32", **chosen)


@pytest.mark.parametrize(("n_points", "marker"), [(1, "o"), (2, "")])
def test_a_curve_of_one_point_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n_points: int, marker: str
) -> None:
    figures = kept_figures(monkeypatch, "figure")
    points = [{"step": i, "cpu_seconds": 60.0 * i, "max_coverage": 0.5, "success": 0.1} for i in range(n_points)]
    coverage_curves([{**run, "curve": points} for run in RUNS], tmp_path / "curves.png")
    assert {line.get_marker() for line in figures[0].axes[0].lines} == {marker}


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no summary\.json"):
        load_runs([tmp_path])
    for item in RUNS:
        folder = tmp_path / item["folder"]
        (folder / "media").mkdir(parents=True)
        summary = {key: value for key, value in item.items() if key not in ("episodes", "folder", "curve")}
        (folder / "summary.json").write_text(json.dumps(summary))
        line = {"step": 5, "train/cpu_seconds": 60.0, "rollout/max_coverage": 0.5, "rollout/success": 0.1}
        unlogged = {"step": 7, "rollout/max_coverage": 0.6, "rollout/success": 0.2}  # between two logs
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ({"step": 4}, line, unlogged)))
        (folder / "media" / "eval.json").write_text(json.dumps({"episodes": item["episodes"]}))
    found = coverage_table(load_runs([tmp_path]))
    assert found["runs"][0]["curve"] == [
        {"step": 5, "cpu_seconds": 60.0, "max_coverage": 0.5, "success": 0.1},
        {"step": 7, "cpu_seconds": 60.0, "max_coverage": 0.6, "success": 0.2},
    ]
    coverage_curves(load_runs([tmp_path]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to plot"):
        coverage_curves(RUNS, tmp_path / "none.png")
    assert found["rows"][1]["max_coverage"] == coverage_table(RUNS)["rows"][1]["max_coverage"]


def test_runs_without_a_finished_evaluation_are_left_out_and_named(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "a", "Independent()")
    make_run(tmp_path / "begun", finished=False)
    (make_run(tmp_path / "lost") / "media" / "eval.json").unlink()
    (make_run(tmp_path / "cut") / "media" / "eval.json").write_text("{")
    record = {"hydra": {"job": {"config_name": "train_image"}}}
    (make_run(tmp_path / "image", finished=False) / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(record))
    with pytest.warns(UserWarning, match="left out") as told:
        (found,) = load_runs([tmp_path])
    assert found["folder"] == str(tmp_path / "a")
    reasons = {
        "begun": "no summary.json, so its final evaluation has not finished",
        "cut": "media/eval.json is damaged: ",
        "image": "a run of scripts/train_image.py",
        "lost": "no media/eval.json, so its final evaluation has not finished",
    }
    for each, (name, reason) in zip(told, reasons.items(), strict=True):
        assert str(each.message).startswith(f"left out {tmp_path / name}: {reason}")
    with pytest.raises(ValueError, match=r"no finished run of train_policy.py in or below it: .*: a run of scripts/"):
        load_runs([tmp_path / "image"])
