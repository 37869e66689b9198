"""The main job from the command line, on made-up demonstrations and networks of a few thousand parameters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from envs.pusht.demonstrator import Demonstration
from envs.pusht.physics import World
from immiscible_policy.coupling.spec import parse_coupling
from immiscible_policy.data import generate, sources
from immiscible_policy.data.replay import load_replay
from immiscible_policy.files import locked
from immiscible_policy.policy import load_policy
from immiscible_policy.training.checkpoint import load_state
from immiscible_policy.training.metrics import read_metrics

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_policy.py"
COUPLINGS = ", ".join(sorted(path.stem for path in (SCRIPT.parents[1] / "configs" / "coupling").glob("*.yaml")))
TINY = (
    "preset=quick",
    "steps=8",
    "batch_size=16",
    "policy=mlp",
    "policy.network.width=16",
    "policy.network.n_blocks=1",
    "policy.num_inference_steps=2",
    "task.max_steps=16",
    "rollout.n_episodes=2",
    "rollout.num_inference_steps=2",
    "evaluation.n_episodes=3",
    "evaluation.num_inference_steps=2",
    "evaluation.n_videos=1",
    "trainer.evaluate_every=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=4",
    "trainer.log_every=2",
    "trainer.mixed_precision=fp32",
    "dataset.val_ratio=0.3",
    "num_threads=1",
    "device=cpu",
)


@pytest.fixture
def store(tmp_path, make_store) -> Path:
    make_store(tmp_path / "store.zarr", lengths=(40, 30, 25))
    return tmp_path / "store.zarr"


def tiny(store: Path, run_dir: str, *more: str) -> list[str]:
    return [*TINY, f"dataset.path={store}", f"hydra.run.dir={run_dir}", *more]


def test_coupled_inference_is_checked_before_training_and_recorded(run_script, store: Path, tmp_path, capsys) -> None:
    assert run_script("train_policy", *tiny(store, "cached", "coupling=seed_cache", "inference_coupling=warm")) == 1
    assert "SeedCache keeps noises" in capsys.readouterr().err
    assert not (tmp_path / "cached" / "checkpoints").exists()
    assert run_script("train_policy", *tiny(store, "run", "coupling=assignment", "inference_coupling=warm")) == 0
    settings = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation_settings"]
    assert settings["inference_coupling"] == "warm"
    policy = load_policy(tmp_path / "run" / "checkpoints" / "best")
    assert policy.n_companions > 0
    assert int(policy.companion_batch_size) == 16


@pytest.mark.parametrize("coupling", ["coupling=none", "coupling=knn", "coupling=assignment"])
def test_a_run_leaves_everything_behind(run_script, store: Path, tmp_path: Path, capsys, coupling: str) -> None:
    assert run_script("train_policy", *tiny(store, "run", coupling, "k=3")) == 0
    run_dir = tmp_path / "run"
    assert {"step=0000004", "step=0000008", "best", "latest"} == {p.name for p in (run_dir / "checkpoints").iterdir()}
    assert {".hydra", "metrics.jsonl", "summary.json", "media", "checkpoints"} <= {p.name for p in run_dir.iterdir()}
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert {"eval.json", "film_strip.png", "episode_100000.mp4"} == {p.name for p in (run_dir / "media").iterdir()}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 8
    assert summary["final"]["max_coverage"]["n"] == 3
    assert summary["rollouts"]["max_reward"]["max_score"]["n_points"] == 2
    lines = read_metrics(run_dir / "metrics.jsonl")
    coupled = [line for line in lines if "validation/loss_coupled" in line]
    assert bool(coupled) == (coupling != "coupling=none")
    assert sum("validation/loss_independent" in line for line in lines) == 2
    best = load_policy(run_dir / "checkpoints" / "best")
    assert best.task["obs_type"] == "keypoints"
    assert str(parse_coupling(best.coupling)) == summary["coupling"]
    printed = capsys.readouterr().out
    assert ("has no effect" in printed) == (coupling != "coupling=knn")
    for path in ("run/summary.json", "run/media/film_strip.png", "run/checkpoints/step=0000008"):
        assert path in printed


@pytest.mark.parametrize(
    "coupling",
    [
        ("coupling=knn", "k=3"),
        ("coupling=warmup", "k=3", "coupling.start=3", "coupling.anneal_to={k: 1}", "coupling.anneal_over=4"),
        ("coupling=seed_cache", "coupling.n_caches=2", "coupling.resample_every=1"),
        ("coupling=assignment_c2ot",),
        ("coupling=assignment_clusters", "coupling.condition_weight.n_clusters=4"),
        ("coupling=residual",),
    ],
    ids=lambda coupling: coupling[0],
)
def test_killed_and_resumed_from_the_command_line(coupling, run_script, store, tmp_path, monkeypatch) -> None:
    assert run_script("train_policy", *tiny(store, "whole", *coupling)) == 0

    from immiscible_policy.training import trainer

    save = trainer.save_state
    killed: list[bool] = []

    def save_and_die(folder: Path, state: dict) -> None:
        save(folder, state)
        if not killed:
            killed.append(True)
            raise OSError("power failure")

    monkeypatch.setattr(trainer, "save_state", save_and_die)
    assert run_script("train_policy", *tiny(store, "killed", *coupling)) == 1
    assert not (tmp_path / "killed" / "summary.json").exists()
    before = (tmp_path / "killed" / ".hydra" / "config.yaml").read_text()
    assert run_script("train_policy", "resume=killed", "num_threads=1") == 0
    assert (tmp_path / "killed" / ".hydra" / "config.yaml").read_text() == before
    final = [load_policy(tmp_path / name / "checkpoints" / "step=0000008").state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")]
    assert summaries[0]["final"] == summaries[1]["final"]
    assert summaries[0]["coupling"] == summaries[1]["coupling"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(run_script, store: Path, tmp_path: Path) -> None:
    assert run_script("train_policy", *tiny(store, "whole")) == 0
    shutil.copytree(tmp_path / "whole" / ".hydra", tmp_path / "killed" / ".hydra")
    (tmp_path / "killed" / "checkpoints").mkdir()
    assert run_script("train_policy", "resume=killed") == 0
    final = [load_policy(tmp_path / name / "checkpoints" / "step=0000008").state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coupling=knn", "k=0"], "k must be an integer >= 1, got 0"),
        (["coupling=knnn"], f"coupling=knnn: choose one of {COUPLINGS}"),
        (["kk=3"], "unknown setting 'kk': choose one of batch_size, coupling"),
        (["trainer.lr=1"], "unknown setting 'lr' in trainer: choose one of batch_size, betas"),
        (
            ["+policy/encoder=convnet", "policy.encoder.chanels=[4]"],
            "unknown setting 'chanels' in policy.encoder: choose one of channels, crop",
        ),
        (
            ["policy.network={name: transformer, n_layers: 2}"],
            "unknown setting 'n_layers' in policy.network: choose one of activation, n_blocks",
        ),
        (["policy.network.name=transformer"], "network 'transformer' has no width, n_blocks"),
        (["trainer.lr_schedule=cos"], "lr_schedule='cos': choose one of"),
        (["device=gpu"], "device='gpu': choose auto, cpu"),
        (["dataset.path=nowhere"], "nowhere"),
        (["task.obs_type=pixels"], "obs_type"),
        (["policy.network.name=unet"], "network.name='unet'"),
        (["policy.n_action_steps=20"], "n_action_steps must be in 1..horizon - n_obs_steps + 1 = 15, got 20"),
        (["hydra.run.dir=store.zarr/.zgroup/run"], "Not a directory"),
        (["num_threads=0"], "num_threads=0: must be an integer of at least 1, or null"),
        (["seed=1.5"], "seed=1.5: must be an integer"),
        (["epochs=0"], "epochs=0: must be positive, or null"),
        (["evaluation.num_inference_steps=abc"], "evaluation.num_inference_steps=abc: must be a number"),
        (["rollout.num_inference_steps=1000"], "num_inference_steps=1000: choose 1 to 100"),
        (["evaluation.seed_start=-1"], "seed_start=-1: must be an integer of at least 0"),
        (["evaluation.n_episodes=abc"], "evaluation.n_episodes=abc: must be a number"),
        (["trainer.betas=3"], "trainer.betas=3: must be a list: [3]"),
        (["resume=store.zarr"], "not a run folder"),
        (["resume="], "resume=: give the folder of the run to go on with, or leave it out"),
        (["++resume=store.zarr"], "not a run folder"),
        (["rollout.n_videos=5"], "rollout.n_videos=5: rollouts while training record none; evaluation.n_videos does"),
        (["task.max_steps=0"], "max_episode_steps is 0"),
        (["task.env_id=Elsewhere-v0"], "Elsewhere"),
        (["dataset.split_seed=-1"], "dataset.split_seed=-1: must be an integer of at least 0 and below 2^32"),
        (
            ["evaluation.seed_start=4294967294"],
            "seed_start + n_episodes - 1=4294967296: must be an integer of at least 0",
        ),
    ],
)
def test_bad_input_ends_in_one_clear_line(
    run_script, store: Path, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    base = [] if arguments[0].startswith("resume") else tiny(store, "bad")
    assert run_script("train_policy", *base, *arguments) == 1
    stderr = capsys.readouterr().err
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("error: ")
    assert message in stderr
    assert not (tmp_path / "bad" / "summary.json").exists()


def test_nothing_is_overwritten(run_script, store: Path, tmp_path: Path, capsys) -> None:
    assert run_script("train_policy", *tiny(store, "run")) == 0
    contents = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert tmp_path / "run" / ".hydra" / "config.yaml" in contents  # by which it is resumed
    assert run_script("train_policy", *tiny(store, "run", "seed=1")) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert run_script("train_policy", "resume=run", "steps=16") == 1
    assert "steps=16: a resumed run keeps its configuration" in capsys.readouterr().err
    assert contents == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_one_process_at_a_time_trains_in_a_folder(run_script, store: Path, tmp_path: Path, capsys) -> None:
    with locked(tmp_path / "run", ".lock"):
        assert run_script("train_policy", *tiny(store, "run")) == 1
        assert "run: another process trains there; choose another folder" in capsys.readouterr().err
        assert not (tmp_path / "run" / ".hydra").exists()
    assert run_script("train_policy", *tiny(store, "run")) == 0
    with locked(tmp_path / "run", ".lock"):
        assert run_script("train_policy", "resume=run") == 1
        assert "run: another process trains there; wait for it, or stop it" in capsys.readouterr().err


def test_a_start_that_failed_leaves_the_folder_to_the_next(run_script, store: Path, tmp_path: Path, capsys) -> None:
    assert run_script("train_policy", *tiny(store, "run", "batch_size=30000")) == 1
    assert "batch_size=30000" in capsys.readouterr().err
    assert run_script("train_policy", *tiny(store, "run")) == 0
    assert OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml").batch_size == 16


def test_a_checkpoint_from_another_configuration_and_a_half_written_one(
    run_script, store: Path, tmp_path: Path, capsys
) -> None:
    assert run_script("train_policy", *tiny(store, "run")) == 0
    config = tmp_path / "run" / ".hydra" / "config.yaml"
    text = config.read_text()
    assert "learning_rate: 0.0005" in text
    config.write_text(text.replace("learning_rate: 0.0005", "learning_rate: 0.1"))
    assert run_script("train_policy", "resume=run") == 1
    assert "is from another configuration: learning_rate=0.1 (saved with 0.0005)" in capsys.readouterr().err
    config.write_text(text)
    state = tmp_path / "run" / "checkpoints" / "latest" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    assert run_script("train_policy", "resume=run") == 1
    assert "damaged or half-written" in capsys.readouterr().err


def test_evaluation_and_table_of_finished_runs(run_script, store: Path, tmp_path: Path, capsys) -> None:
    for seed in (0, 1):
        for coupling in ("none", "knn"):
            arguments = tiny(store, f"runs/{coupling}{seed}", f"coupling={coupling}", f"seed={seed}")
            assert run_script("train_policy", *arguments) == 0
    assert run_script("coverage_table", "runs", "--output", "table.json", "--figure", "curves.png") == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| `Independent()` | 2 |" in printed
    assert json.loads((tmp_path / "table.json").read_text())["rows"][1]["seeds"] == [0, 1]
    evaluate = ["n_episodes=2", "n_videos=1", "num_inference_steps=3", "device=cpu", "hydra.run.dir=evaluation"]
    assert run_script("eval_policy", "checkpoint=runs/knn1", *evaluate) == 0
    report = json.loads((tmp_path / "evaluation" / "eval.json").read_text())
    assert report["settings"]["num_inference_steps"] == 3
    assert report["settings"]["n_episodes"] == 2
    assert (tmp_path / "evaluation" / "film_strip.png").exists()
    assert run_script("eval_policy", "checkpoint=store.zarr", *evaluate) == 1
    assert "neither a policy folder" in capsys.readouterr().err
    assert run_script("eval_policy") == 1
    assert "error: checkpoint is not set" in capsys.readouterr().err
    assert run_script("eval_policy", "checkpoint=runs/knn1", "steps=3") == 1
    assert "unknown setting 'steps': choose one of checkpoint, device, first_chunk" in capsys.readouterr().err
    assert run_script("coverage_table", "store.zarr") == 1
    assert "no finished run" in capsys.readouterr().err


def test_the_real_command_in_its_own_process(store: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *tiny(store, "run", "coupling=knn", "k=2", "steps=4")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "max_coverage" in done.stdout
    help_text = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout
    assert "coupling=knn k=2" in help_text
    assert f"coupling: {COUPLINGS}" in help_text


def test_two_processes_train_one_model_and_resume(store: Path, tmp_path: Path) -> None:
    def launch(*arguments: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(SCRIPT)]
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    # Each process takes its own half of a global batch of 16, so an epoch is as long as for one process of 16.
    launch(*tiny(store, "run", "coupling=assignment", "coupling.across_ranks=true", "steps=4", "batch_size=8"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["step"] == 4
    state = load_state(tmp_path / "run" / "checkpoints" / "latest")
    assert len(state["rng"]) == 2
    assert not torch.equal(state["rng"][0]["generator"], state["rng"][1]["generator"])
    (tmp_path / "run" / "summary.json").unlink()
    launch("resume=run")
    assert (tmp_path / "run" / "summary.json").exists()


HUMAN = Path("data/pusht/pusht_cchi_v7_replay.zarr")


class StandIn:
    """In place of the demonstrator: thirty made-up steps from where its episodes begin."""

    def __init__(self, config: object = None, goal_pose: object = None) -> None:
        pass

    def demonstrate(self, state: np.ndarray, legacy: bool = False, max_steps: int = 300) -> Demonstration:
        world = World()
        world.place(state.tolist(), position_first=legacy)
        first = np.array([*world.agent.position, *world.block.position, world.block.angle])
        states = first + np.arange(30)[:, None] * [1.0, 0.5, 0.0, 0.0, 0.0]
        return Demonstration(states, states[:, :2] + 1.0, np.zeros(30, np.int64), 0.97, True)


# How TINY chooses what is trained on.
SPLIT = {"val_ratio": 0.3, "split_seed": 42, "max_train_episodes": None}


def held_by(path: Path) -> str:
    """The digest of what a policy that sees keypoints is trained on."""
    return load_replay(path).sha256(("action", "state", "keypoint"))


def said_of_demonstrations(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("demonstrations: ")]


def test_the_demonstrators_are_made_once(run_script, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(generate, "Demonstrator", StandIn)
    options = ["dataset=demonstrator", "dataset.demonstrator.n_episodes=3", "dataset.demonstrator.seed=2"]
    assert run_script("train_policy", *TINY, *options, "hydra.run.dir=run", "coupling=none") == 0
    made = "data/pusht/demonstrator_seed2.zarr"
    assert said_of_demonstrations(capsys.readouterr().out) == [f"demonstrations: 3 of the demonstrator at {made}"]
    named = {"path": made, "n_episodes": 3, "n_steps": 90, "sha256": held_by(tmp_path / made), **SPLIT}
    summary = tmp_path / "run" / "summary.json"
    assert json.loads(summary.read_text())["demonstrations"] == named
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    summary.unlink()
    monkeypatch.setattr(generate, "Demonstrator", None)
    assert run_script("train_policy", "resume=run") == 0
    assert json.loads(summary.read_text())["demonstrations"] == named
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}


def test_the_human_ones_are_taken_where_they_are(run_script, tmp_path: Path, make_store, monkeypatch, capsys) -> None:
    make_store(tmp_path / HUMAN, lengths=(40, 30, 25))
    monkeypatch.setattr(sources, "generate_demonstrations", None)
    assert run_script("train_policy", *TINY, "hydra.run.dir=run", "steps=1", "evaluation.n_videos=0") == 0
    assert said_of_demonstrations(capsys.readouterr().out) == [f"demonstrations: the human ones at {HUMAN}"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    held = {"n_episodes": 3, "n_steps": 95, "sha256": held_by(tmp_path / HUMAN)}
    assert summary["demonstrations"] == {"path": str(HUMAN), **held, **SPLIT}


def test_a_resumed_run_goes_on_with_the_demonstrations_that_it_began_with(
    run_script, tmp_path: Path, make_store, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(generate, "Demonstrator", StandIn)
    options = ["dataset.demonstrator.n_episodes=3", "steps=1", "evaluation.n_videos=0"]
    for name in ("made", "human"):
        assert run_script("train_policy", *TINY, *options, f"hydra.run.dir={name}") == 0
        (tmp_path / name / "summary.json").unlink()
        make_store(tmp_path / HUMAN, lengths=(40, 30, 25))
    capsys.readouterr()
    for name, path in (("made", "data/pusht/demonstrator_seed0.zarr"), ("human", str(HUMAN))):
        assert run_script("train_policy", f"resume={name}") == 0
        assert json.loads((tmp_path / name / "summary.json").read_text())["demonstrations"]["path"] == path
    shutil.rmtree(tmp_path / HUMAN)
    assert run_script("train_policy", "resume=human") == 1
    assert f"error: no demonstrations at {HUMAN}" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_demonstrations_that_have_grown(
    run_script, store: Path, tmp_path: Path, make_store, capsys
) -> None:
    assert run_script("train_policy", *tiny(store, "run", "steps=4", "evaluation.n_videos=0")) == 0
    run_dir = tmp_path / "run"
    summary, record = (json.loads((run_dir / name).read_text()) for name in ("summary.json", "demonstrations.json"))
    (run_dir / "summary.json").unlink()
    make_store(store, lengths=(40, 30, 25, 20))
    capsys.readouterr()
    assert run_script("train_policy", "resume=run") == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "n_episodes=4 (began with 3), n_steps=115 (began with 95); restore them, or start a new run" in said
    assert json.loads((run_dir / "demonstrations.json").read_text()) == record
    make_store(store, lengths=(40, 30, 25))
    # Records of earlier versions say less.
    (run_dir / "demonstrations.json").write_text(json.dumps({"path": str(store), "n_episodes": 3}))
    assert run_script("train_policy", "resume=run") == 0
    assert json.loads((run_dir / "summary.json").read_text())["final"] == summary["final"]
    assert json.loads((run_dir / "demonstrations.json").read_text()) == {"path": str(store), "n_episodes": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset=human"], f"no demonstrations at {HUMAN}: get it with `python scripts/download_pusht.py`, point"),
        (["dataset=humans"], "dataset=humans: choose one of auto, celeba, cifar10, coco, demonstrator"),
        (["dataset=demonstrator", "dataset.demonstrator.n_episodes=0"], "n_episodes is 0; allowed: an integer"),
        (["dataset.demonstrator.seed=-1"], "seed is -1; allowed: an integer of at least 0"),
        (["dataset.demonstrator.episodes=3"], "unknown setting 'episodes' in dataset.demonstrator: choose one of"),
        (["dataset=demonstrator", "dataset.demonstrator=null"], "dataset: give a path, the human demonstrations or"),
    ],
)
def test_without_demonstrations_it_ends_in_one_clear_line(
    run_script, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    assert run_script("train_policy", *TINY, "hydra.run.dir=run", *options) == 1
    stderr = capsys.readouterr().err
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(f"error: {message}")
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_the_default_configuration_reaches_the_stated_coverage(
    run_script, tmp_path: Path, pusht_demonstrations: Path
) -> None:
    assert run_script("train_policy", f"dataset.path={pusht_demonstrations}", "hydra.run.dir=run", "device=cpu") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation_settings"]["n_episodes"] == 200
    assert summary["final"]["max_coverage"]["mean"] >= 0.90
    assert summary["training_seconds"]["cpu"] < 30 * 60
