"""Train an image diffusion model under a noise coupling: python scripts/train_image.py coupling=knn k=8"""

import sys

import hydra
from omegaconf import DictConfig

from image_diffusion.image_run import train_images
from image_diffusion.model import last_model_folder
from immiscible_policy import cli


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="train_image", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    with cli.training(cfg) as (cfg, run_dir):
        summary = train_images(cfg, run_dir, resume=cfg.resume is not None)
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
