"""Data to analyse: PushT's windows as a policy is trained on them, and arrays from files."""

import numpy as np
import pytest
import torch

from immiscible_policy.evaluation.coupling_data import array_data, pusht_data


def test_arrays_of_npy_and_npz_files(tmp_path):
    data = np.random.default_rng(0).normal(size=(6, 3, 2))
    np.save(tmp_path / "a.npy", data)
    found = array_data(tmp_path / "a.npy")
    assert found.data.dtype == torch.float32
    np.testing.assert_allclose(found.data.numpy(), data, rtol=1e-6)
    assert found.condition is None
    assert found.description == "a.npy: 6 data of shape (3, 2)"
    np.savez(tmp_path / "b.npz", data=data, labels=np.arange(6, dtype=np.uint8))
    labels = array_data(tmp_path / "b.npz").condition
    assert (labels.dtype, labels.tolist()) == (torch.int64, list(range(6)))
    np.savez(tmp_path / "c.npz", data=data, condition=data[:, 0])
    assert array_data(tmp_path / "c.npz").condition.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        (
            "a.npy",
            np.zeros((3, 2), np.uint8),
            r"data must be normalised floats \(N, ...\), got uint8 of shape \(3, 2\)",
        ),
        ("a.npy", np.float32(1.0), r"data must be normalised floats \(N, ...\), got float32 of shape \(\)"),
        ("a.npy", np.array([{}], dtype=object), r"a.npy cannot be read as .npy or .npz"),
        ("a.npz", {"x": np.zeros(3)}, r"a.npz must hold an array named data, it holds \['x'\]"),
        ("a.npz", {"data": np.zeros((3, 2)), "labels": np.zeros(4, int)}, r"one row for each of 3 data, got int64"),
        ("a.npz", {"data": np.zeros((3, 2)), "labels": np.array(["a"] * 3)}, r"condition must be numbers"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, name, arrays, message):
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, **arrays)
    else:
        np.save(path, arrays)
    with pytest.raises(ValueError, match=message):
        array_data(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent.npy cannot be read"):
        array_data(tmp_path / "absent.npy")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.npz cannot be read"):
        array_data(tmp_path / "text.npz")


def test_pusht_is_what_the_default_policy_is_trained_on(tmp_path, make_store):
    arrays = make_store(tmp_path / "replay.zarr", lengths=(12, 30, 40))
    found = pusht_data(str(tmp_path / "replay.zarr"))
    assert found.data.shape[1:] == (16, 2)
    assert found.condition.shape == (len(found.data), 2, 20)
    assert float(found.data.abs().max()) == pytest.approx(1.0, abs=1e-6)
    assert float(found.condition.abs().max()) == pytest.approx(1.0, abs=1e-6)
    # A window inside an episode, found again in the recording.
    low, high = arrays["action"].min(0), arrays["action"].max(0)
    normalised = 2 * (arrays["action"] - low) / (high - low) - 1
    windows = np.lib.stride_tricks.sliding_window_view(normalised, (16, 2)).squeeze(1)
    middle = found.data[len(found.data) // 2].numpy()
    assert np.abs(windows - middle).max((1, 2)).min() < 1e-5
    assert "3 episodes of replay.zarr" in found.description


def test_absent_demonstrations_are_answered_with_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match="download_pusht"):
        pusht_data(str(tmp_path / "absent.zarr"))
