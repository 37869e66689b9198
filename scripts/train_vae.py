"""Train an autoencoder for latent diffusion: python scripts/train_vae.py dataset=folder dataset.path=my_pictures"""

import shlex
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from image_diffusion.vae_training import train_vae
from immiscible_policy import cli


def next_command(run_dir: Path) -> str:
    """The command that trains a model of the latents of a run's data."""
    record = OmegaConf.load(run_dir / ".hydra" / "overrides.yaml")  # of the run's start, for one that was resumed, too
    given = [str(text) for text in record]
    data = [text for text in given if text.lstrip("+~").startswith(("dataset=", "dataset."))]
    return shlex.join(["python", "scripts/train_image.py", "method=sd", *data, f"model.vae={run_dir}"])


@hydra.main(config_path=str(cli.CONFIG_DIR), config_name="train_vae", version_base="1.3")
@cli.one_line_errors
def main(cfg: DictConfig) -> None:
    with cli.training(cfg) as (cfg, run_dir):
        summary = train_vae(cfg, run_dir, resume=cfg.resume is not None)
        if not summary:
            return
        shape = "x".join(map(str, summary["latent_shape"]))
        print(f"\nlatents of {shape}, PSNR {summary['psnr']:.2f} dB ({summary['psnr_of']}), {summary['steps']} steps")
        print(f"pictures   {run_dir / 'media'} (above: images, below: reconstructions)")
        print(f"vae        {run_dir / 'vae'} (scaling factor {summary['scaling_factor']:.4g})")
        print(f"next       {next_command(run_dir)}")


if __name__ == "__main__":
    sys.argv = cli.point_hydra_at_resumed_run(sys.argv)
    cli.run(main, "train_vae")
