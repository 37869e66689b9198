"""Demonstrations as a policy's training sees them: windows of observations and actions, and where they are from."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from envs.pusht.pixels import PixelObserver
from immiscible_policy.checks import check_seed, check_unchanged
from immiscible_policy.data.replay import STEP_SHAPES, ReplayData
from immiscible_policy.data.sources import (
    DemonstratorSet,
    goal_of,
    goal_setting,
    load_demonstrations,
    locate_demonstrations,
)
from immiscible_policy.data.windows import REPLAY_ARRAYS, ActionWindows, observations_from_replay, split_episodes
from immiscible_policy.run_setup import check_dataset, is_main_process, joint_state, plain_settings, process_device

IMAGE_TYPE = "pixels_agent_pos"


@dataclass(frozen=True)
class PolicyData:
    """Windows to train and validate on, the numbers that normalisers are fitted to, and where it all is from.

    ``observation`` (N, Do) and ``action`` (N, Da) are of all steps; of image observations the former is ``agent_pos``.
    """

    train: ActionWindows
    validation: ActionWindows | None
    observation: np.ndarray
    action: np.ndarray
    source: dict[str, Any]


def load_data(cfg: DictConfig, began_with: Mapping[str, Any] | None = None) -> PolicyData:
    """The demonstrations of ``cfg.dataset`` as the task of ``cfg.task`` observes them.

    A run that has begun goes on with the path that it began with, whatever has been downloaded since.

    Args:
        began_with: ``PolicyData.source`` as a run recorded it; what an older record lacks is not compared.

    Raises:
        ValueError: they are for another goal than the task's, or others by now than the run began with, in what they
            hold (pictures are not compared) or in how they are split.
    """
    check_dataset(cfg, "demonstrator", "demonstrations")
    check_seed(cfg.dataset.split_seed, "dataset.split_seed")
    dataset, path, human = cfg.dataset, cfg.dataset.path, cfg.dataset.human
    generated = None
    if dataset.demonstrator is not None:
        generated = DemonstratorSet(**plain_settings(dataset.demonstrator), goal_pose=tuple(cfg.task.goal_pose))
    if began_with is not None and path is None:
        made = generated is not None and Path(generated.path).expanduser() == Path(began_with["path"])
        path, human = (None, None) if made else (began_with["path"], None)
    _check_encoder(cfg)
    needed = ("action", *REPLAY_ARRAYS.get(cfg.task.obs_type, ("state",)))
    together = joint_state(cfg.device)
    main = nullcontext() if together is None else together.main_process_first()
    announce = print if is_main_process() else lambda line: None
    with main:  # which makes the demonstrations that the others then find
        folder, n_episodes = locate_demonstrations(path, human, generated, announce)
    _check_goal(folder, tuple(cfg.task.goal_pose))
    if n_episodes is not None:  # the demonstrator's, who stores poses: pictures are made from those
        needed = tuple(name for name in needed if name != "img")
    replay = load_demonstrations(folder, needed, n_episodes)
    if n_episodes is not None and cfg.task.obs_type == IMAGE_TYPE:
        replay = _with_pictures(replay, tuple(cfg.task.goal_pose))
    observed = observations_from_replay(replay, cfg.task.obs_type)
    observation = observed if isinstance(observed, np.ndarray) else observed["agent_pos"]
    shown: Any = observed
    # A GPU gets all data once and for all; windows share the pictures.
    device = torch.device(process_device(cfg.device))
    if not isinstance(observed, np.ndarray):
        shown = {name: torch.from_numpy(part).to(device) for name, part in observed.items()}
    action = replay.arrays["action"]
    train, validation = split_episodes(
        replay.n_episodes, cfg.dataset.val_ratio, cfg.dataset.split_seed, cfg.dataset.max_train_episodes
    )

    def windows(episodes: np.ndarray) -> ActionWindows:
        return ActionWindows(
            shown,
            action,
            replay.episode_ends,
            cfg.policy.horizon,
            cfg.policy.n_obs_steps,
            cfg.policy.n_action_steps,
            episodes,
            device,
        )

    source = {
        "path": str(folder),
        "n_episodes": replay.n_episodes,
        "n_steps": replay.n_steps,
        "sha256": replay.sha256([name for name in replay.arrays if name != "img"]),
        "val_ratio": dataset.val_ratio,
        "split_seed": dataset.split_seed,
        "max_train_episodes": dataset.max_train_episodes,
    }
    if began_with is not None:
        what, digest = f"the demonstrations at {folder}", {"sha256": source["sha256"]}
        # What they hold says the least, and only where nothing else differs.
        check_unchanged(what, began_with, {k: v for k, v in source.items() if k not in ("path", *digest)})
        check_unchanged(what, began_with, digest)
    return PolicyData(windows(train), windows(validation) if validation.any() else None, observation, action, source)


def _check_encoder(cfg: DictConfig) -> None:
    has_encoder = cfg.policy.get("encoder") is not None
    if cfg.task.obs_type == IMAGE_TYPE and not has_encoder:
        raise ValueError(
            f"task.obs_type={IMAGE_TYPE} needs a policy with an image encoder: preset=image_small or "
            "policy=image_small (preset=paper_image or policy=image for a GPU), or +policy/encoder=convnet beside "
            "another network"
        )
    if has_encoder and cfg.task.obs_type != IMAGE_TYPE:
        raise ValueError(
            f"policy.encoder={cfg.policy.encoder.name} takes images, but task.obs_type={cfg.task.obs_type}: choose "
            "task=pusht_image, or another policy"
        )
    largest = min(STEP_SHAPES["img"][:2])
    if has_encoder and (cfg.policy.encoder.get("crop") or 0) > largest:
        raise ValueError(f"policy.encoder.crop={cfg.policy.encoder.crop}: at most {largest}, the pictures' size")


def _with_pictures(replay: ReplayData, goal_pose: Any) -> ReplayData:
    """The replay with what the environment would have shown at each of its states as ``img``."""
    state = replay.arrays["state"]
    pictures = PixelObserver(goal_pose=goal_pose)(state[:, :2], state[:, 2:])
    return replace(replay, arrays={**replay.arrays, "img": pictures})


def _check_goal(folder: Path, goal: tuple[float, ...]) -> None:
    """Refuse demonstrations that bring the block elsewhere than where the policy would be evaluated."""
    recorded = goal_of(folder)
    if recorded is not None and not np.allclose(recorded, goal, rtol=0, atol=1e-6):
        raise ValueError(
            f"task.goal_pose={list(goal)}: the demonstrations at {folder} are for {list(recorded)}; choose others, or "
            f"train for their goal with {goal_setting(recorded)}"
        )
