"""Run an experiment, a grid of trainings and evaluations: python scripts/reproduce.py experiment=table2 processes=2"""

from pathlib import Path

import hydra
import torch
from joblib import Parallel, delayed
from omegaconf import DictConfig

from immiscible_policy import cli
from immiscible_policy.evaluation.report import write_report
from immiscible_policy.evaluation.results_report import write_tables
from immiscible_policy.experiment import Experiment, ExperimentProgress, collect, status, work_off
from immiscible_policy.run_setup import plain_settings

ACTIONS = ("run", "tables", "status")


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="reproduce", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    cli.check_action(cfg, ACTIONS)
    experiment = Experiment(**plain_settings(cfg.experiment))
    folder, failed = Path(cfg.folder), []
    if cfg.action == "run":
        done = Parallel(n_jobs=cfg.processes)(
            delayed(_work)(experiment, folder, cfg.device, cfg.num_threads) for _ in range(cfg.processes)
        )
        failed = sorted({name for progress in done for name in progress.failed})
        print(f"trained {sum(p.trained for p in done)}, evaluated {sum(p.evaluated for p in done)}")
    print(status(experiment, folder))
    if cfg.action == "status":
        return
    for path in write_tables(collect(experiment, folder), folder, experiment.baseline):
        print(path)
    if any(cell.is_trained for cell in experiment.cells(folder)):
        print(write_report(folder).path)
    cli.check_none_failed(failed)


def _work(experiment: Experiment, folder: Path, device: str, num_threads: int | None) -> ExperimentProgress:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return work_off(experiment, folder, device)


if __name__ == "__main__":
    cli.run(main, "reproduce")
