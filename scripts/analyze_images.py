"""Train the image models of a study and analyse them: python scripts/analyze_images.py figure=curves processes=2"""

from pathlib import Path

import hydra
from joblib import Parallel, delayed
from omegaconf import DictConfig

from image_diffusion.analysis.analyses import analyze, check_analysis
from image_diffusion.analysis.study import Study, status, train_missing
from immiscible_policy import cli
from immiscible_policy.run_setup import plain_settings, set_threads
from immiscible_policy.training.precision import resolve_device

ACTIONS = ("run", "analyze", "status")


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="analyze_images", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    cli.check_action(cfg, ACTIONS)
    study = Study(**plain_settings(cfg.figure))
    check_analysis(study)
    folder, failed = Path(cfg.folder), []
    if cfg.action == "run":
        runs = study.trainings(folder)
        done = Parallel(n_jobs=cfg.processes)(delayed(train_missing)(runs, cfg.device) for _ in range(cfg.processes))
        failed = sorted({name for _, names in done for name in names})
        print(f"trained {sum(trained for trained, _ in done)}")
    print(status(study, folder))
    if cfg.action == "status":
        return
    set_threads(cfg.num_threads)
    for path in analyze(study, folder, resolve_device(cfg.device)):
        print(path)
    cli.check_none_failed(failed)


if __name__ == "__main__":
    cli.run(main, "analyze_images")
