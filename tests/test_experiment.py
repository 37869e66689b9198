"""A grid of tiny trainings: worked off once, whoever works on it and whatever interrupts them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_up_cells
import numpy as np
import pytest

from immiscible_policy import grid_run
from immiscible_policy.data.sources import load_demonstrations
from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.evaluation.report import write_report
from immiscible_policy.evaluation.results import load_results
from immiscible_policy.evaluation.results_report import write_tables
from immiscible_policy.experiment import Cell, Experiment, collect, evaluation_name, is_done, status, work_off
from immiscible_policy.files import locked
from immiscible_policy.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TRAIN = (
    "preset=quick",
    "steps=12",
    "batch_size=16",
    "policy=mlp",
    "policy.network.width=16",
    "policy.network.n_blocks=1",
    "task.max_steps=16",
    "rollout.n_episodes=2",
    "rollout.num_inference_steps=2",
    "evaluation.n_episodes=2",
    "evaluation.num_inference_steps=2",
    "evaluation.n_videos=0",
    "trainer.evaluate_every=6",
    "trainer.validate_every=6",
    "trainer.checkpoint_every=6",
    "trainer.log_every=2",
    "trainer.tensorboard=false",
    "trainer.mixed_precision=fp32",
    "dataset.val_ratio=0",
    "num_threads=1",
)
AT_4 = {"num_inference_steps": 4}
# Announces on stdout and waits for a line on stdin, so that the test decides where it dies.
WORKER = """
import json, sys
from pathlib import Path
from immiscible_policy.experiment import Experiment, work_off
def announce(line):
    print(line, flush=True)
    sys.stdin.readline()
work_off(Experiment(**json.loads(sys.argv[1])), Path(sys.argv[2]), "cpu", announce)
"""


def settings(store: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "train": [*TRAIN, f"dataset.path={store}"],
        "factors": {"observation": {"keypoints": []}, "coupling": {"none": ["coupling=none"], "knn": ["coupling=knn"]}},
        "seeds": [0],
        "evaluations": [{"n_episodes": 3, "num_inference_steps": 2, "inference_coupling": ["none", "warm"]}],
        "measurements": {
            "modes": {"n_starts": 4, "n_repeats": 2, "num_inference_steps": 1},
            "modes_warm": {"n_starts": 4, "n_repeats": 2, "num_inference_steps": 1},
            "prior_gap": {"n_windows": 8, "n_samples": 2, "num_inference_steps": 1},
        },
        **changes,
    }


@pytest.fixture
def store(tmp_path, make_store) -> Path:
    make_store(tmp_path / "store.zarr", lengths=(40, 30, 25))
    return tmp_path / "store.zarr"


def killed_after(lines: int, experiment: dict[str, Any], folder: Path) -> list[str]:
    """What a worker announced until it and its training were killed, at the last of so many lines."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps(experiment), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    seen = []
    for number in range(lines):
        seen.append(worker.stdout.readline())
        if number < lines - 1:
            worker.stdin.write("\n")
            worker.stdin.flush()
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    return seen


def test_killed_anywhere_it_goes_on_and_does_nothing_twice(store: Path, tmp_path: Path) -> None:
    content = settings(store)
    experiment = Experiment(**json.loads(json.dumps(content)))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    lines: list[str] = []
    assert work_off(experiment, whole, "cpu", announce=lines.append).failed == [], lines

    first = killed_after(2, content, broken)  # trained, about to evaluate
    assert first[0].endswith("training\n")
    assert "steps2-none" in first[1]
    trained = experiment.cells(broken)[0]
    stamp = (trained.run_dir / "summary.json").stat().st_mtime_ns
    second = killed_after(4, content, broken)  # evaluated, about to train the next
    assert "steps2-none" in second[0]
    assert second[1:] == [
        "[1/2] keypoints-none-seed0: modes\n",
        "[1/2] keypoints-none-seed0: prior_gap\n",
        "[2/2] keypoints-knn-seed0: training\n",
    ]
    evaluated = trained.evaluation_file(experiment.evaluation_configs(trained)[0]).stat().st_mtime_ns

    # Killed in the middle of training: a checkpoint is there, and what came after it is not.
    cell = experiment.cells(broken)[1]
    full = experiment.cells(whole)[1]
    stop = [sys.executable, "scripts/train_policy.py", *cell.overrides, f"hydra.run.dir={cell.run_dir}"]
    halted = "import signal, os; from immiscible_policy.training import trainer as t; save = t.Trainer.save\n"
    halted += "def stop(self): save(self); os.kill(os.getpid(), signal.SIGKILL)\n"
    halted += "t.Trainer.save = stop; import sys, runpy; sys.argv = sys.argv[1:]; "
    halted += "sys.path.insert(0, 'scripts'); runpy.run_path(sys.argv[0], run_name='__main__')"
    result = subprocess.run([stop[0], "-c", halted, *stop[1:], "device=cpu"], cwd=ROOT, capture_output=True)
    assert result.returncode == -signal.SIGKILL
    assert not cell.is_trained

    announced: list[str] = []
    progress = work_off(experiment, broken, "cpu", announce=announced.append)
    assert (progress.trained, progress.evaluated, progress.skipped, progress.failed) == (1, 2, 1, [])
    assert (trained.run_dir / "summary.json").stat().st_mtime_ns == stamp
    assert trained.evaluation_file(experiment.evaluation_configs(trained)[0]).stat().st_mtime_ns == evaluated
    assert [line["step"] for line in read_metrics(cell.run_dir / "metrics.jsonl")] == [
        line["step"] for line in read_metrics(full.run_dir / "metrics.jsonl")
    ]
    tables = [load_results(collect(experiment, folder)) for folder in (whole, broken)]
    ways = tables[0].runs[0]["demonstrations"]["ways"]["counts"]
    assert sum(ways.values()) == 3  # the store's episodes
    assert all((cell.folder / "modes.png").is_file() for cell in experiment.cells(broken))
    report = write_report(broken).path.read_text()
    assert report.count("<h3>ways round the block, keypoints-") == 2
    # Without a coupling there is nothing that could choose the noise.
    assert [bool(run["modes_warm"]) for run in tables[0].runs] == [False, True]
    assert report.count("<h3>ways round the block with chosen noise, keypoints-knn-seed0") == 1
    for name in tables[0].columns:
        np.testing.assert_array_equal(tables[0].columns[name], tables[1].columns[name], name)
    written = [write_tables(folder / "results.parquet", folder) for folder in (whole, broken)]
    assert [p.name for p in written[0]] == [p.name for p in written[1]]
    for one, other in zip(*written, strict=True):
        if one.suffix != ".png":
            assert one.read_text() == other.read_text()
    assert work_off(experiment, broken, "cpu", announced.append).skipped == 2
    assert status(experiment, broken) == "tiny: 2 of 2 trained, 0 evaluations missing"

    # What was trained elsewhere, on a GPU say, can be measured here.
    config = trained.run_dir / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:7"))
    assert "device: cuda:7" in config.read_text()
    before = json.loads(trained.measurement_file("prior_gap").read_text())
    trained.measurement_file("prior_gap").unlink()
    assert work_off(experiment, broken, "cpu", announced.append).failed == [], announced
    assert json.loads(trained.measurement_file("prior_gap").read_text()) == before


def test_a_cell_that_somebody_works_on_is_left_alone(store: Path, tmp_path: Path) -> None:
    experiment = Experiment(**settings(store))
    first, second = experiment.cells(tmp_path)
    with locked(first.folder) as mine, locked(second.folder) as other:
        assert mine is not None
        assert other is not None
        progress = work_off(experiment, tmp_path, "cpu", announce=lambda line: None)
        assert (progress.elsewhere, progress.trained) == (2, 0)
        assert "now working on keypoints-none-seed0, keypoints-knn-seed0" in status(experiment, tmp_path)
    assert "working" not in status(experiment, tmp_path)


def test_a_failing_cell_is_named_and_the_others_go_on(store: Path, tmp_path: Path) -> None:
    factors = {"coupling": {"none": ["coupling=none", "k=-1", "coupling=nonsense"], "knn": ["coupling=nothing"]}}
    experiment = Experiment(**settings(store, factors=factors))
    announced: list[str] = []
    progress = work_off(experiment, tmp_path, "cpu", announced.append)
    assert progress.failed == ["none-seed0", "knn-seed0"]
    assert "coupling=nothing: choose one of" in announced[-1]


def test_no_failure_of_a_cell_ends_the_others(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(cell: Cell, device: str, lock: int, precision: str) -> None:
        raise RuntimeError(f"out of memory in {cell.folder.name}")

    monkeypatch.setattr(Cell, "train", breaks)
    announced: list[str] = []
    progress = work_off(Experiment(**settings(store)), tmp_path, "cpu", announced.append)
    assert progress.failed == ["keypoints-none-seed0", "keypoints-knn-seed0"]
    assert announced[-1].endswith("failed: RuntimeError: out of memory in keypoints-knn-seed0")


def test_a_cell_that_its_worker_left_is_taken_up_at_the_end(store: Path, tmp_path: Path) -> None:
    experiment = Experiment(**settings(store))
    first, second = experiment.cells(tmp_path)
    first.folder.mkdir(parents=True)
    worked: list[str] = []
    holder = locked(first.folder)
    holder.__enter__()

    def work(cell: Cell, title: str, lock: int) -> None:
        worked.append(cell.folder.name)
        if len(worked) == 1:
            holder.__exit__(None, None, None)

    progress = grid_run.work_off([first, second], lambda cell: False, work, print)
    assert worked == [second.folder.name, first.folder.name]
    assert (progress.elsewhere, progress.skipped) == (0, 0)


@pytest.mark.parametrize(("name", "worked"), [("LokyProcess-1", 1), ("MainProcess", 2)])
def test_workers_end_when_the_process_that_started_them_is_gone(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, worked: int
) -> None:
    """A command that outlives the shell that it was typed in (nohup) is none of them."""
    parent, done, announced = [4711], [], []
    monkeypatch.setattr(grid_run.os, "getppid", lambda: parent[0])
    monkeypatch.setattr(grid_run.multiprocessing, "current_process", lambda: SimpleNamespace(name=name))

    def work(cell: Cell, title: str, lock: int) -> None:
        done.append(cell.folder.name)
        parent[0] = 1

    cells = Experiment(**settings(store)).cells(tmp_path)
    grid_run.work_off(cells, lambda cell: False, work, announced.append)
    assert len(cells) == 2
    assert len(done) == worked
    assert bool(announced) == (worked == 1)


def test_a_measurement_with_other_settings_is_made_anew(tmp_path: Path) -> None:
    experiment = Experiment("x", {"coupling": {"none": []}}, [0], [], measurements={"modes": {"n_starts": 16}})
    cell = experiment.cells(tmp_path)[0]
    assert experiment.missing_measurements(cell) == ["modes"]
    cell.folder.mkdir(parents=True)
    for n_starts, missing in ((4, ["modes"]), (16, [])):
        cell.measurement_file("modes").write_text(json.dumps({"settings": {"n_starts": n_starts}}))
        assert experiment.missing_measurements(cell) == missing


def test_ways_with_chosen_noise_are_missing_only_of_policies_whose_coupling_chooses(tmp_path: Path) -> None:
    factors = {"coupling": {"none": ["coupling=none"], "knn": ["coupling=knn"]}}
    experiment = Experiment("x", factors, [0], [AT_4], measurements={"modes_warm": {"n_starts": 4}})
    for cell, chooses in zip(experiment.cells(tmp_path), (False, True), strict=True):
        assert experiment.missing_measurements(cell) == ["modes_warm"]  # not trained: who knows
        made_up_cells.finish(experiment, cell)
        cell.measurement_file("modes_warm").unlink()
        assert experiment.missing_measurements(cell) == ["modes_warm"] * chooses
        assert is_done(experiment, cell) != chooses


def test_a_folder_made_with_other_settings_is_refused(store: Path, tmp_path: Path) -> None:
    cell = Experiment(**settings(store)).cells(tmp_path)[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text(json.dumps({"levels": {}, "overrides": ["steps=99"]}))
    announced: list[str] = []
    progress = work_off(Experiment(**settings(store)), tmp_path, "cpu", announced.append, cells=[cell])
    assert progress.failed == [cell.folder.name]
    assert "was trained with steps=99" in announced[-1]


def test_finished_cells_made_with_other_settings_are_refused(tmp_path: Path) -> None:
    content = {
        "factors": {"coupling": {"none": ["coupling=none"], "knn": ["k=2"]}},
        "seeds": [0],
        "evaluations": [AT_4],
    }
    made = Experiment("x", **content, train=["steps=20"])
    for cell in made.cells(tmp_path):
        made_up_cells.finish(made, cell)
    other = Experiment("x", **content, train=["steps=6000"])
    announced: list[str] = []
    assert work_off(other, tmp_path, "cpu", announced.append).failed == ["none-seed0", "knn-seed0"]
    assert "was trained with steps=20" in announced[0]
    for refused in (status, collect):
        with pytest.raises(ValueError, match=r"none-seed0 was trained with steps=20 .* now says steps=6000"):
            refused(other, tmp_path)


def test_demonstrations_that_training_was_limited_to_are_those_whose_ways_are_counted(
    store: Path, tmp_path: Path
) -> None:
    content = {"factors": {"coupling": {"none": ["coupling=none"]}}, "seeds": [0], "evaluations": [AT_4]}
    experiment = Experiment("x", **content)
    cell = experiment.cells(tmp_path)[0]
    made_up_cells.finish(experiment, cell)
    summary = json.loads((cell.run_dir / "summary.json").read_text())
    n_steps = load_demonstrations(store, ("state",)).n_steps
    source = {"path": str(store), "n_episodes": 3, "n_steps": n_steps, "val_ratio": 0.0, "split_seed": 42}
    for limit, counted in ((None, 3), (2, 2)):
        summary["demonstrations"] = {**source, "max_train_episodes": limit}
        (cell.run_dir / "summary.json").write_text(json.dumps(summary))
        ways = load_results(collect(experiment, tmp_path)).runs[0]["demonstrations"]["ways"]["counts"]
        assert sum(ways.values()) == counted


def test_measurements_with_other_settings_are_not_collected(tmp_path: Path) -> None:
    content = {"factors": {"coupling": {"none": ["coupling=none"]}}, "seeds": [0], "evaluations": [AT_4]}
    made = Experiment("x", **content, measurements={"modes": {"n_starts": 4}})
    made_up_cells.finish(made, made.cells(tmp_path)[0])
    for n_starts, collected in ((4, True), (16, False)):
        asked = Experiment("x", **content, measurements={"modes": {"n_starts": n_starts}})
        assert bool(load_results(collect(asked, tmp_path)).runs[0]["modes"]) == collected
    assert load_results(collect(Experiment("x", **content), tmp_path)).runs[0]["modes"] is None


def test_cells_are_all_combinations_and_whole_seeds_come_first(tmp_path: Path) -> None:
    factors = {"objective": {"ddpm": ["a"], "flow": ["b"]}, "coupling": {"none": ["c"], "knn": ["d"]}}
    cells = Experiment("x", factors, [3, 4], [], ["t"]).cells(tmp_path)
    assert len(cells) == 8
    assert {cell.seed for cell in cells[:4]} == {3}
    assert cells[1].folder == tmp_path / "cells" / "ddpm-knn-seed3"
    assert cells[1].overrides == ("t", "a", "d", "seed=3")


def test_lists_in_evaluations_are_combined_and_named_apart() -> None:
    evaluations = [
        {"num_inference_steps": [16, 1], "inference_coupling": ["none", "warm"]},
        {"num_inference_steps": 16, "inference_coupling": "warm", "selection": ["KNN(k=2)", "KNN(k=8)"]},
        {"num_inference_steps": 16},
    ]
    experiment = Experiment("x", {"coupling": {"none": []}}, [0], evaluations)
    configs = experiment.evaluation_configs(experiment.cells(Path("folder"))[0])
    assert len(configs) == 6  # the last is among the first
    configs += [EvaluationConfig(mixed_precision="fp32"), EvaluationConfig(), EvaluationConfig(sampler="ddpm")]
    assert len({evaluation_name(config) for config in configs}) == 9
    assert evaluation_name(EvaluationConfig(num_inference_steps=4)) == "steps4-none-n200-from100000-noise0"


def test_an_evaluation_can_be_for_some_cells_only() -> None:
    evaluations = [
        {"num_inference_steps": 16},
        {"num_inference_steps": 8, "only": {"coupling": ["knn"]}},
        {"num_inference_steps": [4, 2], "only": {"coupling": ["knn", "none"], "seed": [7]}},
    ]
    experiment = Experiment("x", {"coupling": {"none": [], "knn": []}}, [5, 7], evaluations)
    steps = {
        (cell.levels["coupling"], cell.seed): [c.num_inference_steps for c in experiment.evaluation_configs(cell)]
        for cell in experiment.cells(Path("folder"))
    }
    assert steps == {("none", 5): [16], ("knn", 5): [16, 8], ("none", 7): [16, 4, 2], ("knn", 7): [16, 8, 4, 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "knm"}, r"baseline='knm': choose a level of the factor coupling \(none\)"),
        ({"seeds": []}, r"seeds=\[\] must be different"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be different"),
        ({"factors": {"coupling": {"none": []}, "observation": {}}}, r"empty: \['observation'\]"),
        (
            {"factors": {"coupling": {"none": []}, "kind": {"a": []}, "length": {"b": []}}},
            r"factors: kind, length are columns of every table of results; choose other names",
        ),
        ({"measurements": {"modes": {"starts": 3}}}, r"measurements.modes: starts is none of n_starts"),
        ({"measurements": {"modes": 4}}, r"measurements.modes=4: must be a mapping out of n_starts, n_repeats"),
        ({"measurements": {"mode": {}}}, r"measurements: 'mode' is none of modes, modes_warm, prior_gap"),
        ({"evaluations": [{"only": {"coupling": ["knm"]}}]}, r"only.coupling=\['knm'\]: choose a list out of none"),
        ({"evaluations": [{"only": {"coupling": "none"}}]}, r"only.coupling=none: choose a list out of none"),
        ({"evaluations": [{"only": {"seed": [1]}}]}, r"only.seed=\[1\]: choose a list out of 0"),
        ({"evaluations": [{"only": {"steps": [1]}}]}, r"only.steps: choose seed or one of coupling"),
        ({"evaluations": [{"steps": 3}]}, r"evaluations: .*'steps'"),
        ({"evaluations": [{"n_episodes": [10, 20]}]}, r"evaluations: n_episodes=\[10, 20\]: may not be a list"),
        ({"evaluations": [{"n_videos": 2}]}, r"evaluations: n_videos=2: an experiment's evaluations make no videos"),
        (
            {"evaluations": [{"inference_coupling": "hot"}]},
            r"inference_coupling='hot': choose one of none, warm, two_pass",
        ),
        ({"evaluations": [{"only": {"seed": 0}}]}, r"only.seed=0: choose a list out of 0"),
        ({"evaluations": [{"num_inference_steps": []}]}, r"evaluations: num_inference_steps: an empty list"),
        ({"evaluations": [{"num_inference_steps": 0}]}, r"num_inference_steps=0: must be an integer of at least 1"),
        ({"evaluations": [{"n_episodes": 3}]}, r"evaluations: num_inference_steps is missing"),
        (
            {"evaluations": [{**AT_4, "n_episodes": 9}, {**AT_4, "inference_coupling": "warm", "n_episodes": 5}]},
            r"num_inference_steps=4 have different initial states \(100000 to 100004, 100000 to 100008\)",
        ),
        (
            {"evaluations": [AT_4, {"n_episodes": 2, "num_inference_steps": 2, "inference_coupling": "two_pass"}]},
            r"num_inference_steps=4 have different initial states",
        ),
        (
            {"evaluations": [{**AT_4, "mixed_precision": "bf16"}, AT_4]},
            r"evaluations: mixed_precision must be the same for all",
        ),
        ({"factors": {"coupling": {"none": []}, "size": {25: []}}}, r"factors: size.25: names of levels are text"),
        (
            {"factors": {"coupling": {"none": [], "none-x": []}, "size": {"y": [], "x-y": []}}},
            r"factors: two combinations of levels would share the folder none-x-y",
        ),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    given = {"name": "x", "factors": {"coupling": {"none": []}}, "seeds": [0], "evaluations": [], **changes}
    with pytest.raises(ValueError, match=message):
        Experiment(**given)


def test_a_cell_without_a_choice_to_make_is_not_evaluated_as_coupled(tmp_path: Path) -> None:
    cell = Cell(tmp_path, {}, 0)
    cell.run_dir.mkdir()
    warm, other = (
        EvaluationConfig(inference_coupling="warm"),
        EvaluationConfig(inference_coupling="warm", selection="KNN(k=2)"),
    )
    texts = {
        "Independent()": [other],
        "KNN(k=2)": [warm],  # the same by name
        "KNN(k=3)": [warm, other],
        "Warmup(KNN(k=8), start=0, anneal_to={'k': 1}, anneal_over=5)": [other],
        "SeedCache(n_data=9)": [other],
        "LinearAssignment(condition_weight=ClusteredConditions())": [other],
        "LinearAssignment()": [warm, other],
    }
    for text, expected in texts.items():
        (cell.run_dir / "summary.json").write_text(json.dumps({"coupling": text}))
        assert cell.missing([warm, other]) == expected
