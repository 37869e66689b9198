"""A run on pictures, from a made-up replay store to rollouts in the real environment."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from composing import composed
from killing import killed_at_the_first_checkpoint
from omegaconf import OmegaConf

from immiscible_policy import experiment_cell, policy_data, policy_run
from immiscible_policy.coupling import KNN, Coupling, Mixture, Warmup
from immiscible_policy.data.lerobot_export import export_lerobot
from immiscible_policy.data.replay import DataError, load_replay
from immiscible_policy.data.replay_writer import write_replay
from immiscible_policy.policy import DiffusionPolicy, load_policy
from immiscible_policy.policy_data import load_data
from immiscible_policy.policy_run import build_policy, rollout_rules, train_policy, warn_of_late_warmup
from immiscible_policy.training import trainer

TINY = (
    "preset=image_small",
    "coupling=knn",
    "steps=4",
    "batch_size=4",
    "policy.network.down_dims=[8,16]",
    "policy.network.step_embed_dim=8",
    "policy.encoder.channels=[4,8]",
    "policy.encoder.feature_dim=4",
    "policy.num_inference_steps=2",
    "task.max_steps=12",
    "rollout.n_episodes=2",
    "rollout.num_inference_steps=2",
    "evaluation.n_episodes=2",
    "evaluation.n_videos=0",
    "trainer.warmup_steps=1",
    "trainer.evaluate_every=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.tensorboard=false",
    "trainer.mixed_precision=fp32",
    "dataset.val_ratio=0.4",
    "device=cpu",
)


@pytest.fixture(autouse=True)
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their figures would take longer than all the rest."""
    monkeypatch.setattr(policy_run, "_draw_report", lambda run_dir: None)


@pytest.fixture
def store(tmp_path: Path, make_store: Callable[..., Any]) -> Path:
    make_store(tmp_path / "store.zarr", lengths=(18, 14))
    return tmp_path / "store.zarr"


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_policy(run_dir / "checkpoints" / "step=0000004").state_dict()


def test_a_policy_is_trained_on_pictures_rolled_out_and_resumed_exactly(store: Path, tmp_path: Path) -> None:
    cfg = composed("train_policy", *TINY, f"dataset.path={store}")
    summary = train_policy(cfg, tmp_path / "whole")
    assert summary["final"]["max_coverage"]["n"] == 2
    assert summary["final"]["length"]["mean"] == 12
    data = load_data(cfg)
    fresh = build_policy(cfg, data)
    assert summary["parameters"] == sum(p.numel() for p in fresh.parameters())
    assert data.train.observation["pixels"].dtype == torch.uint8  # type: ignore[index]
    saved = weights(tmp_path / "whole")
    # The moving average covers the encoder.
    torch.manual_seed(cfg.seed)
    start = build_policy(cfg, data).state_dict()
    assert all(not torch.equal(saved[name], start[name]) for name in saved if name.startswith("encoder.trunk"))

    with killed_at_the_first_checkpoint():
        train_policy(cfg, tmp_path / "killed")
    assert not (tmp_path / "killed" / "summary.json").exists()
    resumed = train_policy(cfg, tmp_path / "killed", resume=True)
    again = weights(tmp_path / "killed")
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert resumed["final"] == summary["final"]


def test_companions_validation_and_prior_gap_are_of_the_batches_that_are_trained_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def losses(model: Any, dataset: Any, coupling: Any, batch_size: int) -> dict[str, float]:
        sizes.append(batch_size)
        return {}

    class Gap:
        def as_dict(self) -> dict[str, Any]:
            return {}

    def gap(*parts: Any, batch_size: int, **settings: Any) -> Gap:
        sizes.append(batch_size)
        return Gap()

    monkeypatch.setattr(policy_run, "validation_losses", losses)
    monkeypatch.setattr(experiment_cell, "measure_prior_gap", gap)
    given = (*TINY, f"dataset.path={store}", "coupling=assignment", "trainer.batch_size=3")
    cell = experiment_cell.Cell(tmp_path / "cell", {}, seed=0)
    train_policy(composed("train_policy", *given), cell.run_dir)
    policy = load_policy(cell.run_dir / "checkpoints" / "best")
    assert int(policy.companion_batch_size) == 3
    (cell.run_dir / ".hydra").mkdir()
    OmegaConf.save(composed("train_policy", *given), cell.run_dir / ".hydra" / "config.yaml")
    experiment_cell._prior_gap(cell, policy, {}, "fp32")
    assert sizes == [3, 3]
    record = cell.run_dir / "demonstrations.json"
    began = json.loads(record.read_text())
    record.write_text(json.dumps({**began, "n_episodes": 99}))
    with pytest.raises(ValueError, match=r"no longer those that the run began with: n_episodes=\d+ \(began with 99\)"):
        experiment_cell._prior_gap(cell, policy, {}, "fp32")
    record.write_text(json.dumps(began))
    moved = zarr.open_group(store, mode="r+")["data/action"]
    moved[3] = moved[3] + 1.0
    with pytest.raises(ValueError, match=rf"sha256=\w{{64}} \(began with {began['sha256']}\)"):
        experiment_cell._prior_gap(cell, policy, {}, "fp32")


def test_crops_are_drawn_from_the_loops_generator(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream that a checkpoint holds: what other code draws from torch's own cannot move a crop."""
    seen: list[torch.Generator | None] = []
    encode = DiffusionPolicy.encode

    def spy(policy: Any, observation: Any, training: Any = None, generator: Any = None) -> torch.Tensor:
        seen.append(generator)
        return encode(policy, observation, training, generator)

    monkeypatch.setattr(DiffusionPolicy, "encode", spy)
    cfg = composed("train_policy", *TINY, f"dataset.path={store}", "steps=1", "dataset.val_ratio=0")
    made: list[torch.Generator] = []
    fit = trainer.Trainer.fit

    def remembered(self: trainer.Trainer) -> None:
        made.append(self.generator)
        fit(self)

    monkeypatch.setattr(trainer.Trainer, "fit", remembered)
    train_policy(cfg, tmp_path / "run")
    assert seen[0] is made[0]


def test_demonstrations_of_poses_alone_are_drawn_as_the_environment_shows_them(tmp_path: Path) -> None:
    from envs.pusht.pixels import PixelObserver

    rng = np.random.default_rng(0)
    state = np.column_stack([rng.uniform(100, 400, (30, 4)), rng.uniform(0, 6, 30)]).astype(np.float32)
    episode: dict[str, np.ndarray] = {"state": state, "action": state[:, :2], "keypoint": np.zeros((30, 9, 2))}
    write_replay(tmp_path / "store.zarr", [episode])
    cfg = composed("train_policy", *TINY, "dataset.val_ratio=0", "task.goal_pose=[300.0, 200.0, 0.0]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_data, "locate_demonstrations", lambda *_: (tmp_path / "store.zarr", 1))
        data = load_data(cfg)
    expected = PixelObserver(goal_pose=(300.0, 200.0, 0.0))(state[:, :2].astype(float), state[:, 2:].astype(float))
    np.testing.assert_array_equal(data.train.observation["pixels"], expected)  # type: ignore[index]
    # A store that somebody else made may be of another task: its pictures are not made up.
    with pytest.raises(DataError, match="data/img is missing"):
        load_data(composed("train_policy", *TINY, f"dataset.path={tmp_path / 'store.zarr'}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task=pusht_image",), "needs a policy with an image encoder: preset=image_small"),
        (("preset=image_small", "policy.encoder.crop=97"), "policy.encoder.crop=97: at most 96, the pictures' size"),
        (("policy=image_small",), "policy.encoder=convnet takes images, but task.obs_type=keypoints"),
    ],
)
def test_tasks_and_policies_that_do_not_fit_are_named(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(composed("train_policy", *overrides, "dataset.path=nowhere"))


def test_pictures_are_read_only_where_they_are_needed(store: Path) -> None:
    chunk = next(path for path in (store / "data" / "img").iterdir() if path.name.startswith("0"))
    chunk.write_bytes(b"damaged")
    assert load_replay(store).n_episodes == 2
    with pytest.raises(DataError, match="data/img"):
        load_data(composed("train_policy", *TINY, f"dataset.path={store}"))


def test_an_image_policy_meets_the_wrong_environment(store: Path, tmp_path: Path) -> None:
    from immiscible_policy.evaluation.evaluate import EvaluationConfig, evaluate_policy

    cfg = composed("train_policy", *TINY, f"dataset.path={store}")
    policy = build_policy(cfg, load_data(cfg)).eval()
    policy.task["obs_type"] = "state"
    with pytest.raises(ValueError, match=r"has shape \(5,\), the policy was trained on pictures and \(2,\)"):
        evaluate_policy(policy, EvaluationConfig(n_episodes=1, n_videos=0), progress=False)
    flat = composed("train_policy", "policy=mlp", "task=pusht_state", f"dataset.path={store}")
    policy = build_policy(flat, load_data(flat)).eval()
    policy.task["obs_type"] = "pixels_agent_pos"
    with pytest.raises(ValueError, match=r"has shape \{'pixels': \(96, 96, 3\).* was trained on \(5,\)"):
        evaluate_policy(policy, EvaluationConfig(n_episodes=1, n_videos=0), progress=False)
    assert json.dumps(policy.task)


def test_checkpoint_rules_are_over_all_rollouts_after_the_first_loss() -> None:
    lines = [
        {"step": step, "rollout/max_reward": step / 100, "rollout/max_coverage": 0.5} for step in range(10, 110, 10)
    ]
    for line in lines[2::3]:  # losses at 30, 60 and 90, of which the first is the lowest
        line["train/loss"] = line["step"]
    rules = rollout_rules(lines)["max_reward"]
    assert {name: rule["n_points"] for name, rule in rules.items()} == {
        "last_k_mean": 8,
        "k_min_train_loss_mean": 8,
        "max_score": 8,
    }
    assert rules["max_score"]["value"] == 1.0
    assert rollout_rules(lines[:2]) == {}


@pytest.mark.parametrize(
    ("coupling", "said"),
    [
        (
            Warmup(KNN(k=2), start=10),
            "coupling.start=10: the training has 10 batches, so that all of their noise stays",
        ),
        (
            Warmup(KNN(k=4), start=2, anneal_to={"k": 1}, anneal_over=8),
            "coupling.start=2, coupling.anneal_over=8: the training has 10 batches, so that none of them meets k=1",
        ),
        (Mixture(Warmup(KNN(k=2), start=11), p=0.5), "coupling.coupling.start=11: the training has 10 batches"),
        (Warmup(KNN(k=2), start=9), None),
        (Warmup(KNN(k=4), start=2, anneal_to={"k": 1}, anneal_over=7), None),
        (KNN(k=2), None),
    ],
)
def test_a_warm_up_that_the_training_ends_before_is_warned_of(coupling: Coupling, said: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_late_warmup(coupling, 10)
    assert [str(warning.message).startswith(said or "") for warning in caught] == [True] * (said is not None)
    assert all(warning.category is UserWarning for warning in caught)


def test_a_late_warm_up_is_warned_of_where_it_is_trained(store: Path, tmp_path: Path) -> None:
    small = ("batch_size=3", "trainer.gradient_accumulation=2")
    given = (*TINY, f"dataset.path={store}", "coupling=warmup", "coupling.start=4", *small)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_policy(composed("train_policy", *given), tmp_path / "in_time")
    assert not any("coupling.start" in str(warning.message) for warning in caught)
    with pytest.warns(UserWarning, match=r"coupling.start=4: the training has 4 batches"):
        train_policy(composed("train_policy", *given, "steps=2"), tmp_path / "late")


def test_images_are_no_demonstrations() -> None:
    with pytest.raises(ValueError, match="not of a set of demonstrations; choose one of auto, demonstrator, human"):
        load_data(composed("train_policy", "dataset=digits"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=tpu", "choose auto, cpu, cuda or cuda:N"),
        ("trainer.lr_schedule=steep", "lr_schedule='steep': choose one of"),
        ("batch_size=0", "batch_size=0: must be an integer of at least 1"),
    ],
)
def test_settings_of_the_training_are_checked_before_demonstrations_are_made(
    tmp_path: Path, override: str, message: str
) -> None:
    made = tmp_path / "made.zarr"
    cfg = composed("train_policy", "dataset=demonstrator", f"dataset.demonstrator.path={made}", override)
    with pytest.raises(ValueError, match=message):
        train_policy(cfg, tmp_path / "run")
    assert not made.exists()


def test_demonstrations_for_another_goal_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = rng.uniform(100, 400, (30, 5)).astype(np.float32)
    episode = {"state": state, "action": state[:, :2], "keypoint": np.zeros((30, 9, 2))}
    path = tmp_path / "elsewhere.zarr"
    write_replay(path, [episode], {"goal_pose": [356.0, 356.0, 0.5]})
    given = ("task=pusht_state", "dataset.val_ratio=0", f"dataset.path={path}")
    with pytest.raises(ValueError, match=r"task.goal_pose=\[256.*are for \[356.0, 356.0, 0.5\]; choose others"):
        load_data(composed("train_policy", *given))
    assert load_data(composed("train_policy", *given, "task.goal_pose=[356,356,0.5]")).source["n_episodes"] == 1
    exported = export_lerobot(load_replay(path), tmp_path / "set", goal_pose=(356.0, 356.0, 0.7853981))
    given = ("task=pusht_state", "dataset.val_ratio=0", f"dataset.path={exported}")
    # All digits, so that what it says to set is not refused in turn.
    with pytest.raises(ValueError, match=r"train for their goal with 'task.goal_pose=\[356.0,356.0,0.7853981\]'"):
        load_data(composed("train_policy", *given))
