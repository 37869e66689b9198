"""Evaluation of one policy: many episodes, intervals, videos, a film strip, and ``eval.json`` that holds it all."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from immiscible_policy.checks import check_integer, check_seed
from immiscible_policy.diffusion import Objective
from immiscible_policy.evaluation.rollout import Episode, Recording, rollout
from immiscible_policy.evaluation.statistics import episodes_interval
from immiscible_policy.evaluation.video import film_strip, write_video
from immiscible_policy.files import write_json
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling
from immiscible_policy.training.precision import resolve_precision

DEFINITIONS = {
    "max_reward": "mean over episodes of the largest coverage / 0.95, clipped to 1 (the published score)",
    "max_coverage": "mean over episodes of the largest share of the goal's area that the block covered after a step",
    "final_coverage": "mean over episodes of that share at the episode's last step",
    "success": "share of episodes whose coverage passed 0.95 (Wilson interval)",
    "length": "mean episode length in environment steps",
}


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation; two policies are comparable only if these are equal.

    Args:
        n_episodes: episodes, on the seeds ``seed_start``, ``seed_start + 1``, ...
        seed_start: 100000 and up are the published test states.
        num_inference_steps: network calls for an action chunk; None takes the policy's own.
        sampler: another of the objective's samplers than the policy's own, which None takes.
        noise_seed: of the policy's initial noises.
        n_videos: how many of the first episodes are recorded; of fewer episodes all are.
        mixed_precision: auto | fp32 | bf16 | fp16 for the network.
        inference_coupling, first_chunk, selection, known_only, noise_scale: of the initial noise, see
            ``InferenceCoupling``, which sets what a mode has no use for to its default.

    Raises:
        ValueError: an argument out of range.
    """

    n_episodes: int = 200
    seed_start: int = 100_000
    num_inference_steps: int | None = None
    noise_seed: int = 0
    n_videos: int = 4
    mixed_precision: str = "auto"
    inference_coupling: str = "none"
    first_chunk: str = "two_pass"
    selection: str | None = None
    known_only: bool = False
    noise_scale: float = 1.0
    sampler: str | None = None

    def __post_init__(self) -> None:
        chosen = self.noise_selection()  # which refuses what is not allowed
        for name in ("first_chunk", "selection", "known_only"):
            object.__setattr__(self, name, getattr(chosen, name))
        check_integer("n_episodes", self.n_episodes, 1)
        for name in ("seed_start", "noise_seed"):
            check_seed(getattr(self, name), name)
        check_seed(self.seed_start + self.n_episodes - 1, "seed_start + n_episodes - 1")
        if self.num_inference_steps is not None:
            check_integer("num_inference_steps", self.num_inference_steps, 1)
        check_integer("n_videos", self.n_videos, 0)
        object.__setattr__(self, "n_videos", min(self.n_videos, self.n_episodes))

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed_start, self.seed_start + self.n_episodes))

    def steps_for(self, policy: DiffusionPolicy) -> int:
        """Network calls for an action chunk of ``policy``.

        Raises:
            ValueError: the policy's sampler cannot do with so many.
        """
        steps = self.num_inference_steps or policy.num_inference_steps
        self.objective_of(policy).check_num_inference_steps(steps)
        return steps

    def objective_of(self, policy: DiffusionPolicy) -> Objective:
        """The objective of ``policy``, with this evaluation's sampler.

        Raises:
            ValueError: the objective has no such sampler.
        """
        return policy.objective if self.sampler is None else policy.objective.with_sampler(self.sampler)

    def noise_selection(self) -> InferenceCoupling:
        return InferenceCoupling(
            self.inference_coupling, self.first_chunk, self.selection, self.known_only, self.noise_scale
        )


def environment_factory(policy: DiffusionPolicy) -> Callable[[int, bool], VectorEnv]:
    """Vector environments of the task that the policy was trained for (``policy.task``)."""
    task = policy.task
    missing = [key for key in ("env_id", "obs_type", "legacy", "max_steps") if key not in task]
    if missing:
        raise ValueError(f"the policy's task {task} lacks {', '.join(missing)}: it does not say what to evaluate it on")
    # Policies that were saved before tasks named their goal have the standard one.
    goal: dict[str, Any] = {}
    if task.get("goal_pose") is not None:
        goal["goal_pose"] = tuple(task["goal_pose"])

    def make(n_worlds: int, record: bool) -> VectorEnv:
        return gym.make_vec(
            task["env_id"],
            num_envs=n_worlds,
            obs_type=task["obs_type"],
            legacy=task["legacy"],
            max_episode_steps=task["max_steps"],
            render_mode="rgb_array" if record else None,
            **goal,
        )

    return make


def summarize(episodes: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Mean, 95% interval and number of episodes of every measure in ``DEFINITIONS``."""
    summary = {}
    for name in DEFINITIONS:
        values = [float(getattr(episode, name)) for episode in episodes]
        interval = episodes_interval(name, values)
        summary[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
    return summary


def evaluate_policy(
    policy: DiffusionPolicy,
    config: EvaluationConfig,
    output_dir: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the episodes and return what ``eval.json`` holds; with ``output_dir`` write it, the videos and the strip.

    Returns a dictionary with ``metrics`` (see ``summarize``), ``definitions``, ``settings``, ``seconds`` (wall clock,
    in the policy and in the simulator), ``episodes`` and, where written, the paths of ``videos`` and ``film_strip``
    relative to ``output_dir``.
    """
    precision = resolve_precision(config.mixed_precision, str(policy.device))
    if config.sampler is not None:
        objective = config.objective_of(policy)
        policy = copy.copy(policy)  # the networks are shared
        policy.objective = objective
    make_env = environment_factory(policy)
    steps = config.steps_for(policy)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)  # before the episodes: an unwritable folder must fail early
    bar = tqdm(total=policy.task["max_steps"], desc="evaluate", unit="step", disable=not progress, leave=False)

    def on_step(finished: int, done: int) -> None:
        bar.update(done - bar.n)
        bar.set_postfix(finished=f"{finished}/{config.n_episodes}", refresh=False)

    result = rollout(
        policy,
        make_env,
        config.seeds,
        num_inference_steps=steps,
        noise_seed=config.noise_seed,
        record_seeds=config.seeds[: config.n_videos] if output_dir is not None else (),
        precision=precision,
        inference_coupling=config.noise_selection(),
        on_step=on_step,
    )
    bar.close()
    settings = {
        **asdict(config),
        "num_inference_steps": steps,
        "sampler": policy.objective.sampler,
        "mixed_precision": precision,
        "task": policy.task,
        "weights": "exponential moving average",
    }
    report: dict[str, Any] = {
        "metrics": summarize(result.episodes),
        "definitions": DEFINITIONS,
        "settings": settings,
        "seconds": {"policy": result.policy_seconds, "simulator": result.simulator_seconds},
        "episodes": [asdict(episode) for episode in result.episodes],
    }
    if output_dir is not None:
        _remove_media(output_dir)
        report.update(_write_media(result.recordings, output_dir))
        write_json(output_dir / "eval.json", report)
    return report


def _remove_media(output_dir: Path) -> None:
    """Delete the videos and the strip of an earlier evaluation in the folder, whose numbers are replaced as well."""
    try:
        before = json.loads((output_dir / "eval.json").read_text())
    except (OSError, ValueError):
        return
    for name in (*before.get("videos", ()), before.get("film_strip")):
        if name is not None:
            (output_dir / Path(name).name).unlink(missing_ok=True)


def _write_media(recordings: Sequence[Recording], output_dir: Path) -> dict[str, Any]:
    if not recordings:
        return {}
    videos = []
    for recording in recordings:
        videos.append(f"episode_{recording.seed}.mp4")
        write_video(recording.frames, output_dir / videos[-1])
    film_strip(
        [recording.frames for recording in recordings],
        output_dir / "film_strip.png",
        titles=[f"seed {recording.seed}" for recording in recordings],
        coverages=[recording.coverages for recording in recordings],
    )
    return {"videos": videos, "film_strip": "film_strip.png"}


def metrics_table(metrics: dict[str, dict[str, float]]) -> str:
    """The measures as aligned lines, each with its definition."""
    lines = []
    for name, value in metrics.items():
        known = math.isfinite(value["low"])  # of one episode nothing is
        interval = f"95% [{value['low']:.3f}, {value['high']:.3f}]" if known else "one episode"
        lines.append(f"  {name:<15}{value['mean']:8.3f}  {interval:<22}  {DEFINITIONS[name]}")
    return "\n".join(lines)
