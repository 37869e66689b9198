"""The studies in configs/ are complete, and their arms build what they name."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from composing import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from image_diffusion.analysis.analyses import ANALYSES, check_analysis
from image_diffusion.analysis.perturbation import Perturbation
from image_diffusion.analysis.study import Study
from immiscible_policy.cli import CONFIG_DIR, group_choices
from immiscible_policy.diffusion import DDPM, build_objective

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


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_lists_all_settings_of_its_analysis(figure: str) -> None:
    analysis = dict(study(f"figure={figure}").analysis)
    with pytest.raises(ValueError, match="nothing is none of ") as caught:
        check_analysis(study(f"figure={figure}", "++figure.analysis.nothing=0"))
    assert {name for name in analysis if name != "name"} == set(str(caught.value).split(" is none of ")[1].split(", "))


@pytest.mark.parametrize("name", ["perturbation", "trajectory", "training_curves"])
def test_settings_are_listed_with_their_defaults(name: str) -> None:
    figure = "curves" if name == "training_curves" else name
    listed = dict(study(f"figure={figure}").analysis)
    defaults = {p.name: p.default for p in inspect.signature(ANALYSES[name]).parameters.values()}
    if name == "perturbation":
        defaults |= dataclasses.asdict(Perturbation())
    own = {"trajectory": {"num_inference_steps": 20}}.get(name, {})  # of the papers' figure
    for setting, value in listed.items():
        if setting != "name":
            expected = own.get(setting, defaults[setting])
            assert value == (list(expected) if isinstance(expected, tuple) else expected), setting


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_can_take_the_runs_of_the_papers_size(figure: str) -> None:
    small = study(f"figure={figure}")
    runs = small.runs.replace("digits", "cifar10")
    found = study(f"figure={figure}", f"image_runs@figure={runs}")
    check_analysis(found)
    assert found.runs == runs
    assert {name: set(levels) for name, levels in found.chosen.items() if name != "batch_size"} == {
        name: set(levels) for name, levels in small.chosen.items() if name != "batch_size"
    }


def test_runs_of_the_papers_size_have_the_factors_of_the_small_ones() -> None:
    small, large = (study("figure=curves", f"image_runs@figure={runs}") for runs in ("digits", "cifar10"))
    assert large.factors["coupling"] == small.factors["coupling"]


@pytest.mark.parametrize("runs", RUNS)
def test_more_overrides_come_before_those_of_the_levels(runs: str, tmp_path: Path) -> None:
    figure = "batch_size" if runs.endswith("_batch") else "curves"
    found = study(f"figure={figure}", f"image_runs@figure={runs}", "figure.extra=['monitor.extractor=inception']")
    training = found.trainings(tmp_path)[0]
    n = len(found.train)
    assert training.overrides[: n + 1] == (*found.train, "monitor.extractor=inception")
    assert composed("train_image", *training.overrides).evaluation.extractor == "inception"


def test_one_override_is_no_list() -> None:
    with pytest.raises(ValueError, match=r"extra='steps=3': must be a list of overrides, extra=\['steps=3'\]"):
        study("figure=curves", "figure.extra='steps=3'")


@pytest.mark.parametrize("method", ["ddim", "sd"])
def test_every_setting_of_ddpm_can_be_overridden(method: str) -> None:
    own = dataclasses.asdict(DDPM())
    cfg = composed("train_image", f"method={method}", *(f"objective.{name}={value}" for name, value in own.items()))
    assert OmegaConf.to_container(cfg.objective) == {"name": "ddpm", **own}
    plain = OmegaConf.to_container(composed("train_policy", "objective=ddpm").objective)
    assert build_objective(plain) == DDPM()  # type: ignore[arg-type]


def test_latent_diffusion_has_stable_diffusions_schedule() -> None:
    objective = OmegaConf.to_container(composed("train_image", "method=sd").objective)
    assert build_objective(objective) == DDPM(  # type: ignore[arg-type]
        1000,
        "scaled_linear",
        0.00085,
        0.012,
        timestep_spacing="leading",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=False,
    )


@pytest.mark.parametrize("runs", RUNS)
def test_every_arm_builds(runs: str) -> None:
    figure = "batch_size" if runs.endswith("_batch") else "curves"
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


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("sampling_steps", "max_features=100", "analysis: max_features is none of"),
        ("sampling_steps", "metrics=[kid]", "analysis: metrics is none of"),
        ("sampling_steps", "num_inference_steps=7", "analysis: num_inference_steps is none of"),
        ("step_distance", "guidance_scale=2.0", r"guidance_scale=2\.0: predictions of single calls are without"),
    ],
)
def test_settings_that_an_analysis_makes_itself_are_refused_before_training(
    name: str, setting: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_analysis(study(f"figure={name}", f"++figure.analysis.{setting}"))


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("perturbation", "mixing=normalized", r"mixing='normalized': choose one of added, normalised"),
        ("perturbation", "weights=[-0.1]", r"weights=\[-0\.1\]: needs one or more numbers, each at least 0"),
        ("perturbation", "n_images=1", r"n_images=1: must be an integer of at least 2"),
        ("perturbation", "n_pictures=-1", r"n_pictures=-1: must be an integer of at least 0"),
        ("perturbation", "seed=-1", r"seed=-1: must be an integer of at least 0, and with the 99 that follow it below"),
        ("perturbation", "num_inference_steps=0", r"num_inference_steps=0: choose 1 to 1000"),
        ("sampling_steps", "steps=[2000]", r"steps=2000: choose 1 to 1000"),
        ("sampling_steps", "steps=[50,50]", r"steps=\[50, 50\]: needs different integers, each at least 1"),
        ("sampling_steps", "n_samples=1", r"n_samples=1: must be at least 2"),
        ("sampling_steps", "extractor=nope", r"extractor='nope': choose one of auto, inception"),
        ("curves", "thresholds=[0]", r"thresholds=\[0\]: needs positive numbers"),
        ("curves", "metric=fid", r"metric='fid': choose one of fd$"),
        ("curves", "metric=kid", r"metric='kid': choose one of fd$"),
        ("trajectory", "num_inference_steps=5000", r"num_inference_steps=5000: choose 1 to 1000"),
        ("trajectory", "n_paths=0", r"n_paths=0: must be an integer of at least 1"),
        ("step_distance", "n_samples=1", r"n_samples=1: must be at least 2"),
    ],
)
def test_values_that_an_analysis_cannot_do_with_are_refused_before_training(
    name: str, setting: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^analysis: {message}"):
        check_analysis(study(f"figure={name}", f"++figure.analysis.{setting}"))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "trajectory",
            ("++figure.analysis.n_paths=3", "figure.analysis.num_inference_steps=1"),
            "n_paths=3: 1 network calls each make 3 points; t-SNE needs 4",
        ),
        ("step_distance", ("figure.extra=['++objective.sampler=adaptive']",), "sampler='adaptive' chooses its calls"),
        ("curves", ("figure.extra=['stepz=5']",), "ddim-none-seed0: unknown setting 'stepz': choose one of .*, steps"),
    ],
)
def test_what_trainings_do_not_go_with_is_refused_before_them(
    name: str, overrides: tuple[str, ...], message: str
) -> None:
    flow = ("++figure.only.method=[fm]",) if name == "step_distance" else ()
    with pytest.raises(ValueError, match=message):
        check_analysis(study(f"figure={name}", *flow, *overrides))


def test_a_metric_that_trainings_measure_besides_is_one_of_a_curve() -> None:
    more = "figure.extra=['monitor.metrics=[fd,kid]']"
    for metric in ("kid", "kid_full"):
        check_analysis(study("figure=curves", more, f"++figure.analysis.metric={metric}"))
