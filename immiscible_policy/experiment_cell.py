"""A cell of an experiment: one training run, its evaluations and what else is measured of its policy.

It is a folder of its own, with the run in ``run/``, one file for each evaluation in ``evaluations/`` and one for each
measurement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from envs.pusht.geometry import GOAL_POSE
from envs.pusht.modes import symmetric_starts
from immiscible_policy.coupling import Coupling, Independent
from immiscible_policy.coupling.spec import parse_coupling
from immiscible_policy.evaluation.evaluate import EvaluationConfig, evaluate_policy
from immiscible_policy.evaluation.modes import count_modes
from immiscible_policy.evaluation.modes_figure import plot_modes
from immiscible_policy.evaluation.modes_rollout import roll_policy
from immiscible_policy.evaluation.prior_gap import measure_prior_gap
from immiscible_policy.evaluation.results import write_evaluation
from immiscible_policy.evaluation.results_modes import MEASURED
from immiscible_policy.files import write_json
from immiscible_policy.grid_run import GridRun
from immiscible_policy.policy import DiffusionPolicy, load_policy
from immiscible_policy.policy_data import load_data
from immiscible_policy.policy_run import last_policy_folder
from immiscible_policy.training.precision import resolve_device, resolve_precision


class Cell(GridRun):
    """One training run of an experiment, and its evaluations."""

    def evaluation_file(self, config: EvaluationConfig) -> Path:
        return self.folder / "evaluations" / f"{evaluation_name(config)}.parquet"

    def missing(self, configs: Sequence[EvaluationConfig]) -> list[EvaluationConfig]:
        """Evaluations that are still to be made. One by a coupling that has nothing to choose is plain inference."""
        asked = possible(configs, self.trained_with) if self.is_trained else configs
        return [config for config in asked if not self.evaluation_file(config).is_file()]

    @property
    def trained_with(self) -> str:
        """The coupling of a finished training, as its summary tells it."""
        return str(json.loads((self.run_dir / "summary.json").read_text())["coupling"])

    @property
    def own_sampler(self) -> str:
        """The sampler that the policy of a finished training has of itself."""
        return str(OmegaConf.load(self.run_dir / ".hydra" / "config.yaml").objective.sampler)

    def measurement_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def measured_with(self, name: str) -> dict[str, Any] | None:
        """Settings of a measurement that was made; None where it was not."""
        path = self.measurement_file(name)
        return dict(json.loads(path.read_text())["settings"]) if path.is_file() else None


def possible(configs: Sequence[EvaluationConfig], coupling: str) -> list[EvaluationConfig]:
    """Evaluations of policies trained with a coupling that are not others in disguise.

    Args:
        coupling: as a run's summary tells it.
    """
    if _chooser(coupling) is None:
        return [config for config in configs if config.inference_coupling == "none" or config.selection is not None]
    return [
        config
        for config in configs
        if not (names_own(config.selection, coupling) and replace(config, selection=None) in configs)
    ]


@cache
def names_own(selection: str | None, coupling: str) -> bool:
    """Whether a selection is the one that policies trained with a coupling make where none is named."""
    own = _chooser(coupling)
    return selection is not None and own is not None and repr(_chooser(selection)) == repr(own)


def measurable(names: Iterable[str], coupling: str) -> list[str]:
    """Measurements of policies trained with a coupling that are not others in disguise.

    Args:
        names: of ``MEASUREMENTS``.
        coupling: as a run's summary tells it.
    """
    chooses = _chooser(coupling) is not None
    return [name for name in names if chooses or name != "modes_warm"]


def _chooser(coupling: str) -> Coupling | None:
    """What chooses the initial noise of policies trained with a coupling; None where it would choose nothing."""
    try:
        chooser = parse_coupling(coupling).at_inference()
    except ValueError:
        return None
    return None if isinstance(chooser, Independent) or getattr(chooser, "k", None) == 1 else chooser


def evaluation_name(config: EvaluationConfig) -> str:
    """A file name that says what differs between evaluations."""
    parts = [f"steps{config.num_inference_steps or 'default'}", *([config.sampler] if config.sampler else [])]
    parts.append(config.inference_coupling)
    if config.inference_coupling != "none":
        parts += [] if config.selection is None else ["".join(c if c.isalnum() else "_" for c in config.selection)]
        parts += [] if config.inference_coupling == "two_pass" else [f"first_{config.first_chunk}"]
        parts += ["known"] if config.known_only else []
    parts += [] if config.noise_scale == 1 else [f"scale{config.noise_scale:g}"]
    parts += [f"n{config.n_episodes}", f"from{config.seed_start}", f"noise{config.noise_seed}"]
    parts += [] if config.mixed_precision == "auto" else [config.mixed_precision]
    return "-".join(parts)


def evaluate_cell(cell: Cell, config: EvaluationConfig, device: str = "auto", precision: str = "auto") -> None:
    """Evaluate the cell's last policy and write the episodes; readers see the whole file or none.

    Args:
        precision: where the evaluation's is ``auto``.
    """
    policy = load_policy(last_policy_folder(cell.run_dir), resolve_device(device))
    own = config.mixed_precision
    report = evaluate_policy(policy, replace(config, mixed_precision=precision if own == "auto" else own))
    write_evaluation(cell.evaluation_file(config), report)


def measure_cell(
    cell: Cell, name: str, settings: Mapping[str, int], device: str = "auto", precision: str = "auto"
) -> None:
    """Take one of ``MEASUREMENTS`` of the cell's last policy and write it as ``<name>.json``."""
    policy = load_policy(last_policy_folder(cell.run_dir), resolve_device(device))
    measured = MEASUREMENTS[name](cell, policy, settings, resolve_precision(precision, str(policy.device)))
    write_json(cell.measurement_file(name), {"settings": dict(settings), **measured})


def _count_modes(
    cell: Cell, policy: DiffusionPolicy, settings: Mapping[str, int], precision: str, inference_coupling: str = "none"
) -> dict[str, Any]:
    """Which way round the block the policy goes from symmetric starts, with a picture of the first of them."""
    # Policies that were saved before tasks named their goal have the standard one.
    goal = tuple(policy.task.get("goal_pose") or GOAL_POSE)
    starts = symmetric_starts(settings.get("n_starts", 16), seed=0, goal_pose=goal)
    trajectories = roll_policy(
        policy,
        starts,
        n_repeats=settings.get("n_repeats", 16),
        n_steps=min(100, policy.task["max_steps"] - 1),  # enough to have touched the block
        num_inference_steps=settings.get("num_inference_steps"),
        precision=precision,
        inference_coupling=inference_coupling,
    )
    shown = range(min(4, len(starts)))
    picture = cell.folder / f"{MEASURED[inference_coupling]}.png"
    plot_modes({cell.levels["coupling"]: trajectories}, picture, shown, goal_pose=goal)
    return count_modes(trajectories).as_dict()


def _prior_gap(cell: Cell, policy: DiffusionPolicy, settings: Mapping[str, int], precision: str) -> dict[str, Any]:
    """What the policy does with N(0, I) and with the noise it was trained on, on the demonstrations held out."""
    cfg = OmegaConf.load(cell.run_dir / ".hydra" / "config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.device = str(policy.device)  # where it was trained there may be others
    data = load_data(cfg, json.loads((cell.run_dir / "demonstrations.json").read_text()))
    held_out = data.validation if data.validation is not None else data.train
    return measure_prior_gap(
        policy, data.train, held_out, batch_size=cfg.trainer.batch_size, precision=precision, **settings
    ).as_dict()


MEASUREMENTS: dict[str, Callable[[Cell, DiffusionPolicy, Mapping[str, int], str], dict[str, Any]]] = {
    "modes": _count_modes,
    "modes_warm": partial(_count_modes, inference_coupling="warm"),
    "prior_gap": _prior_gap,
}
# What each of them can be told.
SETTINGS = {
    "modes": ("n_starts", "n_repeats", "num_inference_steps"),
    "modes_warm": ("n_starts", "n_repeats", "num_inference_steps"),
    "prior_gap": ("n_windows", "n_samples", "num_inference_steps"),
}
