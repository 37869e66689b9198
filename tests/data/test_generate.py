"""Generated demonstrations: what is stored, and that neither kills nor the number of processes change it.

Most tests use a stand-in for the demonstrator, whose episodes begin where its would and last a few made-up steps.
"""

import multiprocessing
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from envs.pusht import PushTEnv
from envs.pusht.demonstrator import Demonstration
from envs.pusht.geometry import GOAL_POSE, Pose
from envs.pusht.physics import World
from immiscible_policy.data import generate
from immiscible_policy.data.generate import generate_demonstrations
from immiscible_policy.data.replay import DataError, load_replay
from immiscible_policy.data.replay_writer import ReplayWriter, read_attributes

NAMES = ("action", "keypoint", "n_contacts", "state")
ELSEWHERE = (356.0, 330.0, 0.5)
# Workers have the stand-in only where they are forked.
forked = pytest.mark.skipif(sys.platform != "linux", reason="workers are not forked here")

Arrays = dict[str, np.ndarray]


def outcome(state: np.ndarray) -> str:
    """What the stand-in does from an initial state: most it solves, some not, and some are solved before."""
    return {2: "unsolved", 5: "nothing to do"}.get(int(state[0]) % 8, "solved")


class StandIn:
    """In place of the demonstrator."""

    def __init__(self, config: object = None, goal_pose: Pose = GOAL_POSE) -> None:
        self.goal_pose = goal_pose

    def demonstrate(self, state: np.ndarray, legacy: bool = False, max_steps: int = 300) -> Demonstration:
        result = outcome(state)
        random = np.random.default_rng(int(state[:4] @ [1, 500, 250_000, 125_000_000]))
        world = World()
        world.place(state.tolist(), position_first=legacy)
        first = [*world.agent.position, *world.block.position, world.block.angle]
        length = 0 if result == "nothing to do" else int(random.integers(1, 7))
        states = np.array(first) + np.arange(length)[:, None] * random.uniform(-1.0, 1.0, 5)
        return Demonstration(
            states,
            random.uniform(0.0, 512.0, (length, 2)),
            random.integers(0, 3, length),
            0.5 if result == "unsolved" else 0.97,
            result != "unsolved",
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(generate, "Demonstrator", StandIn)
    return StandIn


def make(path: Path, n_episodes: int, **options: Any) -> Path:
    return generate_demonstrations(path, n_episodes, **{"processes": 1, "progress": False, **options})


def contents(path: Path) -> Arrays:
    """All arrays whole, tails beyond the last episode included."""
    root = zarr.open_group(path, mode="r")
    names = [f"data/{name}" for name in sorted(root["data"].array_keys())]  # type: ignore[union-attr]
    return {name: np.asarray(root[name][:]) for name in [*names, "meta/episode_ends"]}  # type: ignore[index]


def assert_same(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert read_attributes(one) == read_attributes(other)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lengths(path: Path) -> list[int]:
    return np.diff(load_replay(path, ()).episode_ends, prepend=0).tolist()


def begins(path: Path) -> np.ndarray:
    """First states of the episodes (E, 5)."""
    replay = load_replay(path, ("state",))
    return np.array([replay.arrays["state"][replay.episode(index)][0] for index in range(replay.n_episodes)])


def number_at(path: Path, episode: int) -> int:
    """The agent's x at the start of an episode: tells initial states apart."""
    return int(begins(path)[episode][0])


# --- what is stored ---


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("real") / "store.zarr", 2, images=True)


def test_episodes_of_the_demonstrator_replay_from_their_seeds(real: Path) -> None:
    replay = load_replay(real, (*NAMES, "img"))
    assert replay.n_episodes == 2
    for episode in range(2):
        # None was left out in between.
        [seed] = np.random.SeedSequence([0, episode]).generate_state(1).tolist()
        env, pixels, keypoints = (PushTEnv(kind, legacy=True) for kind in ("state", "pixels", "keypoints"))
        observation, info = env.reset(seed=seed)
        picture, places = pixels.reset(seed=seed)[0], keypoints.reset(seed=seed)[0]
        steps = replay.episode(episode)
        np.testing.assert_array_equal(replay.arrays["img"][steps][0], picture)
        np.testing.assert_allclose(replay.arrays["keypoint"][steps][0].ravel(), places[:18], atol=1e-3)
        assert replay.arrays["n_contacts"][steps][0] == info["n_contacts"]
        for state, action in zip(replay.arrays["state"][steps], replay.arrays["action"][steps], strict=True):
            np.testing.assert_allclose(observation, state, atol=0.1)
            observation, *_, info = env.step(action)
        assert info["is_success"]


def test_a_store_is_laid_out_as_the_human_one(real: Path, pusht_demonstrations: Path) -> None:
    made, human = (zarr.open_group(path, mode="r") for path in (real, pusht_demonstrations))
    assert made.metadata.zarr_format == human.metadata.zarr_format == 2
    assert set(made["data"].array_keys()) == set(human["data"].array_keys())  # type: ignore[union-attr]
    for name in NAMES:
        mine, theirs = made[f"data/{name}"], human[f"data/{name}"]
        assert (mine.dtype, mine.shape[1:]) == (theirs.dtype, theirs.shape[1:])  # type: ignore[union-attr]
    # Whole numbers in 0..255 in a quarter of the bytes.
    assert made["data/img"].dtype == np.uint8  # type: ignore[union-attr]
    assert made["data/img"].shape[1:] == human["data/img"].shape[1:]  # type: ignore[union-attr]
    assert made["meta/episode_ends"].dtype == human["meta/episode_ends"].dtype  # type: ignore[union-attr]
    loaded = [load_replay(path, ("state",)).arrays["state"][:, 4] for path in (real, pusht_demonstrations)]
    for angle in loaded:
        assert 0.0 <= angle.min() <= angle.max() <= np.float32(2.0 * np.pi)


@forked
def test_workers_make_what_one_process_makes(real: Path, tmp_path: Path) -> None:
    workers = make(tmp_path / "workers.zarr", 2, processes=2, images=True)
    assert_same(workers, real)


def test_episodes_are_the_solved_ones_of_a_seed_in_order(stand_in: type[StandIn], tmp_path: Path) -> None:
    path = make(tmp_path / "deep" / "er" / "store.zarr", 12, seed=3)
    replay = load_replay(path, NAMES)
    env, episode, left_out = PushTEnv(legacy=True), 0, set()
    for number in range(40):
        [seed] = np.random.SeedSequence([3, number]).generate_state(1).tolist()
        state = env.reset(seed=seed)[0]
        if outcome(state) != "solved":
            left_out.add(outcome(state))
        elif episode < 12:
            made = StandIn().demonstrate(generate.initial_state(seed), legacy=True)
            steps = replay.episode(episode)
            np.testing.assert_allclose(replay.arrays["state"][steps][0], state, rtol=1e-6)
            np.testing.assert_array_equal(replay.arrays["action"][steps], made.actions.astype(np.float32))
            np.testing.assert_array_equal(replay.arrays["n_contacts"][steps][:, 0], made.n_contacts)
            episode += 1
    assert left_out == {"unsolved", "nothing to do"}
    assert [child.name for child in path.parent.iterdir()] == ["store.zarr"]


def test_keypoints_and_pictures_show_the_states(stand_in: type[StandIn], tmp_path: Path) -> None:
    path = make(tmp_path / "store.zarr", 3, images=True, goal_pose=ELSEWHERE)
    replay = load_replay(path, ("state", "keypoint", "img"))
    pixels, keypoints = (PushTEnv(kind, goal_pose=ELSEWHERE) for kind in ("pixels", "keypoints"))
    for step in range(replay.n_steps):
        state = {"state": replay.arrays["state"][step].astype(np.float64)}
        places = keypoints.reset(options=state)[0][:18]
        np.testing.assert_allclose(replay.arrays["keypoint"][step].ravel(), places, atol=1e-3)
        picture = pixels.reset(options=state)[0]
        # Rounding of the stored state moves a pixel of an edge now and then.
        assert (replay.arrays["img"][step] != picture).mean() < 0.01


def test_a_store_says_how_it_was_made(stand_in: type[StandIn], tmp_path: Path) -> None:
    made = read_attributes(make(tmp_path / "store.zarr", 1, seed=5, goal_pose=(356, 330, 0.5)))
    assert made["made_by"] == "envs.pusht.demonstrator"
    assert (made["seed"], made["images"], made["goal_pose"], made["legacy"]) == (5, False, [356.0, 330.0, 0.5], True)
    assert made["version"] == generate.VERSION
    assert made["config"]["n_candidates"] >= 1


def test_seeds_and_goals_are_asked_of_the_demonstrator(stand_in: type[StandIn], tmp_path: Path) -> None:
    one, other = (make(tmp_path / f"{seed}.zarr", 3, seed=seed) for seed in (0, 1))
    assert not np.isin(begins(one)[:, 0], begins(other)[:, 0]).all()


# --- more of the same ---


@forked
@pytest.mark.parametrize("images", [False, True])
def test_more_episodes_extend_a_store(stand_in: type[StandIn], tmp_path: Path, images: bool) -> None:
    whole = make(tmp_path / "whole.zarr", 13, images=images, processes=2)
    grown = tmp_path / "grown.zarr"
    for n_episodes in (1, 4, 9, 13):
        make(grown, n_episodes, images=images)
        assert load_replay(grown, ()).n_episodes == n_episodes
        np.testing.assert_array_equal(begins(grown), begins(whole)[:n_episodes])
    assert_same(grown, whole)


def test_what_is_long_enough_is_left_alone(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make(tmp_path / "store.zarr", 5)
    before = files(tmp_path)
    monkeypatch.setattr(generate, "Demonstrator", None)
    monkeypatch.setattr(generate, "ReplayWriter", None)
    for n_episodes in (5, 2):
        assert make(path, n_episodes) == path
    assert files(tmp_path) == before


def test_a_store_with_pictures_goes_on_with_them(stand_in: type[StandIn], tmp_path: Path) -> None:
    path = make(tmp_path / "store.zarr", 2, images=True)
    make(path, 1)
    make(path, 4)
    assert_same(path, make(tmp_path / "whole.zarr", 4, images=True))


def test_a_home_folder_is_understood(stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make(Path("~/store.zarr"), 1) == tmp_path / "store.zarr"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("episode", [0, 1, 6])
def test_interrupted_and_resumed(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException], episode: int
) -> None:
    whole = make(tmp_path / "whole.zarr", 8)
    path = tmp_path / "cut.zarr"
    append = ReplayWriter.append

    def failing(writer: ReplayWriter, arrays: Arrays) -> None:
        if writer.n_episodes == episode:
            raise error("power failure")
        append(writer, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(ReplayWriter, "append", failing)
        with pytest.raises(error, match="power failure"):
            make(path, 8)
    if episode:
        assert lengths(path) == lengths(whole)[:episode]
    else:
        assert not path.exists()
    assert not path.with_name("cut.zarr.lock").exists()
    make(path, 8)
    assert_same(path, whole)


# --- processes: killed, interrupted, several at once ---


class Child:
    """A process that runs `work` in a group of its own; what it and its workers hold open tells when all are gone."""

    def __init__(self, work: Callable[[], Any], folder: Path) -> None:
        self.said = folder / f"said_{os.urandom(4).hex()}"
        self._alive, held = os.pipe()
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(work,))
        self.process.start()
        os.close(held)

    def _run(self, work: Callable[[], Any]) -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said = os.open(self.said, os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.stdout = sys.stderr
        code = 0
        try:
            work()
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def all_gone(self) -> bool:
        """Whether the process and all its workers end within seconds."""
        return bool(select.select([self._alive], [], [], 20.0)[0])

    def clean_up(self) -> None:
        """What is left after a failed test."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        os.close(self._alive)


Start = Callable[[Callable[[], Any]], Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(work) runs it in a `Child`."""
    children: list[Child] = []

    def begin(work: Callable[[], Any]) -> Child:
        children.append(Child(work, tmp_path))
        return children[-1]

    yield begin
    for child in children:
        child.clean_up()


class Gate:
    """The stand-in stops at a state until it is let through, and tells when it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, agent_x: int) -> None:
        there, self._there = os.pipe()
        self._open, opener = os.pipe()
        self._tells, self._opener = there, opener
        gate = self

        class Stopping(StandIn):
            def demonstrate(self, state: np.ndarray, legacy: bool = False, max_steps: int = 300) -> Demonstration:
                if int(state[0]) == agent_x:
                    os.write(gate._there, b".")
                    os.read(gate._open, 1)
                return super().demonstrate(state, legacy, max_steps)

        monkeypatch.setattr(generate, "Demonstrator", Stopping)

    def wait(self) -> None:
        assert select.select([self._tells], [], [], 20.0)[0]
        os.read(self._tells, 1)

    def let_through(self) -> None:
        os.write(self._opener, b".")


@pytest.fixture
def whole(stand_in: type[StandIn], tmp_path: Path) -> Path:
    """Twelve episodes, made without interruption."""
    return make(tmp_path / "whole.zarr", 12)


@forked
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed(
    whole: Path, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: int
) -> None:
    path = tmp_path / "killed.zarr"
    with monkeypatch.context() as patched:
        gate = Gate(patched, number_at(whole, 7))
        child = start(lambda: make(path, 12, processes=processes))
        gate.wait()
        os.kill(child.pid, signal.SIGKILL)
        # Also the worker that is in the middle of something.
        assert child.all_gone()
    n_episodes = load_replay(path, ()).n_episodes if path.exists() else 0
    assert n_episodes <= 7
    assert processes == 2 or n_episodes == 7
    make(path, 12, processes=2)
    assert_same(path, whole)
    assert not list(tmp_path.glob("*.lock"))


@forked
def test_ctrl_c_ends_all_processes_without_a_word(
    whole: Path, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The terminal sends it to the whole group."""
    path = tmp_path / "interrupted.zarr"
    with monkeypatch.context() as patched:
        gate = Gate(patched, number_at(whole, 7))
        child = start(lambda: make(path, 12, processes=2))
        gate.wait()
        os.killpg(child.pid, signal.SIGINT)
        assert child.all_gone()
    child.process.join()
    assert child.process.exitcode == 130
    assert child.said.read_text() == ""
    make(path, 12)
    assert_same(path, whole)


@forked
def test_a_killed_worker_is_an_error_and_not_an_endless_wait(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, deadly = tmp_path / "store.zarr", number_at(whole, 5)

    class Mortal(StandIn):
        def demonstrate(self, state: np.ndarray, legacy: bool = False, max_steps: int = 300) -> Demonstration:
            if int(state[0]) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().demonstrate(state, legacy, max_steps)

    with monkeypatch.context() as patched:
        patched.setattr(generate, "Demonstrator", Mortal)
        with pytest.raises(ChildProcessError, match="a worker process was killed"):
            make(path, 12, processes=2)
    assert not multiprocessing.active_children()
    make(path, 12)
    assert_same(path, whole)


@forked
def test_two_calls_at_once_make_one_store(
    whole: Path, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "shared.zarr"
    make(path, 3)
    with monkeypatch.context() as patched:
        gate = Gate(patched, number_at(whole, 7))
        first = start(lambda: make(path, 12))
        gate.wait()
        # Whoever needs no more than there is need not wait.
        third = start(lambda: make(path, 3))
        assert third.all_gone()
        says, said = os.pipe()

        def also() -> None:
            os.dup2(said, 2)
            make(path, 12)

        second = start(also)
        assert select.select([says], [], [], 20.0)[0]
        assert os.read(says, 1000).decode() == f"waiting for another process that makes demonstrations at {path}\n"
        gate.let_through()
        assert first.all_gone()
        assert second.all_gone()
    for child in (first, second, third):
        child.process.join()
        assert child.process.exitcode == 0
    assert_same(path, whole)
    assert not list(tmp_path.glob("*.lock"))


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_episodes": 0}, "n_episodes is 0; allowed: an integer of at least 1"),
        ({"n_episodes": 2.0}, "n_episodes is 2.0; allowed"),
        ({"n_episodes": True}, "n_episodes is True; allowed"),
        ({"n_episodes": None}, "n_episodes is None; allowed"),
        ({"seed": -1}, "seed is -1; allowed: an integer of at least 0"),
        ({"seed": "0"}, "seed is '0'; allowed"),
        ({"processes": 0}, "processes is 0; allowed: an integer of at least 1"),
        ({"processes": -2}, "processes is -2; allowed"),
        ({"goal_pose": (600.0, 256.0, 0.0)}, r"goal_pose is .*600.*; allowed: x and y in \[0, 512\]"),
        ({"goal_pose": (256.0, 256.0)}, "goal_pose is .*; allowed"),
        ({"goal_pose": (256.0, 256.0, float("nan"))}, "goal_pose is .*nan.*; allowed"),
        ({"goal_pose": "here"}, "goal_pose is 'here'; allowed"),
    ],
)
def test_bad_arguments_write_nothing(
    stand_in: type[StandIn], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "folder" / "store.zarr", **{"n_episodes": 1, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed is 0 there, 1 is asked for"),
        ({"images": True}, "images is False there, True is asked for"),
        (
            {"goal_pose": ELSEWHERE},
            r"goal_pose is \[256.0, 256.0, 0.785\d*\] there, \[356.0, 330.0, 0.5\] is asked for",
        ),
    ],
)
@pytest.mark.parametrize("n_episodes", [1, 5])
def test_a_store_made_otherwise_is_refused(
    stand_in: type[StandIn], tmp_path: Path, options: dict[str, Any], message: str, n_episodes: int
) -> None:
    path = make(tmp_path / "store.zarr", 2)
    before = files(tmp_path)
    with pytest.raises(DataError, match=rf"store.zarr holds demonstrations made otherwise \({message}\): choose"):
        make(path, n_episodes, **options)
    assert files(tmp_path) == before


def test_other_settings_of_the_demonstrator_are_other_demonstrations(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make(tmp_path / "store.zarr", 2)
    with monkeypatch.context() as patched:
        patched.setattr(generate, "VERSION", generate.VERSION + 1)
        with pytest.raises(DataError, match=r"made otherwise \(version is"):
            make(path, 2)
    config = generate.DemonstratorConfig
    monkeypatch.setattr(generate, "DemonstratorConfig", lambda: config(patience=config().patience + 1))
    with pytest.raises(DataError, match=r"made otherwise \(config is"):
        make(path, 2)


def test_what_the_demonstrator_did_not_make_is_refused(
    stand_in: type[StandIn], make_store: Callable[..., Arrays], tmp_path: Path
) -> None:
    make_store(tmp_path / "other.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("here")
    before = files(tmp_path)
    for name, message in {
        "other.zarr": "made_by is None there",
        "folder": "is not a zarr store but an empty folder: to write one there, remove the folder",
        "file": "neither a zarr directory nor a complete zip archive",
    }.items():
        with pytest.raises(DataError, match=message):
            make(tmp_path / name, 1)
    assert files(tmp_path) == before


@pytest.mark.parametrize(("every", "attempts", "solved"), [(1000, 11, 0), (3, 16, 5)])
def test_a_goal_out_of_reach_ends_in_an_error(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, every: int, attempts: int, solved: int
) -> None:
    made: list[bool] = []

    def rarely(self: StandIn, state: np.ndarray, legacy: bool = False, max_steps: int = 300) -> Demonstration:
        made.append((len(made) + 1) % every == 0)
        assert len(made) < 100
        return Demonstration(np.ones((2, 5)), np.ones((2, 2)), np.zeros(2, np.int64), 0.0, made[-1])

    monkeypatch.setattr(StandIn, "demonstrate", rarely)
    message = rf"solved {solved} of {attempts} initial states for goal_pose=\(1.0, 2.0, 0.0\): is the goal within reach"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "store.zarr", 50, goal_pose=(1, 2, 0))
    assert len(made) == attempts
    assert (tmp_path / "store.zarr").exists() == (solved > 0)
    if solved:
        assert load_replay(tmp_path / "store.zarr", NAMES).n_episodes == solved


def test_progress_is_shown_where_asked(
    stand_in: type[StandIn], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "quiet.zarr", 2)
    assert capsys.readouterr() == ("", "")
    make(tmp_path / "shown.zarr", 2, progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "2/2" in said.err
