"""Train a diffusion policy under a noise coupling: python scripts/train_policy.py coupling=knn k=2"""

import sys

import hydra
from omegaconf import DictConfig

from immiscible_policy import cli
from immiscible_policy.evaluation.evaluate import metrics_table
from immiscible_policy.policy_run import last_policy_folder, train_policy


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="train_policy", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    with cli.training(cfg) as (cfg, run_dir):
        summary = train_policy(cfg, run_dir, resume=cfg.resume is not None)
        if not summary:
            return
        print(f"\n{summary['coupling']}, seed {summary['seed']}, {summary['steps']} steps:")
        print(metrics_table(summary["final"]))
        print(f"summary    {run_dir / 'summary.json'}")
        print(f"policy     {last_policy_folder(run_dir)}")
        strip, report = run_dir / "media" / "film_strip.png", run_dir / "report.html"
        if strip.exists():
            print(f"videos     {strip.parent}")
            print(f"film strip {strip}")
        if report.exists():
            print(f"report     {report}")


if __name__ == "__main__":
    sys.argv = cli.point_hydra_at_resumed_run(sys.argv)
    cli.run(main, "train_policy")
