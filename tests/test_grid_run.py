"""The command that trains a run of a grid."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from immiscible_policy.grid_run import GridRun


@pytest.mark.parametrize(
    ("overrides", "precision", "expected"),
    [
        ((), "bf16", ["trainer.mixed_precision=bf16"]),
        (("trainer.mixed_precision=fp32",), "bf16", ["trainer.mixed_precision=fp32"]),
        (("method=ddim_paper",), "auto", []),  # a preset that names its own precision keeps it
    ],
)
def test_precision_is_given_unless_the_configuration_is_to_say(
    overrides: tuple[str, ...], precision: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def ended(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", ended)
    run = GridRun(tmp_path, {"coupling": "none"}, 0, overrides)
    run.train("cpu", lock=0, precision=precision)
    record = run.run_dir / ".hydra" / "config.yaml"  # killed while Hydra wrote it, so that nothing could read it
    record.parent.mkdir(parents=True)
    record.touch()
    run.train("cpu", lock=0, precision=precision)
    (run.run_dir / "checkpoints" / "latest").mkdir(parents=True)
    run.train("cpu", lock=0, precision=precision)
    first, again, resumed = commands
    assert again == first
    assert [argument for argument in first if "mixed_precision" in argument] == expected
    assert f"hydra.run.dir={run.run_dir}" in first
    assert f"resume={run.run_dir}" in resumed
    assert not any("mixed_precision" in argument for argument in resumed)
