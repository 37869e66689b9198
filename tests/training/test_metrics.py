"""metrics.jsonl."""

import json
from pathlib import Path

from immiscible_policy.training.metrics import MetricsLogger, last_logged, read_metrics


def test_lines_after_the_resumed_step_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 1.0 / step})
    logger.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train/lo')
    resumed = MetricsLogger(tmp_path, tensorboard=False, step=2)
    resumed.log(3, {"train/loss": 7.0})
    resumed.close()
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 7.0),
    ]


def test_the_last_number_logged_by_a_step() -> None:
    lines = [{"step": 10, "loss": 3.0}, {"step": 20}, {"step": 30, "loss": 2.0}, {"step": 40, "loss": None}]
    found = {step: last_logged(lines, "loss", step) for step in (9, 10, 29, 30, 50)}
    assert found == {9: None, 10: 3.0, 29: 3.0, 30: 2.0, 50: 2.0}


def test_not_a_number_is_valid_json(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, tensorboard=False)
    logger.log(1, {"a": float("nan"), "b": 2.0})
    logger.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "a": None, "b": 2.0}


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = MetricsLogger(tmp_path)
    logger.log(5, {"train/loss": 0.25})
    logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 0.25)]
