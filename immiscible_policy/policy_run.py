"""A policy training run from configuration to summary: data, policy, coupling, training, final evaluation."""

import json
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from immiscible_policy.coupling import Coupling, Warmup
from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.evaluation.evaluate import EvaluationConfig, environment_factory, evaluate_policy
from immiscible_policy.evaluation.statistics import RULES, k_min_train_loss_mean, last_k_mean, max_score
from immiscible_policy.evaluation.validation import validation_losses
from immiscible_policy.files import write_json
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.policy.coupling_fit import fit_coupling
from immiscible_policy.policy_data import PolicyData, load_data
from immiscible_policy.run_setup import begin_run, fit, is_main_process, plain_settings, prepare_run_dir, trainer_config
from immiscible_policy.training import Trainer
from immiscible_policy.training.checkpoint import saved_models
from immiscible_policy.training.metrics import last_logged, read_metrics, write_metrics

# Training data that a policy keeps where coupled inference needs them: several batches, of 128 KiB for PushT.
N_COMPANIONS = 1024
ROLLOUT_MEASURES = ("max_coverage", "max_reward", "success")


def build_policy(cfg: DictConfig, data: PolicyData, coupling: Coupling | None = None) -> DiffusionPolicy:
    """The policy that ``cfg`` describes, freshly initialised, with its normalisers fitted on all the data.

    ``coupling`` is noted in the policy's configuration.
    """
    policy = DiffusionPolicy(
        observation_dim=data.observation.shape[1],
        action_dim=data.action.shape[1],
        objective=plain_settings(cfg.objective),
        task=plain_settings(cfg.task),
        coupling=None if coupling is None else str(coupling),
        n_companions=_companions_needed(coupling, data),
        **plain_settings(cfg.policy),
    )
    policy.fit_normalizers(torch.from_numpy(data.observation), torch.from_numpy(data.action))
    return policy


def _companions_needed(coupling: Coupling | None, data: PolicyData) -> int:
    """How much training data the policy keeps, for coupled inference with a coupling that pairs whole batches."""
    if coupling is None:
        return 0
    try:
        rowwise = coupling.at_inference().is_rowwise
    except ValueError:  # it cannot choose noise for new data at all
        return 0
    return 0 if rowwise else min(N_COMPANIONS, len(data.train))


def keep_companions(policy: DiffusionPolicy, windows: ActionWindows, batch_size: int) -> None:
    """Fill the policy's companions, if it has any, with windows spread evenly over the training data."""
    if policy.n_companions:
        chosen = torch.linspace(0, len(windows) - 1, policy.n_companions).long()
        batch = {name: value.to(policy.device) for name, value in windows.batch(chosen).items()}
        policy.keep_companions(*policy.coupling_inputs(batch)[:2], batch_size)


def warn_of_late_warmup(coupling: Coupling, n_batches: int) -> None:
    """Warn of a warm-up that a training ends before: inference would be coupled as no training noise was.

    Args:
        n_batches: of the whole training; a coupling is called once for each.
    """
    name = "coupling"
    part: Coupling | None = coupling
    while part is not None:
        if isinstance(part, Warmup) and part.start + part.anneal_over >= n_batches:
            if part.start >= n_batches:
                what, never = f"{name}.start={part.start}", "all of their noise stays independent"
            else:
                final = ", ".join(f"{setting}={value}" for setting, value in dict(part.anneal_to or ()).items())
                what = f"{name}.start={part.start}, {name}.anneal_over={part.anneal_over}"
                never = f"none of them meets {final}"
            warnings.warn(
                f"{what}: the training has {n_batches} batches, so that {never}, while inference_coupling=warm or "
                f"two_pass chooses as at the end of the warm-up; let it end before batch {n_batches}",
                stacklevel=2,
            )
        name, part = f"{name}.coupling", getattr(part, "coupling", None)


def train_policy(cfg: DictConfig, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """Train, evaluate and summarise; returns what ``summary.json`` holds.

    A resumed run continues from its last checkpoint, or goes straight to the final evaluation if training had ended.
    """
    begin_run(cfg, run_dir, resume)
    coupling: Coupling = instantiate(cfg.coupling, _convert_="all")
    final_config = EvaluationConfig(**plain_settings(cfg.evaluation))
    rollout_config = EvaluationConfig(**plain_settings(cfg.rollout))
    if cfg.rollout.n_videos:
        raise ValueError(
            f"rollout.n_videos={cfg.rollout.n_videos}: rollouts while training record none; evaluation.n_videos does"
        )
    record = run_dir / "demonstrations.json"
    recorded = json.loads(record.read_text()) if resume and record.exists() else None
    data = load_data(cfg, recorded)
    policy = build_policy(cfg, data, coupling)
    environment_factory(policy)(1, False).close()  # what it refuses is refused before training, too
    if is_main_process() and coupling.caveat is not None:
        print(f"coupling: {coupling}; {coupling.caveat}")
    for evaluated in (rollout_config, final_config):  # what they could not do is refused before training
        evaluated.steps_for(policy)
        settings = evaluated.noise_selection()
        if settings.mode != "none":
            settings.coupling_for(policy)
    fit_coupling(coupling, policy, data.train)
    config = trainer_config(cfg, len(data.train))
    keep_companions(policy, data.train, config.batch_size)
    if is_main_process():
        warn_of_late_warmup(coupling, config.steps * config.gradient_accumulation)
    run_dir = prepare_run_dir(run_dir, cfg.device)
    rollouts = run_dir / "rollouts.jsonl"
    if is_main_process():
        if recorded is None:
            write_json(run_dir / record.name, data.source)
        if rollouts.is_file():  # without a line that a kill has cut off, to which the next one would be glued
            write_metrics(rollouts, read_metrics(rollouts))

    def evaluate(model: DiffusionPolicy, step: int) -> Mapping[str, float]:
        report = evaluate_policy(model, rollout_config, progress=False)
        line = {"step": step, "settings": report["settings"], "episodes": report["episodes"]}
        with open(rollouts, "a") as file:
            file.write(json.dumps(line) + "\n")
        metrics = report["metrics"]
        ends = {f"rollout/max_coverage_{end}": metrics["max_coverage"][end] for end in ("low", "high")}
        return {**{f"rollout/{name}": metrics[name]["mean"] for name in ROLLOUT_MEASURES}, **ends}

    validate = None
    if data.validation is not None:
        validate = partial(validation_losses, dataset=data.validation, coupling=coupling, batch_size=config.batch_size)
    trainer = Trainer(
        policy,
        data.train,
        coupling,
        config,
        run_dir,
        validate=validate,
        evaluate=evaluate,
    )
    if not fit(trainer, resume):
        return {}
    evaluation = evaluate_policy(trainer.averaged_model(), final_config, run_dir / "media")
    summary = {
        "coupling": str(coupling),
        "seed": cfg.seed,
        "demonstrations": data.source,
        "steps": trainer.step,
        "training_seconds": {"wall": trainer.seconds.wall, "cpu": trainer.seconds.cpu},
        "num_threads": torch.get_num_threads(),
        "precision": trainer.precision,
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("immiscible-policy", "torch", "diffusers", "pymunk", "numpy")},
        "parameters": sum(p.numel() for p in policy.parameters()),
        "final": evaluation["metrics"],
        "rollouts": rollout_rules(read_metrics(run_dir / "metrics.jsonl")),
        "evaluation_settings": evaluation["settings"],
        "definitions": evaluation["definitions"],
    }
    write_json(run_dir / "summary.json", summary)
    _draw_report(run_dir)
    return summary


def _draw_report(run_dir: Path) -> None:
    """Write the run's report.html; whatever keeps it from being drawn must not cost the run, which is complete."""
    try:
        from immiscible_policy.evaluation.report import write_report

        write_report(run_dir)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: no report.html ({reason}); try again with scripts/report.py {run_dir}", file=sys.stderr)


def last_policy_folder(folder: Path) -> Path:
    """The policy folder that ``folder`` is, or the last one of the run that it is.

    Raises:
        ValueError: it is neither.
    """
    if (folder / "config.json").exists():
        return folder
    saved = saved_models(folder / "checkpoints")
    if not saved:
        raise ValueError(
            f"{folder}: neither a policy folder (config.json, model.safetensors) nor a run folder with a saved policy"
        )
    return saved[-1]


def rollout_rules(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint rules of the published tables, over the rollouts made while training.

    A rollout's training loss is the last that was logged by then. Rollouts before the first are left out.
    """
    known = [
        (line, loss)
        for line in metrics
        if line.get("rollout/max_reward") is not None
        and (loss := last_logged(metrics, "train/loss", line["step"])) is not None
    ]
    if not known:
        return {}
    points, losses = zip(*known, strict=True)
    rules: dict[str, Any] = {"definitions": RULES}
    for measure in ("max_reward", "max_coverage"):
        scores = [line[f"rollout/{measure}"] for line in points]
        rules[measure] = {
            point.rule: {"value": point.value, "n_points": point.n_points}
            for point in (last_k_mean(scores), k_min_train_loss_mean(scores, losses), max_score(scores))
        }
    return rules
