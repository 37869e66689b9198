"""The command that writes a LeRobot data set."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from envs.pusht.geometry import GOAL_POSE
from immiscible_policy.data.lerobot import load_lerobot
from immiscible_policy.data.replay_writer import write_replay
from immiscible_policy.data.sources import goal_of

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "export_lerobot.py"


@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location("script_export_lerobot", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main


@pytest.fixture
def store(tmp_path, make_store):
    make_store(tmp_path / "replay.zarr")
    return tmp_path / "replay.zarr"


def test_it_writes_and_says_where_and_how_to_use_it(tmp_path, store, main, capsys):
    output = tmp_path / "set"
    assert main([str(store), "--output", str(output)]) == 0
    assert load_lerobot(output).n_episodes == 3
    said = capsys.readouterr().out
    assert said.startswith(f"3 episodes (41 steps) are in {output}, a LeRobot v3.0 data set\n")
    assert f'LeRobotDataset("local/pusht", root="{output}")' in said
    assert f"--dataset.root={output}" in said


def test_a_lerobot_set_is_taken_too_and_may_be_replaced_by_itself(tmp_path, store, main):
    main([str(store), "--output", str(tmp_path / "set")])
    assert main([str(tmp_path / "set"), "--output", str(tmp_path / "set"), "--force", "--task", "Do it."]) == 0
    assert load_lerobot(tmp_path / "set").n_steps == 41
    assert pq.read_table(tmp_path / "set/meta/tasks.parquet")["task"].to_pylist() == ["Do it."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.zarr", "--output", "new"], "no demonstrations at absent.zarr"),
        (["replay.zarr", "--output", "."], "exists already; nothing was changed"),
        (["replay.zarr", "--output", "replay.zarr", "--force"], "is no LeRobot data set"),
        (["replay.zarr", "--output", "replay.zarr/.zgroup/new"], "File exists"),
    ],
)
def test_errors_are_one_line(tmp_path, store, main, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_help_teaches(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for part in ("--output", "--force", "pusht_cchi_v7_replay.zarr", "observation.environment_state", "next.reward"):
        assert part in said


def test_output_is_required(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["replay.zarr"])
    assert stop.value.code == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--goal", "256,256,0"]])
def test_rewards_are_for_the_goal_that_the_store_names(tmp_path, main, given):
    """Two steps in which the block lies on a goal of its own."""
    state = np.tile(np.array([50.0, 50.0, 356.0, 356.0, 0.785], np.float32), (2, 1))
    episode = {"state": state, "action": state[:, :2], "keypoint": np.zeros((2, 9, 2))}
    write_replay(tmp_path / "elsewhere.zarr", [episode], {"goal_pose": [356.0, 356.0, 0.785]})
    assert main([str(tmp_path / "elsewhere.zarr"), "--output", str(tmp_path / "set"), *given]) == 0
    (file,) = (tmp_path / "set" / "data").rglob("*.parquet")
    rewards = pq.read_table(file)["next.reward"].to_pylist()
    assert (rewards == [1.0, 1.0]) is not bool(given)


def test_the_goal_goes_on_with_the_set_and_into_the_command_that_trains_on_it(tmp_path, main, capsys):
    state = np.tile(np.array([50.0, 50.0, 356.0, 356.0, 0.785], np.float32), (2, 1))
    episode = {"state": state, "action": state[:, :2], "keypoint": np.zeros((2, 9, 2))}
    write_replay(tmp_path / "elsewhere.zarr", [episode, episode], {"goal_pose": [356.0, 356.0, 0.7853981]})
    first, again = tmp_path / "set", tmp_path / "again"
    for source, output in ((tmp_path / "elsewhere.zarr", first), (first, again)):
        assert main([str(source), "--output", str(output)]) == 0
        assert goal_of(output) == (356.0, 356.0, 0.7853981)
        command = f"train_policy.py dataset.path={output} 'task.goal_pose=[356.0,356.0,0.7853981]'\n"
        assert capsys.readouterr().out.endswith(command)


def test_the_standard_goal_needs_no_setting(tmp_path, store, main, capsys):
    assert main([str(store), "--output", str(tmp_path / "set")]) == 0
    assert capsys.readouterr().out.endswith(f"train_policy.py dataset.path={tmp_path / 'set'}\n")
    assert goal_of(tmp_path / "set") == GOAL_POSE


@pytest.mark.parametrize("goal", ["1,2", "nan,1,2"])
def test_a_goal_that_is_no_pose_is_refused(store, main, capsys, goal):
    with pytest.raises(SystemExit):
        main([str(store), "--output", "new", "--goal", goal])
    assert f"'{goal}': must be three numbers, as in 356,356,0.785" in capsys.readouterr().err


def test_a_goal_outside_the_window_is_refused(store, main, capsys):
    with pytest.raises(SystemExit):
        main([str(store), "--output", "new", "--goal=600,256,0"])
    said = capsys.readouterr().err
    assert "error: argument --goal: goal is [600.0, 256.0, 0.0]; allowed: x and y in [0, 512] and an angle" in said


def test_lerobot_evaluates_only_where_its_goal_is_the_same(tmp_path, store, main, capsys):
    evaluation = "--env.type=pusht --env.obs_type=environment_state_agent_pos"
    assert main([str(store), "--output", str(tmp_path / "set")]) == 0
    assert evaluation in capsys.readouterr().out
    assert main([str(store), "--output", str(tmp_path / "elsewhere"), "--goal", "356,356,0.785"]) == 0
    said = capsys.readouterr().out
    assert evaluation not in said
    assert "(without --env.type=pusht: its goal is the standard one, so it would measure another task)" in said


def test_the_commands_that_are_printed_can_be_typed(tmp_path, make_store, main, capsys):
    make_store(tmp_path / "replay.zarr", lengths=(12,))
    output = tmp_path / "my set"
    assert main([str(tmp_path / "replay.zarr"), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert f" '--dataset.root={output}' --policy" in said
    assert said.endswith(f"train_policy.py 'dataset.path={output}' dataset.val_ratio=0\n")
