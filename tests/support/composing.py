"""Configurations as the scripts get them."""

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from immiscible_policy.cli import CONFIG_DIR


def composed(config_name: str, *overrides: str) -> DictConfig:
    """What ``hydra.main`` would hand to a script that was called with these overrides."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(config_name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg
