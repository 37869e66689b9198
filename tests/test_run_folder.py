"""A command's folder is its alone, and what lies there is not written over."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from immiscible_policy import run_folder
from immiscible_policy.files import locked
from immiscible_policy.run_folder import results_folder, training_folder

Hydra = Callable[..., DictConfig]


@pytest.fixture
def hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hydra:
    """hydra(*overrides of Hydra's own, ...) stands in for Hydra, whose folder is `named`; returns a configuration."""

    def use(*overrides: str, mode: RunMode = RunMode.RUN, **cfg: Any) -> DictConfig:
        node = {
            "runtime": {"output_dir": str(tmp_path / "named")},
            "overrides": {"hydra": list(overrides), "task": ["seed=3"]},
            "job": {"config_name": "train_policy"},
            "mode": mode,
        }
        monkeypatch.setattr(run_folder.HydraConfig, "get", lambda: OmegaConf.create(node))
        return OmegaConf.create({"seed": 3, "twice": "${seed}", **cfg})

    return use


def test_records_are_hydras(hydra: Hydra, tmp_path: Path) -> None:
    with training_folder(hydra(resume=None)) as folder:
        assert folder == tmp_path / "named"
    records = {path.stem: OmegaConf.load(path) for path in (folder / ".hydra").iterdir()}
    assert sorted(records) == ["config", "hydra", "overrides"]
    assert OmegaConf.to_container(records["config"], resolve=False) == {"seed": 3, "twice": "${seed}", "resume": None}
    assert records["overrides"] == ["seed=3"]
    assert OmegaConf.select(records["hydra"], "hydra.job.config_name") == "train_policy"


def test_commands_of_one_second_get_folders_of_their_own(hydra: Hydra, tmp_path: Path) -> None:
    cfg = hydra(resume=None)
    with training_folder(cfg) as first, training_folder(cfg) as second, training_folder(cfg) as third:
        assert [folder.name for folder in (first, second, third)] == ["named", "named_2", "named_3"]
        (first / "metrics.jsonl").touch()
        (third / "checkpoints" / "latest").mkdir(parents=True)
    with training_folder(cfg) as again:  # of a run that never began nothing can be lost
        assert again.name == "named_2"
    (again / "eval.json").touch()
    with results_folder(cfg, "eval.json") as folder:
        assert folder.name == "named"
        with results_folder(cfg, "eval.json") as another:
            assert another.name == "named_3"


@pytest.mark.parametrize("asked", [{"mode": RunMode.MULTIRUN}, {"overrides": "hydra.run.dir=named"}])
def test_a_folder_that_was_asked_for_is_taken_or_refused(hydra: Hydra, tmp_path: Path, asked: dict[str, Any]) -> None:
    overrides = [asked.pop("overrides")] if "overrides" in asked else []
    cfg = hydra(*overrides, resume=None, **asked)
    named = tmp_path / "named"
    with training_folder(cfg), pytest.raises(ValueError, match="named: another process trains there; choose another"):
        training_folder(cfg).__enter__()
    shutil.rmtree(named / ".hydra")
    (named / "checkpoints" / "step=0000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="named already holds a run: continue it with resume="):
        training_folder(cfg).__enter__()
    (named / "eval.json").touch()
    with pytest.raises(ValueError, match=r"named already holds eval\.json, or will: choose another folder"):
        results_folder(cfg, "eval.json").__enter__()
    assert not (named / ".hydra").exists()
    assert not (tmp_path / "named_2").exists()


def test_a_run_is_resumed_by_one_process(hydra: Hydra, tmp_path: Path) -> None:
    cfg = hydra(resume="named")
    (tmp_path / "named" / "checkpoints" / "latest").mkdir(parents=True)
    with training_folder(cfg) as folder:
        assert folder == tmp_path / "named"
        assert not (folder / ".hydra").exists()  # it has the records of its beginning
    with locked(folder, ".lock"), pytest.raises(ValueError, match="another process trains there; wait for it"):
        training_folder(cfg).__enter__()


def test_processes_that_do_not_write_take_no_folder(
    hydra: Hydra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "named", ".lock"), training_folder(hydra(resume=None)) as folder:
        assert folder == tmp_path / "named"
