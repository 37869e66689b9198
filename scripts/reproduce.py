"""Run an experiment, a grid of trainings and evaluations: python scripts/reproduce.py experiment=table2 processes=2"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import hydra
from joblib import Parallel, delayed
from omegaconf import DictConfig

from immiscible_policy import cli
from immiscible_policy.evaluation.report import write_report
from immiscible_policy.evaluation.results import RunResults
from immiscible_policy.evaluation.results_report import write_tables
from immiscible_policy.experiment import Experiment, ExperimentProgress, check_folder, collect, status, work_off
from immiscible_policy.experiment_cell import Cell
from immiscible_policy.experiment_join import find_joined, incomplete, take_over
from immiscible_policy.experiment_precision import experiment_precision
from immiscible_policy.run_setup import plain_settings, set_threads

ACTIONS = ("run", "tables", "status")


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="reproduce", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    cli.check_action(cfg, ACTIONS)
    experiment = _experiment(cfg)
    folder, failed = Path(cfg.folder), []
    check_folder(experiment, folder)
    results = [Path(path) for path in cfg.join]
    joined = find_joined(experiment, folder, results)
    if cfg.action == "run":
        again = incomplete(experiment, folder, joined) if cfg.finish else []
        cells = [cell for cell in experiment.cells(folder) if cell.folder not in joined or cell in again]
        known = {cell.folder: joined[cell.folder] for cell in again}  # alone, as every process gets a copy
        precision = experiment_precision(experiment, folder, joined, cfg.mixed_precision, cfg.device)
        print(f"computing in {precision} (mixed_precision=auto takes what is fastest here)")
        done = Parallel(n_jobs=cfg.processes)(
            delayed(_work)(experiment, cells, folder, known, cfg.device, precision, cfg.num_threads)
            for _ in range(cfg.processes)
        )
        failed = sorted({name for progress in done for name in progress.failed})
        print(f"trained {sum(p.trained for p in done)}, evaluated {sum(p.evaluated for p in done)}")
        joined = find_joined(experiment, folder, results)  # but for what has been finished here
    print(status(experiment, folder, joined))
    if lacking := [cell.folder.name for cell in incomplete(experiment, folder, joined)]:
        print(f"joined, but lacking something (finish=true trains them again): {', '.join(lacking)}")
    if cfg.action == "status":
        return
    for path in write_tables(collect(experiment, folder, joined, cfg.action == "run"), folder, experiment.baseline):
        print(path)
    if any(cell.is_trained for cell in experiment.cells(folder)):
        print(write_report(folder).path)
    cli.check_none_failed(failed)


def _experiment(cfg: DictConfig) -> Experiment:
    settings = plain_settings(cfg.experiment)
    wanted = {name: how for name, how in (settings["measurements"] or {}).items() if how is not None}
    return Experiment(**{**settings, "measurements": wanted})


def _work(
    experiment: Experiment,
    cells: list[Cell],
    folder: Path,
    known: Mapping[Path, RunResults],
    device: str,
    precision: str,
    num_threads: int | None,
) -> ExperimentProgress:
    set_threads(num_threads)
    keep = partial(take_over, experiment, known)
    return work_off(experiment, folder, device, cells=cells, precision=precision, take_over=keep)


if __name__ == "__main__":
    cli.run(main, "reproduce")
