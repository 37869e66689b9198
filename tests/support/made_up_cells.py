"""What training, evaluation and measurement of an experiment's cell leave, without any of the work."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.results import write_evaluation
from immiscible_policy.experiment import Cell, Experiment


def episode(seed: int, coverage: float) -> dict[str, Any]:
    scores = {"max_reward": coverage / 0.95, "max_coverage": coverage, "final_coverage": coverage / 2}
    return {"seed": seed, **scores, "success": coverage > 0.95, "length": 300}


def _settings(config: EvaluationConfig, precision: str = "fp32") -> dict[str, Any]:
    return {**asdict(config), "sampler": config.sampler or "ddim", "mixed_precision": precision}


def train(cell: Cell, device: str = "cpu", lock: int = 0, precision: str = "") -> None:
    cell.run_dir.mkdir(parents=True)
    cell.record_overrides()
    kept = ("command", "versions", "training_seconds", "precision", "parameters", "demonstrations")
    coupling = "Independent()" if cell.levels["coupling"] == "none" else "KNN(k=2)"
    summary = {"coupling": coupling, "steps": 20, **dict.fromkeys(kept, ""), "precision": precision}
    (cell.run_dir / "summary.json").write_text(json.dumps(summary))
    (cell.run_dir / ".hydra").mkdir()
    (cell.run_dir / ".hydra" / "config.yaml").write_text("objective: {sampler: ddim}\n")
    settings = _settings(EvaluationConfig(num_inference_steps=2))
    rollout = {"step": 10, "settings": settings, "episodes": [episode(7, 0.25)]}
    (cell.run_dir / "rollouts.jsonl").write_text(json.dumps(rollout) + "\n")
    (cell.run_dir / "metrics.jsonl").write_text(json.dumps({"step": 10, "train/loss": 0.1}) + "\n")


def evaluate(cell: Cell, config: EvaluationConfig, device: str = "cpu", precision: str = "fp32") -> None:
    """Scores that tell the training seed, the sampling steps and the initial state."""
    score = cell.seed / 2 + (config.num_inference_steps or 0) / 100
    report = {
        "episodes": [episode(seed, score + seed / 1e7) for seed in config.seeds],
        "settings": _settings(config, precision),
        "seconds": {},
    }
    write_evaluation(cell.evaluation_file(config), report)


def measure(cell: Cell, name: str, settings: Mapping[str, int], *_: Any) -> None:
    numbers = {key: {"mean": 0.5, "n": 4} for key in ("p_clockwise", "entropy", "imbalance", "direct")}
    ways = {"imbalance_fair": 0.1, "per_start": [{"clockwise": 2, "counter_clockwise": 2}] * 4}
    cell.measurement_file(name).write_text(json.dumps({"settings": dict(settings), **numbers, **ways}))


def finish(experiment: Experiment, cell: Cell) -> None:
    """Everything that the experiment asks for of a cell."""
    train(cell)
    for config in experiment.evaluation_configs(cell):
        evaluate(cell, config)
    for name, settings in experiment.measurements.items():
        measure(cell, name, settings)
