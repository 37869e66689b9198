"""The benchmark of training steps: the rebuilt loops compute what ours computes, and the section runs at toy sizes."""

import importlib
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.policy.networks import ConditionalUNet1D
from immiscible_policy.policy.networks.unet1d import SequenceConv, Upsample

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DIMS, EMBEDDING = (8, 16), 8


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The scripts' modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        names = ("benchmark", "benchmark_training", "benchmark_training_turns", "benchmark_training_seeds")
        published = ("benchmark_published_network", "benchmark_published_training")
        yield {name: importlib.import_module(name) for name in names + published}
        for name in [name for name in sys.modules if name.split("_")[0] == "benchmark"]:
            del sys.modules[name]


@pytest.fixture
def published(modules, monkeypatch) -> ModuleType:
    """The published loops with one worker each."""
    module = modules["benchmark_published_training"]
    monkeypatch.setattr(module, "LEROBOT_WORKERS", 1)
    return module


@pytest.fixture
def data(published):
    return published.Demonstrations(0, n_episodes=3, length=30)


def copy_weights(theirs: nn.Module, ours: ConditionalUNet1D) -> None:
    """Give our network the published network's weights: layers come in the same order, weights in another layout."""
    layers = (nn.Conv1d, nn.ConvTranspose1d, nn.GroupNorm, nn.Linear)
    ordered = [theirs.step_encoder, theirs.down, theirs.middle, theirs.up, theirs.head]
    sources = [m for m in chain(*(part.modules() for part in ordered)) if isinstance(m, layers)]
    kinds = (SequenceConv, Upsample, nn.GroupNorm, nn.Linear)
    ordered = [ours.step_encoder, ours.down, ours.middle, ours.up, ours.head]
    targets = [m for m in chain(*(part.modules() for part in ordered)) if isinstance(m, kinds)]
    for source, target in zip(sources, targets, strict=True):
        target.bias.data.copy_(source.bias)
        weight = source.weight.detach()
        if isinstance(target, SequenceConv):
            target.weight.data.copy_(weight.transpose(1, 2))
        elif isinstance(target, Upsample):
            target.even.data.copy_(torch.cat([weight[:, :, 3].T, weight[:, :, 1].T], dim=1))
            target.odd.data.copy_(torch.cat([weight[:, :, 2].T, weight[:, :, 0].T], dim=1))
        else:
            target.weight.data.copy_(weight)


def test_the_published_network_is_the_function_that_ours_is(modules):
    torch.manual_seed(0)
    theirs = modules["benchmark_published_network"].PublishedUNet(2, 40, (8, 16, 24), EMBEDDING)
    ours = ConditionalUNet1D(2, 40, (8, 16, 24), step_embed_dim=EMBEDDING, activation="mish")
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    copy_weights(theirs, ours)
    noisy, time, condition = torch.randn(5, 16, 2), torch.randint(100, (5,)), torch.randn(5, 40)
    torch.testing.assert_close(theirs(noisy, time, condition), ours(noisy, time, condition), atol=1e-5, rtol=1e-4)


def test_items_are_the_windows_that_ours_trains_on(published, data):
    """The same windows one by one, padded at both ends of an episode."""
    observation = np.concatenate([data.keypoint, data.agent], axis=1)
    windows = ActionWindows(observation, data.action, data.episode_ends, 16, 2, 8)
    items = published.SequenceItems(data)
    assert len(items) == len(windows)
    batch = windows.batch(torch.arange(len(windows)))
    for index in range(len(items)):
        item = items[index]
        assert item["obs"].shape == (16, 20)
        assert torch.equal(item["obs"][:2], batch["observation"][index])
        assert torch.equal(item["action"], batch["action"][index])


def test_frames_are_stacked_at_their_offsets_within_the_episode(published, data):
    items = published.FrameItems(data)
    assert len(items) == 90
    for index, wanted, padded in ((30, [30, *range(30, 45)], 1), (59, [58, *[59] * 15], 14), (45, range(44, 60), 0)):
        item = items[index]
        assert torch.equal(item["action"], torch.from_numpy(data.action[list(wanted)]))
        assert int(item["action_is_pad"].sum()) == padded
        assert torch.equal(item["observation.state"], torch.from_numpy(data.agent[list(wanted[:2])]))
        assert torch.equal(item["observation.environment_state"], torch.from_numpy(data.keypoint[list(wanted[:2])]))
        assert item["episode_index"] == 1
        assert item["frame_index"] == index - 30


@pytest.mark.parametrize("name", ["OriginalLoop", "LeRobotLoop"])
def test_a_published_loop_trains_and_its_workers_rest_between_turns(modules, published, data, name):
    torch.manual_seed(0)
    network = published.PublishedUNet(2, 40, DIMS, EMBEDDING)
    before = [p.detach().clone() for p in network.parameters()]
    turns = modules["benchmark_training_turns"].Turns(getattr(published, name)(network, data, 8, "cpu"), "cpu")
    try:
        wall, busy = turns.take(2)
        assert wall > 0
        assert busy > 0
        assert turns.loop.done == 2
        workers = [psutil.Process(worker) for worker in turns.loop.workers]
        assert len(workers) == 1
        turns.take(12)  # beyond an epoch, with which the workers change
        for worker in turns.loop.workers:
            assert psutil.Process(worker).status() == psutil.STATUS_STOPPED
    finally:
        left = list(turns.loop.workers)
        turns.close()
    assert not any(psutil.pid_exists(worker) for worker in left)
    assert all(not torch.equal(a, p) for a, p in zip(before, network.parameters(), strict=True))


def test_stacked_seeds_have_the_gradients_that_they_have_alone(modules, monkeypatch):
    """Three networks, each on its own batch."""
    seeds = modules["benchmark_training_seeds"]
    collected: list[list[Tensor]] = []
    monkeypatch.setattr(seeds, "optimised", lambda parameters: collected.append(parameters) or Tensor.backward)
    torch.manual_seed(1)
    batches = seeds.batches(3, "cpu")
    networks = [seeds.PublishedUNet(2, 40, DIMS, EMBEDDING) for _ in range(3)]
    seeds.one_after_another(networks, batches, "fp32")()
    seeds.stacked(networks, batches, "fp32")()
    *alone, together = collected
    for stack, *own in zip(together, *alone, strict=True):
        torch.testing.assert_close(stack.grad, torch.stack([p.grad for p in own]), atol=1e-6, rtol=1e-3)


def test_the_section_at_toy_sizes(modules, published, monkeypatch, tmp_path, capsys):
    training, seeds = modules["benchmark_training"], modules["benchmark_training_seeds"]
    monkeypatch.setitem(training.SIZES, "small", training.Size(DIMS, EMBEDDING, 1, 1, 100))
    monkeypatch.setitem(training.SIZES, "paper", training.Size((8, 8), EMBEDDING, 1, 1, 1))
    monkeypatch.setattr(training, "Demonstrations", lambda seed: published.Demonstrations(seed, 3, 30))
    monkeypatch.setattr(seeds, "SEEDS", (1, 2))
    monkeypatch.setattr(seeds, "CPU_NETWORKS", [{"down_dims": DIMS, "step_embed_dim": EMBEDDING}])
    output = tmp_path / "rows.json"
    options = ["--only", "training", "--rounds", "2", "--training-batch", "8", "--output", str(output)]
    assert modules["benchmark"].main(options) == 0
    rows = json.loads(output.read_text())["training"]
    loops = [row for row in rows if row["part"] == "loop"]
    for size in ("small", "paper"):
        names = [(row["contender"], row["precision"], row["activation"]) for row in loops if row["size"] == size]
        assert names[:3] == [
            ("LeRobot's loop", "fp32", "mish"),
            ("original loop", "fp32", "mish"),
            ("ours", "fp32", "mish"),
        ]
        assert (size == "small") == (names[-1][2] == "silu")
    for row in loops:
        assert row["steps_per_s"]["median"] > 0
        assert row["cpu_s_per_step"] > 0
        theirs = row["contender"] == "LeRobot's loop"
        assert (row["speed_over_lerobot_same_precision"]["median"] == 1) == theirs
        assert (row["speed_over_lerobot"]["median"] == 1) == (theirs and row["precision"] == "fp32")
    one, two = ([row for row in rows if row["part"] == "seeds" and row["seeds"] == count] for count in (1, 2))
    for pair in (one, two):
        assert [row["contender"] for row in pair] == ["one after another", "stacked"]
        assert pair[1]["speed_over_one_after_another"]["median"] > 0
    printed = capsys.readouterr().out
    assert "training, small, batch 8" in printed
    assert "2 stacked" in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--training-compile", "fast"], "--training-compile"),
        (["--training-sizes", "huge"], "--training-sizes"),
        (["--training-batch", "0"], "--training-batch"),
        (["--training-batch", "many"], "--training-batch"),
    ],
)
def test_wrong_options_are_named(modules, options, named, capsys):
    with pytest.raises(SystemExit) as refused:
        modules["benchmark"].main(["--only", "training", *options])
    assert refused.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("section", ["coupling", "inference", "policy", "training"])
def test_a_gpu_that_is_not_there_is_named(modules, section, capsys):
    assert modules["benchmark"].main(["--only", section, "--device", "cuda"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: device='cuda': this machine has no CUDA device")
