"""Evaluation of a policy on PushT: what eval.json holds, media, and its settings."""

import json
from pathlib import Path

import gymnasium
import imageio.v3 as iio
import pytest
import torch

from envs.pusht.geometry import GOAL_POSE
from immiscible_policy.evaluation.evaluate import (
    EvaluationConfig,
    environment_factory,
    evaluate_policy,
    metrics_table,
    summarize,
)
from immiscible_policy.evaluation.rollout import Episode, rollout
from immiscible_policy.files import write_json
from immiscible_policy.policy import DiffusionPolicy

TASK = {"env_id": "envs:immiscible/PushT-v0", "obs_type": "keypoints", "legacy": True, "max_steps": 24}


def small_policy(task: dict[str, object] | None = None) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(
        20,
        2,
        network={"name": "mlp", "width": 16, "n_blocks": 1},
        num_inference_steps=2,
        task=TASK if task is None else task,
    )
    policy.fit_normalizers(512 * torch.rand(50, 20), 512 * torch.rand(50, 2))
    return policy.eval()


def test_everything_is_written_and_reproducible(tmp_path: Path) -> None:
    config = EvaluationConfig(n_episodes=5, n_videos=2, mixed_precision="fp32")
    report = evaluate_policy(small_policy(), config, tmp_path / "a", progress=False)
    stored = json.loads((tmp_path / "a" / "eval.json").read_text())
    assert stored == json.loads(json.dumps(report))
    assert [episode["seed"] for episode in stored["episodes"]] == [100000, 100001, 100002, 100003, 100004]
    assert stored["settings"]["num_inference_steps"] == 2
    assert stored["settings"]["task"]["legacy"] is True
    assert set(stored["metrics"]) == {"max_reward", "max_coverage", "final_coverage", "success", "length"}
    for episode in stored["episodes"]:
        assert episode["max_reward"] == pytest.approx(min(episode["max_coverage"] / 0.95, 1.0))
    assert stored["videos"] == ["episode_100000.mp4", "episode_100001.mp4"]
    frames = iio.imread(tmp_path / "a" / stored["videos"][0], plugin="FFMPEG")
    assert len(frames) == stored["episodes"][0]["length"] + 1
    assert iio.imread(tmp_path / "a" / "film_strip.png").ndim == 3
    again = evaluate_policy(small_policy(), config, progress=False)
    assert again["episodes"] == report["episodes"]
    assert "videos" not in again


def test_evaluated_again_a_folder_keeps_no_videos_of_other_episodes(tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").touch()
    for n_videos in (2, 1, 0):
        config = EvaluationConfig(n_episodes=3, n_videos=n_videos, mixed_precision="fp32")
        evaluate_policy(small_policy(), config, tmp_path, progress=False)
        expected = {f"episode_{100000 + i}.mp4" for i in range(n_videos)} | ({"film_strip.png"} if n_videos else set())
        assert {path.name for path in tmp_path.iterdir()} == {"eval.json", "mine.mp4", *expected}


def test_summary_is_the_mean_with_an_interval_around_it() -> None:
    episodes = [Episode(i, 0.1 * i, 0.09 * i, 0.05, i > 7, 100 + i) for i in range(10)]
    summary = summarize(episodes)
    assert summary["max_reward"]["mean"] == pytest.approx(0.45)
    assert summary["success"]["mean"] == pytest.approx(0.2)
    assert summary["max_reward"]["low"] < 0.45 < summary["max_reward"]["high"]
    assert summary["success"]["n"] == 10


def test_settings_are_equal_where_what_they_do_is() -> None:
    plain = EvaluationConfig(selection="KNN(k=2)", first_chunk="independent", known_only=True)
    assert plain == EvaluationConfig()
    twice = EvaluationConfig(inference_coupling="two_pass", selection="KNN(k=2)", first_chunk="independent")
    assert twice == EvaluationConfig(inference_coupling="two_pass", selection="KNN(k=2)")
    assert EvaluationConfig(inference_coupling="warm", known_only=True) != EvaluationConfig(inference_coupling="warm")


def test_one_episode_has_no_interval() -> None:
    episodes = [Episode(seed=1, max_reward=0.5, max_coverage=0.5, final_coverage=0.5, success=False, length=3)]
    assert "nan" not in metrics_table(summarize(episodes))


def test_another_sampler_than_the_policys_own_can_be_evaluated() -> None:
    policy = small_policy()
    reports = {
        sampler: evaluate_policy(
            policy,
            EvaluationConfig(n_episodes=2, n_videos=0, num_inference_steps=3, sampler=sampler, mixed_precision="fp32"),
            progress=False,
        )
        for sampler in (None, "ddim", "ddim_floor", "ddpm")
    }
    assert {str(sampler): report["settings"]["sampler"] for sampler, report in reports.items()} == {
        "None": "ddim",
        "ddim": "ddim",
        "ddim_floor": "ddim_floor",
        "ddpm": "ddpm",
    }
    assert reports[None]["episodes"] == reports["ddim"]["episodes"]
    scores = [[episode["final_coverage"] for episode in report["episodes"]] for report in reports.values()]
    assert len({tuple(score) for score in scores}) == 3
    assert policy.objective.sampler == "ddim"


@pytest.mark.parametrize(("sampler", "message"), [("euler", "sampler='euler': choose one of"), ("pndm", "clip_sample")])
def test_a_sampler_that_the_objective_does_not_have_is_refused(sampler: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_policy(small_policy(), EvaluationConfig(n_episodes=1, n_videos=0, sampler=sampler), progress=False)


def test_a_policy_without_a_task_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks env_id, obs_type, legacy, max_steps"):
        evaluate_policy(small_policy(task={"name": "?"}), EvaluationConfig(n_episodes=1, n_videos=0), progress=False)


@pytest.mark.parametrize(("name", "value"), [("n_episodes", 0), ("n_videos", -1)])
def test_wrong_settings_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        EvaluationConfig(**{"n_episodes": 5, "n_videos": 0, name: value})


def test_of_few_episodes_all_are_recorded() -> None:
    assert EvaluationConfig(n_episodes=2, n_videos=4).n_videos == 2


def test_not_a_number_becomes_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"low": float("nan"), "list": [1.0, float("nan")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"low": None, "list": [1.0, None]}


def test_the_goal_is_the_tasks() -> None:
    elsewhere = small_policy(task={**TASK, "goal_pose": [356.0, 356.0, 0.5]})
    assert environment_factory(elsewhere)(2, False).unwrapped.task.goal_pose == (356.0, 356.0, 0.5)
    assert environment_factory(small_policy())(2, False).unwrapped.task.goal_pose == GOAL_POSE


def test_many_worlds_and_one_by_one_give_the_same_episodes() -> None:
    policy, seeds = small_policy(), [100000, 100001, 100002, 100003]
    task = {name: TASK[name] for name in ("obs_type", "legacy")}

    def one_by_one(n_worlds: int, record: bool) -> gymnasium.vector.VectorEnv:
        return gymnasium.make_vec(
            TASK["env_id"], num_envs=n_worlds, vectorization_mode="sync", max_episode_steps=TASK["max_steps"], **task
        )

    many = rollout(policy, environment_factory(policy), seeds).episodes
    for episode, expected in zip(many, rollout(policy, one_by_one, seeds).episodes, strict=True):
        assert episode.length == expected.length == 24
        assert episode.final_coverage == pytest.approx(expected.final_coverage, abs=1e-6)
        assert episode.max_reward == pytest.approx(expected.max_reward, abs=1e-6)


def test_the_report_says_where_the_time_went() -> None:
    report = evaluate_policy(small_policy(), EvaluationConfig(n_episodes=2, n_videos=0), progress=False)
    assert report["seconds"]["policy"] > 0
    assert report["seconds"]["simulator"] > 0
