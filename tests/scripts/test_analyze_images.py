"""The analyses of image models, from trainings to tables and figures, as a user calls them."""

import json
from pathlib import Path

import pytest

SMALL = (
    "figure.seeds=[0]",
    "++figure.only.method=[ddim]",
    "figure.only.coupling=[none,knn_k4]",
    "device=cpu",
    "folder=studies",
)


def train(run_script, tiny: tuple[str, ...], coupling: str, *overrides: str) -> None:
    folder = f"studies/digits/cells/ddim-{coupling}-seed0/run"
    settings = [setting for setting in tiny if not setting.startswith("model.")]
    assert (
        run_script("train_image", *overrides, f"hydra.run.dir={folder}", "model.num_inference_steps=4", *settings) == 0
    )


def test_every_analysis_writes_table_numbers_and_figure(
    run_script, tiny_images: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_script, tiny_images, "none", "coupling=none")
    train(run_script, tiny_images, "knn_k4", "coupling=knn", "k=4")
    capsys.readouterr()
    assert run_script("analyze_images", "figure=curves", "action=status", *SMALL) == 0
    assert "curves: 2 of 2 trained" in capsys.readouterr().out
    few = ("figure.analysis.n_samples=8", "figure.analysis.batch_size=8")
    studies = {
        "curves": (),
        "perturbation": ("figure.analysis.n_images=4", "figure.analysis.n_draws=2", "figure.analysis.n_pictures=1"),
        "trajectory": (
            "figure.analysis.n_images=4",
            "figure.analysis.n_pictures=2",
            "figure.analysis.n_paths=3",
            "figure.analysis.num_inference_steps=4",
        ),
        "step_distance": ("figure.analysis.num_inference_steps=3", *few),
        "sampling_steps": ("figure.analysis.steps=[1,2]", "figure.analysis.n_samples=8"),
    }
    for name, overrides in studies.items():
        # With everything trained, running is analysing.
        assert run_script("analyze_images", f"figure={name}", *SMALL, *overrides) == 0, capsys.readouterr().err
        folder = Path("studies/digits") / name
        kinds = {path.suffix for path in folder.iterdir()}
        assert kinds == {".md", ".json", ".png"}
        study = json.loads((folder / "study.json").read_text())
        assert study["name"] == name
        runs = study["runs"].values()
        assert {"coupling=none", "coupling=knn"} <= {word for run in runs for word in run["command"].split()}
        assert all(one["n_reference"] > 0 for run in runs for one in run["measurements"].values())
        for table in folder.glob("*.md"):
            assert "`knn_k4`" in table.read_text()
        for numbers in folder.glob("*.json"):
            json.loads(numbers.read_text(), parse_constant=pytest.fail)  # no NaN, no infinity
        assert f"studies/digits/{name}/ddim-" in capsys.readouterr().out
    for name in ("perturbation", "trajectory"):
        pictures = [path for path in Path("studies/digits", name).glob("*.png") if "-none-" in path.name]
        for path in pictures:
            path.unlink()
        # Of a path alone, too.
        fewer = ("figure.analysis.n_pictures=0", *(("figure.analysis.n_paths=1",) if name == "trajectory" else ()))
        assert run_script("analyze_images", f"figure={name}", *SMALL, *studies[name], *fewer) == 0
        assert pictures
        assert not any(path.exists() for path in pictures)
    record = Path("studies/digits/cells/ddim-knn_k4-seed0/run/images.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "n": 1499}))
    for name in ("step_distance", "sampling_steps"):
        assert run_script("analyze_images", f"figure={name}", *SMALL, *studies[name]) == 1
        told = capsys.readouterr().err
        assert "the images at digits are no longer those that the run began with: n=1500 (began with 1499)" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("figure=colours",), "figure=colours: choose one of"),
        (("action=train",), "action='train': choose one of run, analyze, status"),
        (("figure.analysis.name=fid",), "analysis.name='fid': choose one of training_curves, perturbation"),
        (("++figure.analysis.n_samples=5",), "analysis: n_samples is none of metric, thresholds"),
        (("figure.only.coupling=[none,magic]",), "only.coupling"),
        (("processes=0",), "processes=0: must be at least 1"),
    ],
)
def test_bad_settings_are_refused_before_any_work(
    run_script, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    assert run_script("analyze_images", "figure=curves", "folder=studies", *overrides) == 1
    assert message in capsys.readouterr().err
    assert not Path("studies/digits").exists()
