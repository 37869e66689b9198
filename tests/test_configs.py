"""Every choice in configs/ composes and builds what it names."""

import itertools

import pytest
import torch
from composing import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from immiscible_policy.cli import CONFIG_DIR
from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment, Mixture, Residual, Warmup
from immiscible_policy.data.sources import DemonstratorSet
from immiscible_policy.diffusion import build_objective
from immiscible_policy.evaluation.evaluate import EvaluationConfig
from immiscible_policy.policy.encoders import build_encoder
from immiscible_policy.policy.networks import build_network
from immiscible_policy.run_setup import trainer_config


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize(("preset", "policy"), itertools.product(choices("preset"), choices("policy")))
def test_every_preset_with_every_policy_is_complete(preset: str, policy: str) -> None:
    cfg = composed("train_policy", f"preset={preset}", f"policy={policy}")
    assert trainer_config(cfg, n_data=10_500).steps >= 1
    for part in ("rollout", "evaluation"):
        assert EvaluationConfig(**OmegaConf.to_container(cfg[part], resolve=True)).n_episodes >= 1  # type: ignore[arg-type]
    # Rollouts pick the best checkpoint, so the final evaluation must not share their initial states.
    rollouts = EvaluationConfig(**OmegaConf.to_container(cfg.rollout, resolve=True)).seeds  # type: ignore[arg-type]
    final = EvaluationConfig(**OmegaConf.to_container(cfg.evaluation, resolve=True)).seeds  # type: ignore[arg-type]
    assert not set(rollouts) & set(final)
    assert cfg.task.legacy is True


def test_epochs_count_the_batches_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    cfg = composed("train_policy", "preset=paper_state")
    assert trainer_config(cfg, n_data=10_500).steps == 3000 * (10_500 // (4 * 256))


def test_the_state_preset_of_the_paper_is_the_released_configuration() -> None:
    cfg = composed("train_policy", "preset=paper_state")
    config = trainer_config(cfg, n_data=10_500)
    assert config.steps == 3000 * 41
    assert (config.batch_size, config.learning_rate, config.betas, config.weight_decay) == (
        256,
        1e-4,
        (0.95, 0.999),
        1e-6,
    )
    assert cfg.policy.network.down_dims == [256, 512, 1024]
    assert (cfg.objective.sampler, cfg.policy.num_inference_steps) == ("ddpm", 100)
    network = build_network(
        OmegaConf.to_container(cfg.policy.network),  # type: ignore[arg-type]
        action_dim=2,
        observation_dim=20,
        horizon=cfg.policy.horizon,
        n_obs_steps=cfg.policy.n_obs_steps,
    )
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 65.8


def test_the_image_preset_of_the_paper_is_the_released_configuration() -> None:
    cfg = composed("train_policy", "preset=paper_image")
    config = trainer_config(cfg, n_data=165 * 64)
    assert config.steps == 3050 * 165
    assert (config.batch_size, config.learning_rate, config.betas, config.weight_decay, config.warmup_steps) == (
        64,
        1e-4,
        (0.95, 0.999),
        1e-6,
        500,
    )
    assert (config.ema_power, config.gradient_clip, config.lr_schedule) == (0.75, None, "cosine")
    assert (cfg.task.obs_type, cfg.dataset.max_train_episodes) == ("pixels_agent_pos", 90)
    assert (cfg.objective.sampler, cfg.policy.num_inference_steps) == ("ddpm", 100)
    assert (cfg.policy.horizon, cfg.policy.n_obs_steps, cfg.policy.n_action_steps) == (16, 2, 8)
    assert (cfg.policy.encoder.crop, cfg.policy.encoder.n_keypoints) == (84, 32)
    with torch.device("meta"):
        encoder = build_encoder(OmegaConf.to_container(cfg.policy.encoder), agent_dim=2)  # type: ignore[arg-type]
        network = build_network(
            OmegaConf.to_container(cfg.policy.network),  # type: ignore[arg-type]
            action_dim=2,
            observation_dim=encoder.out_dim,
            horizon=16,
            n_obs_steps=2,
        )
    assert encoder.out_dim * 2 == 132
    assert sum(p.numel() for p in encoder.parameters()) == 11_197_088
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 251.5


POLICIES = {"convnet": "image_small", "resnet18": "image"}


def test_the_image_preset_is_for_a_small_machine() -> None:
    cfg = composed("train_policy", "preset=image_small")
    assert cfg.task.obs_type == "pixels_agent_pos"
    assert cfg.policy.encoder.name == "convnet"
    assert composed("train_policy", "preset=image_small", "policy=image").policy.encoder.name == "resnet18"


@pytest.mark.parametrize("network", ["mlp", "transformer", "unet1d"])
@pytest.mark.parametrize("encoder", ["convnet", "resnet18"])
def test_any_network_sees_pictures_through_any_encoder(network: str, encoder: str) -> None:
    policy = composed("train_policy", "task=pusht_image", f"policy={network}", f"+policy/encoder={encoder}").policy
    assert (policy.network.name, policy.encoder.name) == (network, encoder)
    assert policy.encoder == composed("train_policy", f"policy={POLICIES[encoder]}").policy.encoder


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["coupling=none"], Independent()),
        (["coupling=knn", "k=2"], KNN(k=2)),
        (["coupling=knn", "k=8", "coupling.metric=inner"], KNN(k=8, metric="inner")),
        (["coupling=assignment"], LinearAssignment(metric="l2")),
        (["coupling=mixture", "k=4"], Mixture(KNN(k=4), p=0.5)),
        (
            ["coupling=mixture", "coupling@coupling.coupling=assignment", "coupling.p=[0,1]"],
            Mixture(LinearAssignment(), p=(0, 1)),
        ),
        (["coupling=residual"], Residual(KNN(k=2, metric="inner"))),
        (["coupling=warmup", "coupling.start=5"], Warmup(KNN(k=2), start=5)),
        (
            ["coupling=warmup", "k=8", "coupling.start=0", "coupling.anneal_to={k: 1}", "coupling.anneal_over=9"],
            Warmup(KNN(k=8), anneal_to={"k": 1}, anneal_over=9),
        ),
    ],
)
def test_couplings_by_name(overrides: list[str], expected: Coupling) -> None:
    assert instantiate(composed("train_policy", *overrides).coupling, _convert_="all") == expected


def test_objectives_build() -> None:
    for name in choices("objective"):
        options = OmegaConf.to_container(composed("train_policy", f"objective={name}").objective, resolve=True)
        assert build_objective(options) is not None  # type: ignore[arg-type]


def test_demonstrations_by_name() -> None:
    assert {"auto", "demonstrator", "human"} <= set(choices("dataset"))
    auto, made, human = (
        composed("train_policy", f"dataset={name}").dataset for name in ("auto", "demonstrator", "human")
    )
    assert auto == composed("train_policy").dataset
    assert (auto.path, made.path, made.human, human.human, human.demonstrator) == (None,) * 5
    # The same ones under either name.
    assert auto.human == human.path
    assert auto.demonstrator == made.demonstrator
    # Other seeds are other stores: the folder of the one that the command fills.
    seed = composed("train_policy", "dataset=demonstrator", "dataset.demonstrator.seed=5").dataset
    assert DemonstratorSet(**OmegaConf.to_container(seed.demonstrator, resolve=True)) == DemonstratorSet(  # type: ignore[arg-type]
        "data/pusht/demonstrator_seed5.zarr", 200, 5
    )
    split = ("val_ratio", "split_seed", "max_train_episodes")
    assert [auto[name] for name in split] == [made[name] for name in split] == [human[name] for name in split]
