"""What is recorded of a sampling, against the optimal denoiser of a Gaussian."""

import json
import math

import numpy as np
import pytest
import torch

from image_diffusion.analysis.trajectory import n_calls, record_trajectory, trajectory_statistics, watched

MEAN, STD = 0.1, 0.3
SEEDS = list(range(300))
FLOAT32 = {"rtol": 1e-5, "atol": 3e-6}


def test_flow_matching_predicts_the_conditional_means(toys) -> None:
    """Along the exact flow of N(m, s^2), x = (1 - t) m + sd n with sd^2 = (1 - t)^2 s^2 + t^2; E[x_0 | x] is linear."""
    model = toys.image_model(toys.OptimalVelocity(MEAN, STD), num_inference_steps=60)
    trajectory = record_trajectory(model, SEEDS)
    times = torch.tensor(trajectory.times).double() / 1000
    torch.testing.assert_close(times, torch.linspace(1, 1 / 60, 60, dtype=torch.float64))
    t = times.view(-1, 1, 1, 1, 1)
    variance = (1 - t) ** 2 * STD**2 + t**2
    deviation = trajectory.noisy - (1 - t) * MEAN
    torch.testing.assert_close(trajectory.data.double(), MEAN + (1 - t) * STD**2 / variance * deviation, **FLOAT32)
    torch.testing.assert_close(trajectory.noise.double(), t / variance * deviation, **FLOAT32)
    # The first call sees pure noise and says the mean; the last says about the sample.
    torch.testing.assert_close(trajectory.data[0], torch.full_like(trajectory.data[0], MEAN))
    torch.testing.assert_close(trajectory.noise[0], trajectory.noisy[0])
    assert torch.equal(trajectory.images, model.sample(SEEDS))
    shown = trajectory.data[-1].add(1).mul(127.5)
    assert float((shown - trajectory.images).abs().max()) < 1.0


def test_ddim_predicts_the_conditional_means(toys) -> None:
    model = toys.ddim_model(MEAN, STD, num_inference_steps=10)
    trajectory = record_trajectory(model, SEEDS[:7])
    abar = model.network.alphas[torch.tensor(trajectory.times).long()].view(-1, 1, 1, 1, 1)
    variance = abar * STD**2 + 1 - abar
    expected = MEAN + abar.sqrt() * STD**2 / variance * (trajectory.noisy - abar.sqrt() * MEAN)
    torch.testing.assert_close(
        trajectory.data, expected.clamp(-1, 1), rtol=1e-3, atol=2e-4
    )  # divided by sqrt(abar) = 0.005
    assert trajectory.times == (49, 44, 39, 34, 29, 24, 19, 14, 9, 4)
    assert trajectory.noise.shape == (10, 7, 1, 2, 2)


def test_scaled_and_clipped_data_are_given_in_the_units_of_images(toys) -> None:
    """One step from noise n ends at 4 n in scaled data: 2 n for the images, which have no more than 1."""
    model = toys.image_model(toys.Straight(4.0), {"name": "flow_matching", "data_scale": 2.0})
    trajectory = record_trajectory(model, SEEDS[:20])
    torch.testing.assert_close(trajectory.data[0], (2 * trajectory.noisy[0]).clamp(-1, 1))
    free = toys.image_model(toys.Straight(4.0), {"name": "flow_matching", "data_scale": 2.0, "clip_sample": False})
    data = record_trajectory(free, SEEDS[:20]).data
    torch.testing.assert_close(data[0], 2 * trajectory.noisy[0])
    torch.testing.assert_close(trajectory.noise[0], trajectory.noisy[0])


def test_every_objective_can_be_recorded(toys) -> None:
    torch.manual_seed(0)
    for objective in (
        {"name": "consistency", "s0": 2, "s1": 8},
        {"name": "ddpm", "num_train_timesteps": 20, "sampler": "ddpm", "prediction_type": "v_prediction"},
        {"name": "flow_matching", "sampler": "heun"},
    ):
        model = toys.image_model(objective=objective, n_classes=3)
        trajectory = record_trajectory(model, [1, 2], [0, 2], 4)
        assert trajectory.data.shape == (4, 2, 1, 2, 2)
        assert bool(trajectory.data.isfinite().all())
        assert torch.equal(trajectory.images, model.sample([1, 2], [0, 2], 4))


def test_a_sampler_with_a_call_more_than_steps_is_recorded_and_not_mixed_with_others(toys) -> None:
    pndm = toys.image_model(objective={"name": "ddpm", "sampler": "pndm", "clip_sample": False})
    assert len(record_trajectory(pndm, [1], None, 5).times) == n_calls(pndm, 5) == 6
    assert trajectory_statistics({"a": [pndm]}, [1, 2], None, 5).calls == 6
    with pytest.raises(ValueError, match=r"\{'a': 6, 'b': 5\}"):
        trajectory_statistics({"a": [pndm], "b": [toys.image_model()]}, [0], None, 5)


def test_a_consistency_model_in_one_step_says_its_sample(toys) -> None:
    torch.manual_seed(0)
    model = toys.image_model(objective={"name": "consistency", "s0": 2, "s1": 8})
    trajectory = record_trajectory(model, [1, 2])
    expected = trajectory.data[0].add(1).mul(127.5).round().to(torch.uint8)
    assert int((expected.int() - trajectory.images.int()).abs().max()) <= 1


def test_the_hook_is_gone_afterwards_also_after_an_error(toys) -> None:
    model = toys.image_model(toys.Straight(0.5))
    seen = []
    with pytest.raises(ValueError, match="steps"), watched(model, seen.append):
        model.sample([0], None, 0)
    model.sample([0])
    assert not seen
    with watched(model, seen.append):
        model.sample([0])
    model.sample([0])
    assert len(seen) == 1


def test_statistics_are_those_of_the_tensors(toys) -> None:
    model = toys.image_model(toys.OptimalVelocity(MEAN, STD), num_inference_steps=5)
    trajectory = record_trajectory(model, SEEDS[:9])
    statistics = trajectory_statistics({"a": [model]}, SEEDS[:9], batch_size=4)
    noise, data = trajectory.noise.flatten(2).double(), trajectory.data.flatten(2).double()
    values = {name: arms["a"][0] for name, arms in statistics.values.items()}
    np.testing.assert_allclose(values["noise_norm"], noise.square().mean(-1).sqrt(), rtol=1e-5)
    np.testing.assert_allclose(values["noise_variance"], noise.var(-1), rtol=1e-5)
    np.testing.assert_allclose(values["data_change"][1:], data.diff(dim=0).square().mean(-1).sqrt(), rtol=1e-4)
    assert np.isnan(values["data_change"][0]).all()


def test_statistics_compare_arms_over_the_same_noises(toys) -> None:
    """Networks that predict noise of other sizes: n for one, n + 0.1 for the other."""
    models = {name: [toys.image_model(toys.Straight(shift, 0.0))] * 2 for name, shift in (("a", 0.0), ("b", 0.5))}
    statistics = trajectory_statistics(models, SEEDS, num_inference_steps=3)
    rows = statistics.comparisons("noise_norm")
    expected = math.sqrt(2) * math.gamma(2.5) / math.gamma(2) / 2  # E|n| / sqrt(4)
    assert rows[0]["a"].mean.mean == pytest.approx(expected, rel=0.04)
    assert rows[0]["a"].mean.low < expected < rows[0]["a"].mean.high
    difference = rows[0]["b"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.0, abs=1e-6)
    assert rows[2]["b"].difference.mean > 0.05
    content = json.loads(json.dumps(statistics.to_json()))
    assert len(content["calls"]["data_change"]) == 3
    text = statistics.markdown()
    assert "| data change | `b` | n/a |" in text
    assert "call 3" in text


def test_what_cannot_be_compared_call_by_call_is_refused(toys) -> None:
    adaptive = toys.image_model(objective={"name": "flow_matching", "sampler": "adaptive"})
    with pytest.raises(ValueError, match="euler, midpoint or heun"):
        record_trajectory(adaptive, [0])
    few, many = toys.image_model(num_inference_steps=2), toys.image_model(num_inference_steps=3)
    with pytest.raises(ValueError, match=r"as many network calls.*\{'a': 2, 'b': 3\}"):
        trajectory_statistics({"a": [few], "b": [many]}, [0])
    with pytest.raises(ValueError, match="seeds"):
        trajectory_statistics({"a": [few]}, [])
