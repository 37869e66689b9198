"""The benchmark of environments at toy sizes, with interpreters that only pretend to have gym-pusht."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = ["--only", "environment", "--rounds", "3", "--num-envs", "3", "2"]
VERSIONS = {"gym-pusht": "0.1.8", "pymunk": "6.11.1"}
OURS = [
    ("state", "ours, make", 1),
    ("state", "ours, make_vec(2)", 2),
    ("state", "ours, make_vec(3)", 3),
    ("keypoints", "ours, make_vec(3)", 3),
    ("pixels", "ours, make", 1),
    ("pixels", "ours, make_vec(3)", 3),
]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("script_benchmark", SCRIPTS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def section(benchmark, monkeypatch) -> ModuleType:
    """The section's module, with slices of a few steps and short episodes."""
    module = benchmark.benchmark_environment
    monkeypatch.setattr(module, "SLICE_S", 1e-3)
    monkeypatch.setattr(module, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(gymnasium.registry["immiscible/PushT-v0"], "max_episode_steps", 4)
    return module


@pytest.fixture
def make_interpreter(tmp_path) -> Callable[[str], Path]:
    """make_interpreter(source) -> a program that runs `source` instead of the file it is given."""

    def make(source: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable} -S\nimport json, sys\n{source}\n")
        path.chmod(0o755)
        return path

    return make


GREETING = f"print(json.dumps({VERSIONS}), flush=True)"


def rows_of(benchmark, output: Path, *options: str) -> list[dict]:
    assert benchmark.main([*TINY, "--output", str(output), *options]) == 0
    return json.loads(output.read_text())["environment"]


def test_without_gym_pusht_its_rows_say_how_to_get_it(benchmark, section, tmp_path, capsys):
    rows = rows_of(benchmark, tmp_path / "rows.json")
    skipped, measured = rows[:2], rows[2:]
    assert [(row["observation"], row["contender"]) for row in skipped] == [
        ("state", "gym-pusht"),
        ("pixels", "gym-pusht"),
    ]
    assert all(section.INSTALL in row["skipped"] for row in skipped)
    assert [(row["observation"], row["contender"], row["num_envs"]) for row in measured] == OURS
    for row in measured:
        speed = row["steps_per_s"]
        assert 0 < speed["lower_quartile"] <= speed["median"] <= speed["upper_quartile"]
        assert set(row["versions"]) == {"pymunk", "gymnasium", "numpy"}
        assert "speed_over_gym_pusht" not in row
    printed = capsys.readouterr().out
    assert printed.count("skipped") == 2
    assert section.INSTALL in printed


def test_with_gym_pusht_speeds_are_held_against_it(benchmark, section, make_interpreter, tmp_path, capsys):
    """It claims 1000 steps a second with state and 100 with pixels; ratios are then our speeds over these."""
    log = tmp_path / "requests"
    python = make_interpreter(
        f"{GREETING}\nlog = open({str(log)!r}, 'a')\n"
        "for line in sys.stdin:\n"
        "    kind, steps = line.split()\n"
        "    print(kind, steps, file=log, flush=True)\n"
        "    print(int(steps) / dict(state=1000, pixels=100)[kind], flush=True)\n"
    )
    rows = rows_of(benchmark, tmp_path / "rows.json", "--gym-pusht-python", str(python))
    theirs = {row["observation"]: row for row in rows if row["contender"] == "gym-pusht 0.1.8"}
    ours = [row for row in rows if row not in theirs.values()]
    assert [(row["observation"], row["contender"], row["num_envs"]) for row in ours] == OURS
    claimed = {"state": 1000, "pixels": 100}
    assert set(theirs) == set(claimed)
    for kind, row in theirs.items():
        assert row["versions"] == VERSIONS
        assert row["num_envs"] == 1
        assert row["steps_per_s"] == pytest.approx({**dict.fromkeys(row["steps_per_s"], claimed[kind]), "rounds": 3})
        assert row["speed_over_gym_pusht"]["median"] == 1
    for row in ours:
        kind = "pixels" if row["observation"] == "pixels" else "state"
        assert row["compared_with"] == f"{kind}, gym-pusht 0.1.8"
        expected = {name: speed / claimed[kind] for name, speed in row["steps_per_s"].items()}
        # Quartiles are interpolated: of speeds and of times they differ a little, the median of three does not.
        assert row["speed_over_gym_pusht"]["median"] == pytest.approx(expected["median"])
        assert set(row["speed_over_gym_pusht"]) == set(expected)
    # One step to warm up, then in each of three rounds as many as fit into a millisecond.
    assert log.read_text().splitlines() == ["state 1", "pixels 1", *["state 1", "pixels 1"] * 3]
    printed = capsys.readouterr().out
    assert "pymunk 6.11.1" in printed
    assert f"pymunk {rows[1]['versions']['pymunk']}" in printed
    assert "skipped" not in printed


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "print('Traceback', file=sys.stderr); sys.exit('ModuleNotFoundError: No module named x')",
            "No module named x",
        ),
        ("print('usage: another program')", "usage: another program"),
        ("sys.exit(1)", "without a word"),
        ("print('{}')", "without the version"),
    ],
)
def test_interpreter_without_gym_pusht_is_refused_before_any_work(benchmark, make_interpreter, capsys, source, reason):
    python = make_interpreter(source)
    with pytest.raises(SystemExit) as refused:
        benchmark.main(["--gym-pusht-python", str(python)])
    assert refused.value.code == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert "--gym-pusht-python" in last
    assert str(python) in last
    assert reason in last
    assert out == ""


def test_interpreter_that_does_not_exist_is_refused(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--gym-pusht-python", str(tmp_path / "none")])
    assert f"cannot start {tmp_path / 'none'}: No such file" in capsys.readouterr().err.splitlines()[-1]


def test_gym_pusht_that_stops_answering_ends_in_one_line(benchmark, section, make_interpreter, capsys):
    python = make_interpreter(f"{GREETING}\nsys.stdin.readline(); sys.exit('out of memory')")
    assert benchmark.main([*TINY, "--gym-pusht-python", str(python)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "out of memory" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("count", ["0", "-1", "some"])
def test_bad_numbers_of_worlds_are_refused(benchmark, count, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--num-envs", "4", count])
    assert "--num-envs" in capsys.readouterr().err


# A package that passes for gym-pusht: it greets on standard output, wants one thread for OpenCV, refuses steps after an
# episode's end, and writes down its actions.
STAND_IN = """
import gymnasium, numpy, cv2
print("hello from a library")

class Environment(gymnasium.Env):
    action_space = gymnasium.spaces.Box(0, 512, (2,), numpy.float32)
    observation_space = gymnasium.spaces.Box(0, 1, (1,), numpy.float64)

    def __init__(self, obs_type):
        self.log = open(obs_type, "a")

    def reset(self, *, seed=None, options=None):
        print("reset", seed, file=self.log, flush=True)
        self.left = 5
        return numpy.zeros(1), {}

    def step(self, action):
        assert cv2.threads == 1 and self.left > 0
        self.left -= 1
        print(*action.tolist(), file=self.log, flush=True)
        return numpy.zeros(1), 0.0, self.left == 0, False, {}

gymnasium.register("gym_pusht/PushT-v0", Environment)
"""


def test_the_worker_plays_gym_pusht_with_our_actions(section, tmp_path, monkeypatch):
    (tmp_path / "gym_pusht").mkdir()
    (tmp_path / "gym_pusht" / "__init__.py").write_text(STAND_IN)
    (tmp_path / "cv2.py").write_text(
        "threads = 0\ndef setNumThreads(count):\n    global threads\n    threads = count\n"
    )
    (tmp_path / "gym_pusht-0.1.8.dist-info").mkdir()
    (tmp_path / "gym_pusht-0.1.8.dist-info" / "METADATA").write_text("Name: gym-pusht\nVersion: 0.1.8\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with section.GymPusht(Path(sys.executable), seed=7) as gym_pusht:
        assert gym_pusht.versions["gym-pusht"] == "0.1.8"
        assert gym_pusht.seconds("state", 3) > 0
        assert gym_pusht.seconds("pixels", 1) > 0
        assert gym_pusht.seconds("state", 4) > 0
    lines = (tmp_path / "state").read_text().splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("reset")] == [0, 6]
    actions = [[float(part) for part in line.split()] for line in lines if not line.startswith("reset")]
    assert actions == section.random_actions(7, 1)[:7, 0].tolist()


def test_actions_of_a_world_do_not_depend_on_how_many_there_are(section):
    many = section.random_actions(3, 5)
    assert many.dtype == np.float32
    assert (many >= 0).all()
    assert (many <= 512).all()
    assert np.array_equal(many[:, :2], section.random_actions(3, 2))
    assert len(np.unique(many[0], axis=0)) == 5
    assert not np.array_equal(many, section.random_actions(4, 5))


def test_resets_of_worlds_are_spread_timed_and_not_counted(section, monkeypatch):
    """Four worlds, episodes of four steps and one that resets: in five calls 16 steps, each world resetting once."""
    environment = gymnasium.make_vec(section.ENVIRONMENT, num_envs=4)
    episodes = section.VectorEpisodes(environment, seed=0)
    now, ended, step = [0.0], [], environment.step

    def step_of_a_second(actions):
        result = step(actions)
        now[0] += 1.0
        ended.append(int(result[3].sum()))
        return result

    monkeypatch.setattr(environment, "step", step_of_a_second)
    monkeypatch.setattr(section.time, "perf_counter", lambda: now[0])
    assert episodes.seconds_per_step(16) == pytest.approx(5 / 16)
    assert sorted(ended) == [0, 1, 1, 1, 1]
