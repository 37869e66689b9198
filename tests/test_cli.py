"""What the scripts share: values that Hydra's grammar would refuse or take wrongly, resume, interruption."""

import re
import warnings
from pathlib import Path

import pytest
from composing import composed
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from immiscible_policy import cli
from immiscible_policy.cli import quote_values
from immiscible_policy.run_setup import trainer_config


@pytest.mark.parametrize(
    "argument",
    [
        "checkpoint=outputs/run/checkpoints/step=0012000",
        "resume=outputs/Jos\u00e9/run (1)",
        "selection=KNN(k=2)",
        "selection=KNN(k=2, metric='inner')",
        'folder=outputs/{x}/it\'s "here"',
    ],
)
def test_text_that_the_grammar_refuses_is_quoted(argument: str) -> None:
    (quoted,) = quote_values(["script", argument])[1:]
    name, _, value = argument.partition("=")
    parsed = OverridesParser.create().parse_override(quoted)
    assert (parsed.key_or_group, parsed.value()) == (name, value)


@pytest.mark.parametrize(
    "argument",
    ["k=2", "seed=0,1,2", "join=[docs/a.parquet]", "~dataset", "-m", "--help", "a=[0,1", "x={k:1}", "y='a(b'", "name="],
)
def test_all_else_is_left_as_it_is(argument: str) -> None:
    assert quote_values(["script", argument]) == ["script", argument]


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).map(lambda text: f"/{text}"))
def test_any_path_is_itself_or_left_alone(value: str) -> None:
    (argument,) = quote_values(["script", f"folder={value}"])[1:]
    if argument != f"folder={value}":
        assert OverridesParser.create().parse_override(argument).value() == value


@pytest.mark.parametrize(
    ("config", "arguments", "problem"),
    [
        ("train_policy", ["trainer.tensorboard=no"], "trainer.tensorboard=no: must be true or false"),
        ("train_policy", ["policy.mask_padding=1"], "policy.mask_padding=1: must be true or false"),
        ("train_policy", ["coupling=knn", "coupling.correct_norm=off"], "coupling.correct_norm=off: must be true or"),
        ("eval_policy", ["checkpoint=a", "known_only=no"], "known_only=no: must be true or false"),
        ("reproduce", ["finish=maybe"], "finish=maybe: must be true or false"),
        ("train_policy", ["steps=abc"], "steps=abc: must be a number"),
        ("train_policy", ["dataset.val_ratio=abc"], "dataset.val_ratio=abc: must be a number"),
        ("train_policy", ["policy.network.down_dims=64"], r"down_dims=64: must be a list: \[64\]"),
        ("reproduce", ["join=a/results.parquet"], r"join=a/results.parquet: must be a list: \[a/results.parquet\]"),
        ("reproduce", ["experiment=quick", "experiment.seeds=0"], r"experiment.seeds=0: must be a list: \[0\]"),
        ("train_image", ["method=fm", "steps=abc"], "steps=abc: must be a number"),
        ("eval_policy", ["outputs/a"], "outputs/a: settings are given as name=value, such as checkpoint=outputs/a"),
    ],
)
def test_values_of_the_wrong_kind_are_named(config: str, arguments: list[str], problem: str) -> None:
    assert re.search(problem, str(cli.wrong_kind(["script", *arguments], config)))


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("train_policy", ["coupling=knn", "k=2", "steps=10", "trainer.tensorboard=false", "epochs=null"]),
        ("train_policy", ["-m", "seed=0,1,2", "coupling=none,knn"]),
        ("train_policy", ["trainer.learning_rate=1e-3", "trainer.compile=default", "name=run 3"]),
        ("train_policy", ["coupling=mixture", "coupling@coupling.coupling=assignment", "coupling.p=[0.0,1.0]"]),
        ("train_policy", ["coupling=warmup", "coupling.anneal_to={k: 1}", "task.goal_pose=[1,2,3]"]),
        ("train_policy", ["nonsense=3", "coupling=knnn"]),  # of which Hydra says what is wrong
        ("train_policy", ["batch_size=${k}", "evaluation.noise_scale=1", "hydra.run.dir=outputs/a"]),
        ("eval_policy", ["checkpoint=outputs/step=10", "n_episodes=3"]),
        ("reproduce", ["join=[a/results.parquet]", "processes=2", "mixed_precision=bf16"]),
        ("train_policy", ["--config-dir", "elsewhere", "steps=3"]),
    ],
)
def test_values_of_the_right_kind_pass(config: str, arguments: list[str]) -> None:
    assert cli.wrong_kind(["script", *arguments], config) is None


def test_only_the_script_of_a_run_resumes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("k: 2")
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: train_image}}")
    with pytest.raises(SystemExit):
        cli.point_hydra_at_resumed_run(["scripts/train_policy.py", f"resume={tmp_path}"])
    assert "a run of scripts/train_image.py, which goes on with it" in capsys.readouterr().err
    assert cli.point_hydra_at_resumed_run(["scripts/train_image.py", f"resume={tmp_path}"])[2:]


@pytest.mark.parametrize("sweep", ["-m", "--multirun", "--multi"])
def test_a_sweep_resumes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], sweep: str) -> None:
    """Hydra would make new folders for its runs, which would begin at step 0."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("k: 2")
    with pytest.raises(SystemExit):
        cli.point_hydra_at_resumed_run(["scripts/train_policy.py", sweep, f"resume={tmp_path}"])
    said = capsys.readouterr().err
    assert said == f"error: {sweep}: a sweep begins runs of its own; to go on with resume={tmp_path}, leave it out\n"
    fresh = ["scripts/train_policy.py", sweep, "resume=null", "seed=0,1"]
    assert cli.point_hydra_at_resumed_run(fresh) == fresh


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        (["preset=paper_state", "steps=100"], None),
        (["preset=paper_state", "trainer.steps=100"], None),
        (["preset=paper_state", "steps=100", "epochs=5"], 5),
        (["preset=paper_state", "steps=100", "++epochs=5"], 5),
        (["preset=paper_state"], 3000),
        (["steps=100"], None),
    ],
)
def test_steps_that_are_given_come_before_the_epochs_of_a_preset(given: list[str], epochs: int | None) -> None:
    cfg = composed("train_policy", *cli.with_steps_as_given(["script", *given])[1:])
    assert cfg.epochs == epochs
    if epochs is None:
        assert trainer_config(cfg, n_data=10_500).steps == 100


@pytest.mark.parametrize("options", [["-m"], ["--cfg", "job", "-p", "epochs"]])
def test_options_of_hydra_may_follow_steps_that_are_given(options: list[str]) -> None:
    given = ["preset=paper_state", "steps=100"]
    (_, *arguments) = cli.with_steps_as_given(["script", *given, *options])
    assert arguments == [*given, "epochs=null", *options]
    assert get_args_parser().parse_args(arguments).overrides == [*given, "epochs=null"]


def test_epochs_that_are_taken_out_need_no_value() -> None:
    removed = ["script", "preset=paper_state", "steps=100", "~epochs"]
    assert cli.with_steps_as_given(removed) == removed


def test_ctrl_c_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert cli.interruptible(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert cli.interruptible(lambda: None) == 0
    assert cli.interruptible(lambda: 3) == 3


def test_our_warnings_are_one_line_and_others_say_where(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = Path(cli.__file__), Path(pytest.__file__)

    def warns() -> None:
        warnings.warn_explicit("k=1 chooses nothing", UserWarning, str(ours), 7)
        warnings.warn_explicit("how you did it", UserWarning, str(theirs), 7)
        warnings.warn_explicit("a division by zero", RuntimeWarning, str(ours), 7)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.interruptible(warns)
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "warning: k=1 chooses nothing"
    assert others[0] == f"{theirs}:7: UserWarning: how you did it"
    assert any(line.startswith(f"{ours}:7: RuntimeWarning") for line in others)
