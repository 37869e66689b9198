"""The command that exports a policy."""

import importlib.util
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from immiscible_policy.policy import DiffusionPolicy

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def scripts_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture
def main():
    module = load("export_policy")
    module.TIMED_ROUNDS = 2
    return module.main


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two saved policies of different ranges, the later of which is wanted."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    for step in (1, 2):
        torch.manual_seed(step)
        network = {"name": "mlp", "width": 16, "n_blocks": 1, "step_embed_dim": 4}
        policy = DiffusionPolicy(5, 2, network=network, task={"env_id": "envs:immiscible/PushT-v0"})
        policy.fit_normalizers(512 * torch.rand(50, 5), 512 * step * torch.rand(50, 2))
        policy.save_pretrained(folder / "checkpoints" / f"step={step:07d}")
    return folder


def test_the_last_policy_of_a_run_is_exported_and_reported(run_folder: Path, tmp_path: Path, main, capsys) -> None:
    output = tmp_path / "exported"
    arguments = [str(run_folder), "--output", str(output), "--num-inference-steps", "2", "--batch", "1"]
    assert main([*arguments, "--noise-scale", "1e-6"]) == 0
    said = capsys.readouterr().out
    assert f"{run_folder / 'checkpoints' / 'step=0000002'}: DDPM in 2 steps" in said
    assert "largest difference of an action in px:\n  batch 1 " in said
    assert "policy.pt2" in said
    assert "ms a chunk, 1 thread(s), median [quartiles]" in said
    assert f"python {output / 'run_policy.py'}" in said
    about = json.loads((output / "policy.json").read_text())
    assert (about["source"], about["batch"]) == ("baseline/checkpoints/step=0000002", 1)
    assert max(about["action_range"]["high"]) > 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]
    # What runs it multiplies fresh noise by the scale, here so small that all chunks are the same.
    assert about["noise_scale"] == 1e-6
    runpy.run_path(str(output / "run_policy.py"), run_name="__main__")
    chunks = [line.split("first actions: ")[1] for line in capsys.readouterr().out.splitlines() if " ms, " in line]
    assert len(chunks) == 3
    assert len(set(chunks)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--num-inference-steps", "0"], "num_inference_steps=0: choose 1 to 100"),
        (["--batch", "many"], "batch='many': choose dynamic or a number"),
        (["--batch", "-1"], "batch=-1"),
        (["--noise-scale", "-1"], "noise_scale=-1.0: must be 0 or more"),
        (["--device", "tpu"], "device='tpu': choose auto, cpu"),
        (["--output", "."], "exists and is no exported policy"),
    ],
)
def test_errors_are_one_line(changes: list[str], message: str, run_folder: Path, main, monkeypatch, capsys) -> None:
    monkeypatch.chdir(run_folder)
    assert main([str(run_folder), "--output", "new", *changes]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (run_folder / "new").exists()


def test_an_export_goes_where_a_link_leads_time_and_again(run_folder: Path, tmp_path: Path, main, capsys) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    for steps in (1, 2):
        arguments = [str(run_folder), "--output", str(link), "--num-inference-steps", str(steps), "--batch", "1"]
        assert main(arguments) == 0
        assert f"try it: python {link / 'run_policy.py'}" in capsys.readouterr().out
        assert json.loads((elsewhere / "policy.json").read_text())["num_inference_steps"] == steps
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]


def test_the_working_folder_is_not_replaced(run_folder: Path, tmp_path: Path, main, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(run_folder), "--output", "."]) == 1
    said = f"error: folder {tmp_path}: is or holds the working folder, which cannot be replaced; choose another\n"
    assert capsys.readouterr().err == said


def test_what_is_no_policy_is_named(tmp_path: Path, main, capsys) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "new")]) == 1
    assert "neither a policy folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main([str(tmp_path), "--output", str(tmp_path / "new")]) == 1
    assert "not a complete saved policy" in capsys.readouterr().err


def test_help_teaches(main, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for part in ("--num-inference-steps", "--format", "torch.export.load(path)", "run_policy.py", "policy.json"):
        assert part in said


def test_the_inference_section_compares_what_can_run_here(monkeypatch, capsys) -> None:
    benchmark = load("benchmark")
    section = sys.modules["benchmark_inference"]
    monkeypatch.setattr(section, "DOWN_DIMS", (8,))
    monkeypatch.setattr(section, "STEP_EMBED_DIM", 4)
    monkeypatch.setattr(section, "LONGEST_EXPORT", {"torch": 1, "onnx": 1})
    monkeypatch.setattr(section.shutil, "which", lambda name: None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "onnx" in n else find_spec(n))
    arguments = benchmark.parse_arguments(["--only", "inference", "--rounds", "2", "--inference-steps", "1", "3"])
    rows = section.inference_section(arguments)
    eager = ["eager, fp32", "eager, bf16", "recorded"]
    timed = [(row["steps"], row["contender"]) for row in rows if "steps" in row]
    assert timed == [(1, n) for n in [*eager, "exported, torch", "published form"]] + [
        (3, n) for n in [*eager, "published form"]
    ]
    assert all(row["median_s"] > 0 for row in rows if "steps" in row)
    assert {row["contender"]: row["skipped"] for row in rows if "skipped" in row} == {
        "compiled": "no C++ compiler",
        "exported, onnx": "onnx, onnxscript, onnxruntime not installed",
        "cuda graph": "needs --device cuda",
    }
    assert "compiled left out: no C++ compiler" in capsys.readouterr().out


def test_steps_are_checked(capsys) -> None:
    with pytest.raises(SystemExit):
        load("benchmark").parse_arguments(["--inference-steps", "0"])
    assert "--inference-steps must be >= 1" in capsys.readouterr().err
