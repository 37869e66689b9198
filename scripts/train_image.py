"""Train an image diffusion model under a noise coupling: python scripts/train_image.py coupling=knn k=8"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from image_diffusion.image_run import train_images
from image_diffusion.model import last_model_folder
from immiscible_policy import cli


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="train_image", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    resume = cfg.resume is not None
    if resume:
        cfg = cli.resumed_config(cfg)
    if os.environ.get("RANK", "0") == "0":
        print(f"run folder {run_dir}", flush=True)
        k_is_given = any(override.startswith("k=") for override in HydraConfig.get().overrides.task)
        if k_is_given and "${k}" not in OmegaConf.to_yaml(cfg.coupling):
            print(f"note: this coupling has no k, so k={cfg.k} has no effect")
    summary = train_images(cfg, run_dir, resume)
    if not summary:
        return
    print(f"\n{summary['coupling']}, seed {summary['seed']}, {summary['steps']} steps:")
    for name, value in summary["final"].items():
        print(f"  {name:<36}{value:.5g}")
    print(f"summary    {run_dir / 'summary.json'}")
    print(f"model      {last_model_folder(run_dir)}")
    print(f"samples    {run_dir / 'media'}")


if __name__ == "__main__":
    sys.argv = cli.point_hydra_at_resumed_run(sys.argv)
    cli.run(main, "train_image")
