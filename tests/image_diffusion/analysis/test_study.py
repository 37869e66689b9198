"""What a study trains and groups, on folders that hold what a training leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from image_diffusion.analysis.study import ImageRun, Study, status, train_missing
from immiscible_policy.files import locked

SETTINGS: dict[str, Any] = {
    "name": "curves",
    "runs": "digits",
    "factors": {
        "method": {"ddim": ["method=ddim"], "fm": ["method=fm"]},
        "coupling": {"knn": ["coupling=knn"], "none": ["coupling=none"]},
    },
    "seeds": [0, 1],
    "train": ["steps=10"],
    "analysis": {"name": "training_curves", "thresholds": [1.0]},
}


def finish(run: ImageRun, **values: Any) -> None:
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "summary.json").write_text(json.dumps({"final": values}))
    lines = [
        {"step": 5, "evaluation/fd_x_10": 2.0},
        {"step": 10, "train/loss": 0.5},
        {"step": 5, "evaluation/fd_x_10": 1.0},
    ]
    (run.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_trainings_are_all_combinations_the_first_seed_first(tmp_path: Path) -> None:
    runs = Study(**SETTINGS).trainings(tmp_path)
    assert [run.folder.name for run in runs[:4]] == [
        "ddim-knn-seed0",
        "ddim-none-seed0",
        "fm-knn-seed0",
        "fm-none-seed0",
    ]
    assert runs[0].folder.parent == tmp_path / "digits" / "cells"
    assert runs[-1].overrides == ("steps=10", "method=fm", "coupling=none", "seed=1")
    assert runs[0].script == "train_image.py"


def test_studies_of_the_same_runs_share_their_folders(tmp_path: Path) -> None:
    other = Study(**{**SETTINGS, "name": "other", "only": {"method": ["ddim"], "coupling": ["none"]}})
    mine = {run.folder: run.overrides for run in Study(**SETTINGS).trainings(tmp_path)}
    assert [mine[run.folder] for run in other.trainings(tmp_path)] == [
        run.overrides for run in other.trainings(tmp_path)
    ]
    assert len(other.trainings(tmp_path)) == 2


def test_groups_are_finished_trainings_with_the_baseline_first(tmp_path: Path) -> None:
    study = Study(**SETTINGS)
    for run in study.trainings(tmp_path):
        if run.folder.name in ("ddim-knn-seed0", "ddim-none-seed0", "ddim-none-seed1", "fm-knn-seed0"):
            finish(run)
    groups = dict(study.groups(tmp_path))
    assert list(groups) == ["ddim"]  # fm has no baseline yet
    assert {arm: [run.seed for run in runs] for arm, runs in groups["ddim"].items()} == {"none": [0, 1], "knn": [0]}
    assert list(groups["ddim"]) == ["none", "knn"]


def test_a_resumed_runs_last_word_counts(tmp_path: Path) -> None:
    run = Study(**SETTINGS).trainings(tmp_path)[0]
    finish(run, fd=3.0)
    assert run.curve("evaluation/fd_x_10") == {5: 1.0}
    assert "train/loss" in run.logged()
    assert run.summary["final"] == {"fd": 3.0}


def test_what_is_finished_or_in_other_hands_is_left_alone(tmp_path: Path) -> None:
    study = Study(**{**SETTINGS, "only": {"method": ["ddim"]}, "seeds": [0]})
    first, second = study.trainings(tmp_path)
    finish(first)
    said: list[str] = []
    with locked(second.folder):
        assert train_missing([first, second], "cpu", said.append) == (0, [])
        assert status(study, tmp_path) == "curves: 1 of 2 trained, now working on ddim-none-seed0"
    assert said == []


def test_a_folder_trained_with_other_settings_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    run = Study(**SETTINGS).trainings(tmp_path)[0]
    with locked(run.folder):
        run.record_overrides()
    changed = Study(**{**SETTINGS, "train": ["steps=20"], "only": {"method": ["ddim"], "coupling": ["knn", "none"]}})
    said: list[str] = []
    trained, failed = train_missing(changed.trainings(tmp_path)[:1], "cpu", said.append)
    assert (trained, failed) == (0, ["ddim-knn-seed0"])
    assert "was trained with steps=10" in said[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "different"),
        ({"factors": {"coupling": {}}}, "empty"),
        ({"compare": "method2"}, "compare='method2': choose one of the factors method, coupling"),
        ({"baseline": "off"}, "baseline='off': choose a level of coupling: knn, none"),
        ({"only": {"coupling": ["knn"]}}, "baseline='none'"),
        ({"only": {"cost": ["l1"]}}, "only.cost"),
        ({"only": {"method": ["sd"]}}, "choose a list out of ddim, fm"),
        ({"only": {"method": "ddim"}}, "choose a list"),
        ({"analysis": {}}, "needs a name"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study(**{**SETTINGS, **changes})
