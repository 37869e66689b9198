"""scripts/coverage_table.py."""

import json
from pathlib import Path

import pytest
import yaml

RULES = ("last_k_mean", "k_min_train_loss_mean", "max_score")
SETTINGS = {"n_episodes": 2, "seed_start": 0, "sampler": "ddim", "num_inference_steps": 2, "task": {"legacy": True}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run of a policy beside one of images."""
    scores = {"max_reward": 0.5, "max_coverage": 0.5, "final_coverage": 0.5, "success": False}
    summary = {
        "coupling": "Independent()",
        "seed": 0,
        "steps": 10,
        "parameters": 1_000_000,
        "rollouts": {"max_reward": {rule: {"value": 0.5, "n_points": 1} for rule in RULES}},
        "evaluation_settings": SETTINGS,
    }
    for name, script in (("a", "train_policy"), ("b", "train_image")):
        folder = tmp_path / "runs" / name
        for part in (".hydra", "media"):
            (folder / part).mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"seed": 0}))
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"job": {"config_name": script}}}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "train/loss": 0.1}) + "\n")
        (folder / "summary.json").write_text(json.dumps(summary if name == "a" else {"coupling": "Independent()"}))
    (tmp_path / "runs" / "a" / "media" / "eval.json").write_text(json.dumps({"episodes": [scores, scores]}))
    return tmp_path / "runs"


def test_runs_of_images_are_left_out_in_a_line(run_script, runs: Path, capsys) -> None:
    assert run_script("coverage_table", "runs") == 0
    printed = capsys.readouterr()
    assert "| `Independent()` | 1 | 50.0 [50.0, 50.0] |" in printed.out
    assert printed.err == "warning: left out runs/b: a run of scripts/train_image.py\n"
    (runs / "a" / "media" / "eval.json").unlink()
    assert run_script("coverage_table", "runs") == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: runs: no finished run of train_policy.py in or below it: runs/a: no media/eval.json"
    )
    assert len(error.splitlines()) == 1
