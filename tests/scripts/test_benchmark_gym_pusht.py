"""scripts/benchmark_gym_pusht.py where gym-pusht is not installed; test_benchmark_environment.py has a stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark_gym_pusht.py"


@pytest.fixture
def without_gym_pusht(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that cannot import gym_pusht."""
    (tmp_path / "gym_pusht.py").write_text("raise ModuleNotFoundError(\"No module named 'gym_pusht'\")\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_help_needs_no_gym_pusht(without_gym_pusht: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], env=without_gym_pusht, capture_output=True, text=True, check=True
    )
    assert "so has a virtual environment of its own" in done.stdout


def test_without_gym_pusht_it_ends_in_one_line(without_gym_pusht: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "7"], env=without_gym_pusht, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: No module named 'gym_pusht': run this by an interpreter that has gym-pusht\n"
