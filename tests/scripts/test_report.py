"""scripts/report.py, and the report that a training run leaves behind."""

from pathlib import Path

import pytest

from immiscible_policy.evaluation import report

TINY = (
    *("preset=quick", "steps=2", "batch_size=16", "policy=mlp", "policy.network.width=16", "policy.network.n_blocks=1"),
    *("policy.num_inference_steps=2", "task.max_steps=8", "rollout.n_episodes=2", "rollout.num_inference_steps=2"),
    *("evaluation.n_episodes=3", "evaluation.num_inference_steps=2", "evaluation.n_videos=1", "trainer.log_every=1"),
    *("trainer.evaluate_every=2", "trainer.mixed_precision=fp32", "trainer.tensorboard=false", "num_threads=1"),
    *("device=cpu", "dataset.path=store.zarr", "hydra.run.dir=run"),
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, make_store) -> None:
    make_store(tmp_path / "store.zarr", lengths=(40, 30, 25))


def test_a_run_ends_with_its_report(run_script, tmp_path: Path, capsys) -> None:
    assert run_script("train_policy", *TINY) == 0
    path = tmp_path / "run" / "report.html"
    assert f"report     {path}" in capsys.readouterr().out
    html = path.read_text()
    assert "Independent(), ddpm, seed 0" in html
    assert html.count('src="data:video/mp4') == 1
    assert html.count('src="data:image/png') == 1
    assert "this run logged no intervals" not in html
    assert "has not finished" not in html
    # By hand it is the same, and an experiment's leads to it.
    path.unlink()
    assert run_script("report", ".") == 0
    assert capsys.readouterr().out.splitlines() == ["report     run/report.html", "report     report.html"]
    assert 'href="run/report.html"' in (tmp_path / "report.html").read_text()
    (tmp_path / "run" / "media" / "eval.json").write_text("{")
    assert run_script("report", "run", "--max-embedded-mb", "0") == 0
    printed = capsys.readouterr()
    assert printed.out == "report     run/report.html\n"
    assert printed.err.startswith("warning: run: media/eval.json is damaged: ")
    assert len(printed.err.splitlines()) == 1


def test_a_report_that_fails_does_not_cost_the_run(run_script, tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(report, "write_report", fail)
    assert run_script("train_policy", *TINY) == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    printed = capsys.readouterr()
    warnings = [line for line in printed.err.splitlines() if line.startswith("warning: no report.html (no font)")]
    assert len(warnings) == 1
    assert "\nreport " not in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["store.zarr"], "store.zarr: neither a run folder nor one that holds runs"),
        ([".", "--max-embedded-mb", "-1"], "max_embedded_mb=-1.0: must be at least 0"),
    ],
)
def test_bad_input_ends_in_one_line(run_script, capsys, arguments: list[str], message: str) -> None:
    assert run_script("report", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert len(error.splitlines()) == 1
