"""Checkpoints: round trip, atomicity, damage."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.files import replace_folder, staging_folder
from immiscible_policy.training.checkpoint import (
    CheckpointError,
    flatten,
    load_state,
    rng_state,
    save_state,
    set_rng_state,
    unflatten,
)

leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4) | st.floats(allow_nan=False)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(tree=trees)
def test_any_nested_structure_comes_back(tree: object) -> None:
    assert unflatten(flatten(tree, {}), {}) == tree


def test_optimizer_state_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "latest", {"optimizer": optimizer.state_dict(), "bytes": torch.get_rng_state()})
    state = load_state(tmp_path / "latest")
    assert torch.equal(state["bytes"], torch.get_rng_state())
    other = torch.optim.AdamW(layer.parameters())
    other.load_state_dict(state["optimizer"])
    for before, after in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(TypeError, match=r"entry /a/b is a set"):
        flatten({"a": {"b": {1}}}, {})


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    save_state(tmp_path / "latest", {"step": 1})
    (tmp_path / "latest").rename(tmp_path / ".latest.old")
    assert load_state(tmp_path / "latest") == {"step": 1}


def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save_state(tmp_path / "latest", {"step": 1})
    staging = staging_folder(tmp_path / "latest")
    (staging / "state.safetensors").write_bytes(b"half")
    assert load_state(tmp_path / "latest") == {"step": 1}
    save_state(tmp_path / "latest", {"step": 2})
    assert load_state(tmp_path / "latest") == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest"]


def test_folders_of_the_user_beside_it_are_left_alone(tmp_path: Path) -> None:
    for name in ("robot.old", "robot.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("kept")
    for step in (1, 2):
        save_state(tmp_path / "robot", {"step": step})
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("mine", "mine", "robot", "robot.old", "robot.tmp", "state.json", "state.safetensors")
    ]


def test_replace_folder_replaces(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for text in ("first", "second"):
        staging = staging_folder(target)
        (staging / "file").write_text(text)
        replace_folder(staging, target)
    assert (target / "file").read_text() == "second"


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_damage_is_reported(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "latest"
    save_state(folder, {"weights": torch.randn(100), "step": 3})
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged or half-written"):
        load_state(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_state(folder)


def test_random_states_of_a_run_on_the_cpu_leave_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*arguments: object) -> None:
        raise AssertionError("asked a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched)
    monkeypatch.setattr(torch.cuda, "set_rng_state", touched)
    generator = torch.Generator().manual_seed(3)
    state = rng_state(generator)
    drawn = torch.rand(2), torch.rand(2, generator=generator)
    set_rng_state(generator, {**state, "cuda": torch.zeros(16, dtype=torch.uint8)})
    again = torch.rand(2), torch.rand(2, generator=generator)
    assert all(torch.equal(*pair) for pair in zip(drawn, again, strict=True))
