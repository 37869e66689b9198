"""Evaluate a trained policy by rollouts: python scripts/eval_policy.py checkpoint=outputs/<date>/<time>_<name>"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from immiscible_policy import cli
from immiscible_policy.evaluation.evaluate import EvaluationConfig, evaluate_policy, metrics_table
from immiscible_policy.policy import load_policy
from immiscible_policy.policy_run import last_policy_folder
from immiscible_policy.run_folder import results_folder
from immiscible_policy.run_setup import set_threads
from immiscible_policy.training.precision import resolve_device

# What only some ways of choosing the initial noise look at.
NOISE_CHOICES = ("first_chunk", "selection", "known_only")


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="eval_policy", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    set_threads(cfg.num_threads)
    folder = last_policy_folder(Path(cfg.checkpoint))
    policy = load_policy(folder, resolve_device(cfg.device))
    if cfg.legacy is not None:
        policy.task["legacy"] = cfg.legacy
    config = EvaluationConfig(
        n_episodes=cfg.n_episodes,
        seed_start=cfg.seed_start,
        num_inference_steps=cfg.num_inference_steps,
        sampler=cfg.sampler,
        noise_seed=cfg.noise_seed,
        n_videos=cfg.n_videos,
        mixed_precision=cfg.mixed_precision,
        inference_coupling=cfg.inference_coupling,
        first_chunk=cfg.first_chunk,
        selection=cfg.selection,
        known_only=cfg.known_only,
        noise_scale=cfg.noise_scale,
    )
    if unused := [f"{name}={cfg[name]}" for name in NOISE_CHOICES if cfg[name] != getattr(config, name)]:
        raise ValueError(f"{', '.join(unused)}: nothing that inference_coupling={config.inference_coupling} looks at")
    with results_folder(cfg, "eval.json") as output_dir:
        report = evaluate_policy(policy, config, output_dir)
    settings, chooser = report["settings"], config.selection or policy.coupling
    noise = "N(0, I)" if config.inference_coupling == "none" else f"{config.inference_coupling} by {chooser}"
    noise += "" if config.noise_scale == 1 else f" times {config.noise_scale:g}"
    print(
        f"{folder}: {cfg.n_episodes} episodes from seed {cfg.seed_start}, {settings['sampler']} with "
        f"{settings['num_inference_steps']} steps, noise {noise}, legacy={settings['task']['legacy']}"
    )
    print(metrics_table(report["metrics"]))
    print(f"everything {output_dir / 'eval.json'}")
    if "film_strip" in report:
        print(f"film strip {output_dir / report['film_strip']}")


if __name__ == "__main__":
    cli.run(main, "eval_policy")
