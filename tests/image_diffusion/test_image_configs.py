"""The studies in configs/ are complete, and their arms build what they name."""

import json

import pytest
from composing import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from image_diffusion.analysis.analyses import check_analysis
from image_diffusion.analysis.study import Study
from immiscible_policy.cli import CONFIG_DIR, group_choices
from immiscible_policy.diffusion import build_objective

FIGURES = sorted(path.stem for path in (CONFIG_DIR / "figure").glob("*.yaml"))
RUNS = sorted(path.stem for path in (CONFIG_DIR / "image_runs").glob("*.yaml"))


def study(*overrides: str) -> Study:
    return Study(**json.loads(json.dumps(OmegaConf.to_container(composed("analyze_images", *overrides).figure))))


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_is_a_study_that_an_analysis_knows(figure: str) -> None:
    found = study(f"figure={figure}")
    check_analysis(found)
    assert found.name == figure
    assert len(found.seeds) >= 3


@pytest.mark.parametrize("runs", RUNS)
def test_every_arm_builds(runs: str) -> None:
    figure = "batch_size" if runs == "digits_batch" else "curves"
    settings = study(f"figure={figure}", f"image_runs@figure={runs}")
    for levels in settings.factors.values():
        for overrides in levels.values():
            cfg = composed("train_image", *settings.train, *overrides)
            instantiate(cfg.coupling)
            build_objective(OmegaConf.to_container(cfg.objective, resolve=True))  # type: ignore[arg-type]


def test_the_gpu_runs_can_be_taken_instead_of_the_small_ones() -> None:
    assert study("figure=curves", "image_runs@figure=cifar10").runs == "cifar10"


@pytest.mark.parametrize("script", ["train_image", "train_vae", "analyze_images", "train_policy", "reproduce"])
def test_help_lists_the_choices_of_that_script_alone(script: str) -> None:
    lines = dict(line.split(": ") for line in group_choices(script).splitlines())
    assert ("method" in lines) == (script == "train_image")
    assert ("policy" in lines) == (script == "train_policy")
    assert ("figure" in lines) == (script == "analyze_images")
    if "dataset" in lines:
        assert ("cifar10" in lines["dataset"]) == (script != "train_policy")
        assert ("human" in lines["dataset"]) == (script == "train_policy")
