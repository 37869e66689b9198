"""Made-up run folders, as training leaves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from immiscible_policy.evaluation.video import write_video

MEASURES = ("max_reward", "max_coverage", "final_coverage", "success", "length")
RunMaker = Callable[..., Path]
SETTINGS = {
    "n_episodes": 20,
    "seed_start": 100000,
    "num_inference_steps": 20,
    "noise_seed": 3,
    "sampler": "ddim",
    "mixed_precision": "bf16",
    "weights": "exponential moving average",
    "task": {"legacy": True},
}


def configuration(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    config = {
        "coupling": {"_target_": "immiscible_policy.coupling.KNN", "k": "${k}"},
        "objective": {"name": "ddpm", "prediction_type": "epsilon"},
        "policy": {"horizon": 16},
        "task": {"obs_type": "keypoints"},
        "trainer": {"steps": "${steps}", "seed": "${seed}"},
        "k": 2,
        "seed": seed,
        "steps": 60,
        "epochs": None,
        "name": "${task.name}_${hydra:runtime.choices.coupling}",
        "rollout": {"n_episodes": 50},
    }
    for name, value in changes.items():
        *parents, key = name.split(".")
        node: Any = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return config


def evaluation(seed: int, videos: int) -> dict[str, Any]:
    """Coverages 0.50, 0.52, ... 0.88 in a shuffled order, the training seed's thousandth added."""
    order = np.random.default_rng(seed).permutation(20)
    episodes = [
        {
            "seed": 100000 + i,
            "max_coverage": 0.5 + 0.02 * int(rank) + 0.001 * seed,
            "max_reward": min(1.0, (0.5 + 0.02 * int(rank)) / 0.95),
            "final_coverage": 0.4,
            "success": False,
            "length": 300,
        }
        for i, rank in enumerate(order)
    ]
    metrics = {name: {"mean": 0.842, "low": 0.789, "high": 0.889, "n": 20} for name in MEASURES}
    report: dict[str, Any] = {"metrics": metrics, "definitions": {}, "settings": SETTINGS}
    report |= {"seconds": {"policy": 40.2, "simulator": 0.5}, "episodes": episodes}
    if videos:
        report |= {"videos": [f"episode_{100000 + i}.mp4" for i in range(videos)], "film_strip": "film_strip.png"}
    return report


def metric_lines() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(10, 70, 10):
        lines.append({"step": step, "train/loss": 1 / step, "train/learning_rate": 1e-3 / step})
        lines[-1] |= {"train/seconds": 0.5 * step, "train/cpu_seconds": 0.4 * step}
        if step % 20 == 0:
            coverage = step / 100
            lines[-1] |= {"rollout/max_coverage": coverage, "validation/loss_independent": 2 / step}
            lines[-1] |= {"rollout/max_coverage_low": coverage - 0.1, "rollout/max_coverage_high": coverage + 0.1}
    return lines


@pytest.fixture
def make_run() -> RunMaker:
    """make_run(folder, coupling, seed, videos, finished, **entries of the configuration) -> folder."""

    def make(
        folder: Path,
        coupling: str = "KNN(k=2)",
        seed: int = 0,
        videos: int = 0,
        finished: bool = True,
        overrides: tuple[str, ...] = ("coupling=knn",),
        **changes: Any,
    ) -> Path:
        for name in (".hydra", "media", "checkpoints"):
            (folder / name).mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configuration(seed, changes)))
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"seed={seed}"]))
        hydra = {"hydra": {"runtime": {"cwd": str(folder.resolve().parent)}}}
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
        source = {"path": "data/pusht/human.zarr", "n_episodes": 206, "n_steps": 25650}
        (folder / "demonstrations.json").write_text(json.dumps(source))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metric_lines()))
        if not finished:
            return folder
        report = evaluation(seed, videos)
        (folder / "media" / "eval.json").write_text(json.dumps(report))
        rule = {"value": 0.4, "n_points": 3}
        rules = {"last_k_mean": rule, "k_min_train_loss_mean": rule, "max_score": {"value": 0.6, "n_points": 3}}
        summary = {
            "coupling": coupling,
            "seed": seed,
            "demonstrations": source,
            "steps": 60,
            "training_seconds": {"wall": 30.0, "cpu": 24.0},
            "num_threads": 1,
            "precision": "bf16",
            "command": "python scripts/train_policy.py",
            "versions": {"torch": "2.13.0"},
            "parameters": 4559554,
            "final": report["metrics"],
            "rollouts": {"max_reward": rules, "max_coverage": rules},
            "evaluation_settings": report["settings"],
            "definitions": {},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        for name in report.get("videos", []):
            frames = [np.full((32, 32, 3), 20 * i, np.uint8) for i in range(8)]
            write_video(frames, folder / "media" / name)
        if videos:
            Image.new("RGB", (80, 20), (0, 200, 0)).save(folder / "media" / "film_strip.png")
        return folder

    return make
