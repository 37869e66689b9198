"""What the scripts share: configuration errors that teach, one line for an expected failure, and resume."""

import contextlib
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm

from immiscible_policy.download import DownloadError
from immiscible_policy.run_folder import training_folder
from immiscible_policy.run_setup import is_main_process, made_by
from immiscible_policy.training import DivergedError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
_OUR_CODE = [CONFIG_DIR.parent / name for name in ("immiscible_policy", "image_diffusion", "envs", "scripts")]
# What a user can cause: bad values (DataError and CheckpointError are ValueErrors), files, an extra that is not
# installed, a host out of reach, diverged training.
EXPECTED = (ValueError, TypeError, OSError, ImportError, DownloadError, DivergedError, gym.error.Error)
# Read before ``run`` sets the variable itself.
WANTS_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
LAUNCHERS = "joblib needs pip install hydra-joblib-launcher, submitit_slurm needs pip install hydra-submitit-launcher"
# What may change when a run is resumed without changing its result; the device among those of its kind.
RESUME_OVERRIDES = ("resume", "device", "num_threads")


def group_choices(config_name: str) -> str:
    """A line for every configuration group that a script uses, with its choices: what ``--help`` lists.

    Hydra's own list has the groups of all scripts.
    """
    defaults = OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml").defaults
    lines = []
    for entry in defaults:
        if isinstance(entry, str):  # _self_
            continue
        ((group, default),) = entry.items()
        name = str(group).split()[-1].lstrip("/")
        lines.append(f"{name}: {', '.join(choices_like(name, default))}")
    return "\n".join(sorted(lines))


def choices_like(group: str, default: str) -> list[str]:
    """Choices of a group that fit where ``default`` does: ``dataset`` holds images and demonstrations."""
    files = {path.stem: OmegaConf.load(path) for path in sorted((CONFIG_DIR / group).glob("*.yaml"))}
    return [name for name, content in files.items() if ("format" in content) == ("format" in files[default])]


def check_action(cfg: DictConfig, actions: Sequence[str]) -> None:
    """Raise a ValueError for an ``action`` that a script does not have, or no ``processes``."""
    if cfg.action not in actions:
        raise ValueError(f"action={cfg.action!r}: choose one of {', '.join(actions)}")
    if cfg.processes < 1:
        raise ValueError(f"processes={cfg.processes}: must be at least 1")


def interruptible(main: Callable[[], int | None]) -> int:
    """The exit code of a script's function; Ctrl-C ends it in one line, and a warning of ours is one."""
    warn_in_one_line()
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def check_none_failed(failed: Sequence[str]) -> None:
    """Raise a ValueError that names the runs of a grid that failed, so that its script ends with code 1."""
    if failed:
        raise ValueError(f"{len(failed)} of the runs failed, as said above: {', '.join(failed)}; start again to go on")


OmegaConf.register_new_resolver("group_choices", group_choices, replace=True)


def run(entry: Callable[[], None], config_name: str) -> None:
    """Run a ``hydra.main`` function; failures a user can cause end in one line and exit code 1.

    A warning of ours is one line as well. Set HYDRA_FULL_ERROR=1 for tracebacks.
    """
    warn_in_one_line()
    sys.argv = with_steps_as_given(quote_values(sys.argv))
    if problem := wrong_kind(sys.argv, config_name):
        fail(problem)
    if WANTS_TRACEBACKS:
        entry()
        return
    # Hydra prints its own shortened traceback and exits unless told to raise.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        entry()
    except (HydraException, OmegaConfBaseException, *EXPECTED) as error:
        fail(explain(error, config_name))
    except KeyboardInterrupt:
        sys.exit(130)


def quote_values(argv: Sequence[str]) -> list[str]:
    """Arguments with quotes around values that Hydra's grammar would refuse and that are text, whatever is in them.

    Such are the names of checkpoints (``step=0012000``), folders called ``run (1)`` or ``José``, and ``KNN(k=2)``.
    """
    parser = OverridesParser.create()
    return [argv[0], *(_quoted(argument, parser) for argument in argv[1:])]


def with_steps_as_given(argv: Sequence[str]) -> list[str]:
    """Arguments with ``epochs=null`` where a preset and steps are given: its epochs would take the steps' place.

    Not where epochs are given as well. As an argument it is in Hydra's record, by which a run is resumed.
    """
    # What has no value is what an option of Hydra's takes, as in -p epochs.
    names = [arg.lstrip("+~").partition("=")[0] if "=" in arg or arg.startswith("~") else "" for arg in argv]
    steps = [position for position, name in enumerate(names) if name in ("steps", "trainer.steps")]
    if not steps or "preset" not in names or "epochs" in names:
        return [*argv]
    # Beside them, for Hydra takes settings from one place only: none after an option.
    return [*argv[: steps[0] + 1], "epochs=null", *argv[steps[0] + 1 :]]


def _quoted(argument: str, parser: OverridesParser) -> str:
    name, _, value = argument.partition("=")
    if argument.startswith("-") or not value or value[0] in "[{'\"":
        return argument
    try:
        parser.parse_override(argument)
    except HydraException:
        escaped = value.replace("'", "\\'")
        for candidate in (f"'{value}'", f'"{value}"', f"'{escaped}'"):
            with contextlib.suppress(HydraException):
                if str(parser.parse_override(f"{name}={candidate}").value()) == value:
                    return f"{name}={candidate}"
    return argument


# Switches that are also the name of a mode.
_SWITCHES_OR_NAMES = ("compile",)


def wrong_kind(argv: Sequence[str], config_name: str) -> str | None:
    """What is wrong with an argument that is no setting, or text where the configuration has a number or a switch.

    Hydra takes them: ``tensorboard=no`` would be text, which is true. None where nothing is wrong, or where it is Hydra
    that will say what is.
    """
    given = [argument for argument in argv[1:] if not argument.startswith("-")]
    stray = next((argument for argument in given if "=" not in argument and not argument.startswith("~")), None)
    if stray is not None and len(given) == len(argv) - 1:  # else it may be what an option of Hydra's takes
        settings = OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml")
        first = next((str(key) for key in settings if OmegaConf.is_missing(settings, key)), "name")
        return f"{stray}: settings are given as name=value, such as {first}={stray}"
    choices, settings_given = _choices_and_settings(given)
    changes = [o for o in settings_given if o.type == OverrideType.CHANGE and not o.is_sweep_override()]
    if not changes:
        return None
    try:
        default = _default_config(config_name, choices)
    except (HydraException, OmegaConfBaseException):
        return None
    for override in changes:
        name, value = override.key_or_group, override.value()
        with contextlib.suppress(OmegaConfBaseException):
            usual = OmegaConf.select(default, name)
            wanted = _wanted(usual, value)
            if wanted and name.rpartition(".")[2] not in _SWITCHES_OR_NAMES and "${" not in str(value):
                return f"{name}={value}: must be {wanted}"
    return None


def _choices_and_settings(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Choices of configuration groups as they were given, and the other overrides; none that Hydra cannot read."""
    parsed: list[Override] = []
    with contextlib.suppress(HydraException):
        parsed = OverridesParser.create().parse_overrides([*arguments])
    groups = [override for override in parsed if (CONFIG_DIR / override.key_or_group).is_dir()]
    return [str(override.input_line) for override in groups], [o for o in parsed if o not in groups]


def _wanted(usual: Any, value: Any) -> str | None:
    """What a value should be where the usual one is of another kind; None where it will do."""
    if isinstance(usual, bool):
        return None if isinstance(value, bool | None) else "true or false"
    if isinstance(usual, int | float):
        return "a number" if isinstance(value, str | bool) else None
    if isinstance(usual, ListConfig):
        return None if isinstance(value, list | None) else f"a list: [{value}]"
    return None


def one_line_errors(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Wraps the function under ``hydra.main``, whose own report of a failed job would stand beside ours.

    In a sweep the error goes on to Hydra, which runs the remaining jobs first.
    """

    @functools.wraps(task)
    def wrapped(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except (HydraException, OmegaConfBaseException, *EXPECTED) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN or WANTS_TRACEBACKS:
                raise
            fail(explain(error, HydraConfig.get().job.config_name or ""))

    return wrapped


def fail(message: str) -> None:
    """Say what failed and exit with code 1."""
    sys.exit(report_failure(message))


def report_failure(error: BaseException | str) -> int:
    """Say in one line on stderr, above a progress bar if there is one, what failed; returns the exit code, 1."""
    tqdm.write(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def warn_in_one_line() -> None:
    """Show what this project warns of, which is about settings, without the line of code; above a progress bar."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        ours = category is UserWarning and any(Path(filename).is_relative_to(folder) for folder in _OUR_CODE)
        text = f"warning: {message}" if ours else warnings.formatwarning(message, category, filename, lineno, line)
        tqdm.write(text.rstrip(), file=file or sys.stderr)

    warnings.showwarning = show


def explain(error: BaseException, config_name: str) -> str:
    """An error in one line; a wrong name in an override is answered with the names that exist."""
    # What Hydra says around a constructor's own error is of no use to who gave the value.
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        # Of a mapping that was given it is one of its keys.
        below = re.search(r"is not in struct\s+full_key: (\S+)", str(cause.__cause__))
        *parents, key = (below[1] if below else unknown[1].removeprefix("+")).split(".")
        default = _default_config(config_name)
        with contextlib.suppress(HydraException, OmegaConfBaseException):
            choices, _ = _choices_and_settings([argument for argument in sys.argv[1:] if not argument.startswith("-")])
            default = _default_config(config_name, choices)
        node = OmegaConf.select(default, ".".join(parents)) if parents else default
        if isinstance(node, DictConfig):
            names = {str(name) for name in node}
            if not parents:
                names |= _groups(config_name)
            where = f" in {'.'.join(parents)}" if parents else ""
            return f"unknown setting {key!r}{where}: choose one of {', '.join(sorted(names))}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is not set: give {cause.full_key}=..."
    missing = re.match(
        r"In '[^']+': Could not find '([^']+)' Available options in '([^']+)': (.+?)( Config search.*)?$",
        text,
    )
    if missing:
        group, _, choice = missing[1].rpartition("/")
        hint = f"; {LAUNCHERS}" if group == "hydra/launcher" else ""
        return f"{group or missing[2]}={choice}: choose one of {', '.join(missing[3].split())}{hint}"
    return re.sub(r" Set the environment variable HYDRA_FULL_ERROR=1.*", "", text)


def _default_config(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(config_name, [*overrides])


def _groups(config_name: str) -> set[str]:
    """Names of the configuration's groups, some of which (preset) leave no entry of their own."""
    entries = OmegaConf.select(OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml"), "defaults", default=[])
    return {str(group) for entry in entries if isinstance(entry, DictConfig) for group in entry}


def point_hydra_at_resumed_run(argv: list[str]) -> list[str]:
    """With ``resume=<run dir>`` given, make that folder Hydra's run folder and leave its records alone."""
    folders = [arg.split("=", 1)[1] for arg in argv[1:] if arg.lstrip("+").startswith("resume=")]
    if not folders or folders[-1] == "null":
        return argv
    if not folders[-1]:
        fail("resume=: give the folder of the run to go on with, or leave it out")
    # Abbreviations are Hydra's, too.
    sweep = next((arg for arg in argv[1:] if arg == "-m" or (arg[:3] == "--m" and "--multirun".startswith(arg))), None)
    if sweep is not None:
        fail(f"{sweep}: a sweep begins runs of its own; to go on with resume={folders[-1]}, leave it out")
    folder = Path(folders[-1])
    if not (folder / ".hydra" / "config.yaml").is_file():
        fail(f"resume={folder}: not a run folder (it holds no .hydra/config.yaml)")
    if (script := made_by(folder)) not in (None, Path(argv[0]).stem):
        fail(f"resume={folder}: a run of scripts/{script}.py, which goes on with it")
    given = [arg for arg in argv[1:] if not arg.startswith("-")]
    changed = [arg for arg in given if arg.lstrip("+").split("=")[0] not in RESUME_OVERRIDES]
    if changed:
        fail(
            f"{changed[0]}: a resumed run keeps its configuration; only {', '.join(RESUME_OVERRIDES[1:])} may be given "
            "beside resume"
        )
    return [*argv, f"hydra.run.dir={folder}"]


def resumed_config(cfg: DictConfig) -> DictConfig:
    """The configuration the interrupted run was started with, with what was given beside ``resume`` applied."""
    saved = OmegaConf.load(Path(cfg.resume) / ".hydra" / "config.yaml")
    if not isinstance(saved, DictConfig):
        raise ValueError(f"resume={cfg.resume}: .hydra/config.yaml is not a configuration")
    for key in RESUME_OVERRIDES:
        given = [arg for arg in sys.argv[1:] if arg.lstrip("+").startswith(f"{key}=")]
        if given:
            OmegaConf.update(saved, key, cfg[key])
    return saved


@contextlib.contextmanager
def training(cfg: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """The configuration to train with, of the interrupted run where one is resumed, and the run folder; says both.

    As long as the body runs no other process trains there.
    """
    with training_folder(cfg) as run_dir:
        if cfg.resume is not None:
            cfg = resumed_config(cfg)
        if is_main_process():
            print(f"run folder {run_dir}", flush=True)
            k_is_given = any(override.startswith("k=") for override in HydraConfig.get().overrides.task)
            if k_is_given and "${k}" not in OmegaConf.to_yaml(cfg.coupling):
                print(f"note: this coupling has no k, so k={cfg.k} has no effect")
        yield cfg, run_dir
