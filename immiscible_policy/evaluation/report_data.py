"""What a report reads: run folders, whole, half-finished or damaged, and how the runs of an experiment are pooled."""

import contextlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from immiscible_policy.coupling import __all__ as couplings
from immiscible_policy.data.sources import demonstrations_text
from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.run_setup import made_by
from immiscible_policy.training.metrics import read_metrics

REPORT = "report.html"
POLICY_SCRIPT = "train_policy"
# The files of a run folder that its report is made from, besides media.
SOURCES = (
    *("summary.json", "media/eval.json", "demonstrations.json", "metrics.jsonl"),
    *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"),
)
# What reading a file that was cut off or edited can raise; JSON, YAML and Unicode errors are among them.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, yaml.YAMLError, OmegaConfBaseException)
_NEVER_RUNS = {"checkpoints", "media", "figures", "tables", ".hydra"}
# Entries of a configuration that do not set runs apart: what they say stands elsewhere in an arm's name, or changes
# nothing that was learned.
_NOT_AN_ARM = (
    *("coupling", "k", "objective", "task", "seed", "name", "device", "num_threads", "resume", "evaluation"),
    *("dataset.path", "dataset.human", "dataset.demonstrator", "dataset.max_train_episodes", "dataset.split_seed"),
    *("rollout.n_videos", "trainer.device", "trainer.seed", "trainer.log_every", "trainer.checkpoint_every"),
    *("trainer.keep_checkpoints", "trainer.tensorboard", "trainer.wandb"),
)


@dataclass
class RunRecord:
    """What a run folder holds; what is missing is None or empty, what is damaged is named in ``problems``.

    Attributes:
        config: the configuration with interpolations resolved where that is possible.
        overrides: what was given on the command line for this run.
        summary, evaluation, demonstrations: summary.json, media/eval.json, demonstrations.json.
        metrics: lines of metrics.jsonl, each with an integer ``step``.
        origin: the folder that the run was started in.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    demonstrations: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    origin: Path | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def last_step(self) -> int:
        """The last step that left a line in metrics.jsonl, 0 before the first."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def planned_steps(self) -> int | None:
        """Steps that the configuration asks for; None where it counts in epochs or is not known."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) and self.config.get("epochs") is None else None

    @property
    def coupling(self) -> str:
        """As the summary names it, else as the configuration builds it."""
        if self.summary is not None and "coupling" in self.summary:
            return str(self.summary["coupling"])
        target = part(self.config, "coupling", "_target_")
        if target is not None and _builds_couplings_alone(self.config["coupling"]):
            with contextlib.suppress(InstantiationException, OmegaConfBaseException):
                return str(instantiate(self.config["coupling"], _convert_="all"))
        return str(target or "coupling unknown").rpartition(".")[2]

    @property
    def seed(self) -> int | None:
        seed = (self.summary or self.config).get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def observation(self) -> str:
        return str(part(self.config, "task", "obs_type") or "observation unknown")

    @property
    def data(self) -> str:
        """The demonstrations in a few words."""
        source = mapping(self.demonstrations)
        if not source.get("path") or not isinstance(source.get("n_episodes"), int):
            return "demonstrations unknown"
        return demonstrations_text({**source, "max_train_episodes": self.max_train_episodes})

    @property
    def max_train_episodes(self) -> int | None:
        """To how many episodes training was limited; None where it was not."""
        # Runs made before demonstrations.json said so have it in their configuration alone.
        limits = (part(self.config, "dataset", "max_train_episodes"), part(self.demonstrations, "max_train_episodes"))
        return next((limit for limit in limits if isinstance(limit, int)), None)

    def path_for_commands(self) -> str:
        """The run folder as a command typed in the run's working directory would name it."""
        folder = self.folder.resolve()
        return str(folder.relative_to(self.origin) if self.origin and folder.is_relative_to(self.origin) else folder)

    def reproduce_command(self) -> str | None:
        """The command that repeats this run; precision, which ``auto`` takes from the hardware, is spelled out.

        It is made of the overrides of this run, since in a sweep and after a resume sys.argv is not this run's.
        """
        if not self.config:
            return None
        given = [override for override in self.overrides if not override.startswith("hydra.")]
        precision = part(self.summary or {}, "precision")
        if precision and not any(override.startswith("trainer.mixed_precision=") for override in given):
            given.append(f"trainer.mixed_precision={precision}")
        return self.command(POLICY_SCRIPT, *given)

    def resume_command(self) -> str:
        return self.command(POLICY_SCRIPT, f"resume={self.path_for_commands()}")

    @staticmethod
    def command(script: str, *arguments: str) -> str:
        """A command of this project as a shell takes it."""
        return shlex.join(["python", f"scripts/{script}.py", *arguments])


def part(content: Any, *keys: str) -> Any:
    """``content[key][key]...``, None where a level is missing or no mapping."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def mapping(content: Any) -> dict[str, Any]:
    """The content if it is a mapping, else an empty one."""
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}


def _builds_couplings_alone(node: Any) -> bool:
    """Whether all that ``instantiate`` would call for this node are public couplings: a report runs no other code."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        allowed = target is None or str(target) in {f"immiscible_policy.coupling.{name}" for name in couplings}
        return allowed and all(_builds_couplings_alone(value) for value in node.values())
    return not isinstance(node, Sequence) or isinstance(node, str) or all(map(_builds_couplings_alone, node))


def is_run(folder: Path) -> bool:
    """Whether a training run was started in the folder."""
    begun = (folder / "checkpoints").is_dir() and (folder / ".hydra" / "config.yaml").is_file()
    ended = (folder / "summary.json").is_file() and (folder / "media" / "eval.json").is_file()
    return begun or ended or (folder / "metrics.jsonl").is_file()


def find_runs(folder: Path) -> list[Path]:
    """The policies' run folders below a folder, in the order of their names; runs do not hold runs."""
    return [path for path in all_runs(folder) if made_by(path) in (None, POLICY_SCRIPT)]


def all_runs(folder: Path) -> list[Path]:
    """As ``find_runs``, with the runs of other scripts."""
    found = []
    for path, names, _ in os.walk(folder):
        if is_run(Path(path)):
            found.append(Path(path))
            names.clear()
        names[:] = sorted(name for name in names if name not in _NEVER_RUNS)
    return found


def read_run(folder: Path) -> RunRecord:
    """Everything about a run that a report shows. Never fails for damaged files: they are named in ``problems``."""
    run = RunRecord(folder)
    run.summary = _read_mapping(run, "summary.json")
    run.evaluation = _read_mapping(run, "media/eval.json")
    run.demonstrations = _read_mapping(run, "demonstrations.json") or part(run.summary, "demonstrations")
    run.metrics = _read_metrics(run)
    config = _read_yaml(run, ".hydra/config.yaml")
    if isinstance(config, dict):
        run.config = _resolved(config)
    overrides = _read_yaml(run, ".hydra/overrides.yaml")
    if isinstance(overrides, list):
        run.overrides = [str(override) for override in overrides]
    origin = part(_read_yaml(run, ".hydra/hydra.yaml"), "hydra", "runtime", "cwd")
    run.origin = Path(origin) if isinstance(origin, str) else None
    return run


def damaged(name: str, error: BaseException) -> str:
    """A damaged file in one line."""
    return f"{name} is damaged: {' '.join(str(error).split())[:200] or type(error).__name__}"


def _read_mapping(run: RunRecord, name: str) -> dict[str, Any] | None:
    path = run.folder / name
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
    except DAMAGE as error:
        run.problems.append(damaged(name, error))
        return None
    return content


def _read_yaml(run: RunRecord, name: str) -> Any:
    path = run.folder / name
    if not path.exists():
        return None
    try:
        return yaml.safe_load(path.read_text())
    except DAMAGE as error:
        run.problems.append(damaged(name, error))
        return None


def _read_metrics(run: RunRecord) -> list[dict[str, Any]]:
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        n_lines = sum(bool(line.strip()) for line in path.read_text().splitlines())
        lines = read_metrics(path)
    except DAMAGE as error:
        run.problems.append(damaged(path.name, error))
        return []
    good = [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
    if len(good) < n_lines:
        run.problems.append(f"{path.name} is damaged: {n_lines - len(good)} of its {n_lines} lines cannot be read")
    return good


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with interpolations resolved; those that only Hydra knows (``${hydra:...}``) are kept."""
    container = OmegaConf.create(config)
    resolved = {}
    for key in config:
        try:
            value = container[key]
            resolved[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException:
            resolved[key] = config[key]
    return resolved


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) steps and (n,) values of one of the numbers in metrics.jsonl, where it is one."""
    points = [(line["step"], line[name]) for line in metrics if _is_finite(line.get(name))]
    return np.array([step for step, _ in points], int), np.array([value for _, value in points], float)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def arm_labels(runs: Sequence[RunRecord]) -> list[str]:
    """What each run is pooled under: its coupling, and whatever else sets the runs apart, training seeds excepted.

    Objective, observation and demonstrations are named by their values, other entries of the configuration as
    ``entry=value``.
    """
    contexts = context_labels(runs)
    sets = _only_if_different([run.data for run in runs])
    return [
        ", ".join(text for text in (run.coupling, demonstrations, context) if text)
        for run, demonstrations, context in zip(runs, sets, contexts, strict=True)
    ]


def context_labels(runs: Sequence[RunRecord]) -> list[str]:
    """What sets runs apart besides coupling, demonstrations and training seed; empty where nothing does."""
    objectives = _only_if_different([objective_label(run, runs) for run in runs])
    observations = _only_if_different([run.observation for run in runs])
    settings = _differing([_own_settings(run.config) for run in runs], _NOT_AN_ARM)
    return [
        ", ".join(text for text in (objective, observation, *others) if text)
        for objective, observation, others in zip(objectives, observations, settings, strict=True)
    ]


def evaluation_labels(runs: Sequence[RunRecord]) -> list[str]:
    """What sets the final evaluations of runs apart, as ``evaluation.entry=value``; empty where nothing does.

    Observations are left out, which ``context_labels`` names.
    """
    settings = [part(run.summary, "evaluation_settings") or part(run.evaluation, "settings") for run in runs]
    flat = [_flat({"evaluation": mapping(each)}) for each in settings]
    return [", ".join(texts) for texts in _differing(flat, ("evaluation.task.obs_type",))]


def unusual_noise(settings: Mapping[str, Any]) -> list[str]:
    """``entry=value`` of the settings of an evaluation's initial noise that are not the defaults."""
    names = ("inference_coupling", "first_chunk", "selection", "known_only", "noise_scale", "noise_seed")
    # Evaluations made before there was such a setting had what is its default now.
    defaults = {name: getattr(EvaluationConfig, name) for name in names}
    return [f"{name}={settings[name]}" for name in names if settings.get(name, defaults[name]) != defaults[name]]


def objective_label(run: RunRecord, runs: Sequence[RunRecord] = ()) -> str:
    """The objective's name, and those of its settings that differ among the runs with this objective."""
    name = part(run.config, "objective", "name") or part(run.config, "objective", "_target_")
    if not name:
        return "objective unknown"
    same = [other for other in runs if part(other.config, "objective", "name") == part(run.config, "objective", "name")]
    mine = _flat(part(run.config, "objective"))
    different = [key for key in mine if any(_flat(part(o.config, "objective")).get(key) != mine[key] for o in same)]
    return " ".join([str(name).rpartition(".")[2], *(f"{key}={mine[key]}" for key in sorted(different))])


def _only_if_different(values: Sequence[str]) -> list[str]:
    return list(values) if len(set(values)) > 1 else [""] * len(values)


def _differing(settings: Sequence[Mapping[str, Any]], excepted: Sequence[str]) -> list[list[str]]:
    """For each run ``entry=value`` of the entries in which the runs differ; runs without any entry are not compared."""
    names = sorted({name for each in settings for name in each})
    kept = [name for name in names if not any(name == e or name.startswith(f"{e}.") for e in excepted)]
    different = [name for name in kept if len({str(each.get(name)) for each in settings if each}) > 1]
    return [[f"{name}={each[name]}" for name in different if name in each] for each in settings]


def _own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a configuration without those below that repeat one at its top, such as ``trainer.batch_size``."""
    flat = _flat(config)
    return {
        name: value
        for name, value in flat.items()
        if "." not in name or (last := name.rpartition(".")[2]) not in flat or flat[last] != value
    }


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
