"""``scripts/reproduce.py`` as a user calls it; trainings and evaluations are made up."""

import json
from collections import Counter
from pathlib import Path

import made_up_cells
import pytest

from immiscible_policy import experiment
from immiscible_policy.evaluation.results import load_results
from immiscible_policy.experiment import Cell
from immiscible_policy.training.precision import resolve_precision

SMALL = (
    "experiment=quick",
    "experiment.seeds=[0]",
    "experiment.evaluations=[{n_episodes: 3, num_inference_steps: 4, inference_coupling: none}]",
    "experiment.measurements.prior_gap=null",
    "device=cpu",
)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often was trained, evaluated and measured."""
    done: Counter[str] = Counter()

    def counted(name: str):
        def do(*arguments: object) -> None:
            done[name] += 1
            getattr(made_up_cells, name)(*arguments)

        return do

    monkeypatch.setattr(Cell, "train", counted("train"))
    monkeypatch.setattr(experiment, "evaluate_cell", counted("evaluate"))
    monkeypatch.setattr(experiment, "measure_cell", counted("measure"))
    return done


def test_results_are_joined_and_finished_on_demand(
    run_script, work: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("reproduce", *SMALL, "folder=first") == 0
    assert "quick: 2 of 2 trained, 0 evaluations missing" in capsys.readouterr().out
    assert work == {"train": 2, "evaluate": 2, "measure": 2}
    work.clear()
    made_by = json.loads(Path("first/experiment.json").read_text())["command"]
    assert run_script("reproduce", *SMALL, "folder=first", "action=tables", "experiment.name=again") == 0
    record = json.loads(Path("first/experiment.json").read_text())
    assert (record["command"], record["name"]) == (made_by, "again")  # not the command that only made tables
    assert "action=tables" not in made_by
    assert work == {}
    capsys.readouterr()

    joined = (*SMALL, "join=[first/results.parquet]", "folder=second")
    assert run_script("reproduce", *joined, "experiment.seeds=[0,1]") == 0
    assert "quick: 2 of 4 trained, 2 joined, 0 evaluations missing" in capsys.readouterr().out
    assert work["train"] == 2
    table = Path("second/tables/coverage.md").read_text()
    assert "| 4 | knn_k2 | none | 2 |" in table
    work.clear()

    more = (*joined, "experiment.seeds=[0]", "experiment.evaluations.0.n_episodes=4", "folder=third")
    assert run_script("reproduce", *more) == 0
    out = capsys.readouterr().out
    assert "trained 0, evaluated 0" in out
    assert "joined, but lacking something" in out
    assert work == {}
    assert run_script("reproduce", *more, "finish=true") == 0
    out = capsys.readouterr().out
    assert "quick: 2 of 2 trained, 0 evaluations missing" in out
    assert "lacking" not in out
    assert work == {"train": 2, "evaluate": 2}  # the measurements are those of the same policy
    assert out.count("the policy of the joined results, of which 0 evaluations and 1 measurements are kept") == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("action=train",), "action='train': choose one of run, tables, status"),
        (("processes=0",), "processes=0: must be at least 1"),
        (("join=[nowhere.parquet]",), "nowhere.parquet"),
        (("experiment=table3",), "experiment=table3: choose one of"),
        (("experiment.name=other",), "folder=first: holds the experiment"),
        (("hydra/launcher=joblib", "-m"), "joblib needs pip install hydra-joblib-launcher"),
    ],
)
def test_bad_settings_are_refused_before_any_work(
    run_script,
    work: Counter[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps({"name": "quick"}))
    assert run_script("reproduce", *SMALL, "folder=first", *overrides) == 1
    assert message in capsys.readouterr().err
    assert work == {}


def test_whatever_is_added_is_computed_in_the_precision_of_what_is_there(
    run_script, work: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def precisions(folder: str) -> tuple[set[str], set[str]]:
        results = load_results(Path(folder, "results.parquet"))
        return {run["precision"] for run in results.runs}, set(results.levels("mixed_precision", kind="final"))

    other = {"bf16": "fp32", "fp32": "bf16"}[resolve_precision("auto", "cpu")]  # than this machine would choose
    assert run_script("reproduce", *SMALL, "folder=first", f"mixed_precision={other}") == 0
    Path("first/precision.json").unlink()  # a folder of an earlier version
    assert run_script("reproduce", *SMALL, "folder=first", "experiment.seeds=[0,1]") == 0
    assert precisions("first") == ({other}, {other})
    joined = (*SMALL, "join=[first/results.parquet]", "experiment.seeds=[0,1,2]")
    capsys.readouterr()
    assert run_script("reproduce", *joined, "folder=second") == 0
    assert f"computing in {other}" in capsys.readouterr().out
    assert precisions("second") == ({other}, {other})
    assert "same precision" not in Path("second/tables/coverage.md").read_text()

    assert run_script("reproduce", *joined, "folder=third", "mixed_precision=auto") == 0
    assert precisions("third") == ({"bf16", "fp32"}, {"bf16", "fp32"})
    assert f"4 in {other}" in Path("third/tables/coverage.md").read_text()
    assert json.loads(Path("third/precision.json").read_text())["mixed_precision"] != other
    assert run_script("reproduce", *SMALL, "folder=first", "mixed_precision=int8") == 1
    assert "mixed_precision='int8': choose one of auto, fp32, bf16, fp16" in capsys.readouterr().err
