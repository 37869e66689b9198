"""The gap between training noise and prior, on policies whose answers are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.evaluation.prior_gap import action_error, measure_prior_gap
from immiscible_policy.policy import DiffusionPolicy

PIXELS = 512.0


def windows(n_steps: int, seed: int) -> ActionWindows:
    """Actions that are the agent's own place, in pixels."""
    places = np.random.default_rng(seed).uniform(0, PIXELS, (n_steps, 2)).astype(np.float32)
    return ActionWindows(places, places, np.array([n_steps // 2, n_steps]), horizon=4, n_obs_steps=1, n_action_steps=2)


class Echo(DiffusionPolicy):
    """Answers with the noise it is given, as actions, or with what it sees."""

    listens = True

    def plan(self, condition: Tensor, generator=None, num_inference_steps=None, noise=None) -> Tensor:
        assert noise is not None
        return noise if self.listens else torch.zeros_like(noise)


def echo(coupling: str) -> Echo:
    policy = Echo(2, 2, horizon=4, n_obs_steps=1, n_action_steps=2, network={"name": "mlp", "width": 8, "n_blocks": 1})
    policy.coupling = coupling
    ends = torch.tensor([[0.0, 0.0], [PIXELS, PIXELS]])
    policy.fit_normalizers(ends, ends)
    return policy.eval()


def test_error_is_bias_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(50, 2, 2, generator=generator)
    samples = target + torch.tensor([3.0, 4.0]) + 2 * torch.randn(400, 50, 2, 2, generator=generator)
    found = action_error(samples, target)
    assert found.bias == pytest.approx(5.0, abs=0.02)
    assert found.spread == pytest.approx(2 * math.sqrt(2), rel=0.01)
    assert found.error**2 == pytest.approx(found.bias**2 + found.spread**2)
    # Two samples give an unbiased estimate, too: without the correction the bias would be 5.4.
    assert action_error(samples[:2].repeat(1, 8, 1, 1), target.repeat(8, 1, 1)).bias == pytest.approx(5.0, abs=0.35)


def test_a_policy_that_repeats_its_noise_shows_how_the_noise_was_chosen() -> None:
    data, held_out = windows(600, 0), windows(200, 1)
    independent = measure_prior_gap(echo("Independent()"), data, held_out, n_windows=200, n_samples=16)
    assert independent.shift == pytest.approx(0.0, abs=0.05)
    assert independent.power == pytest.approx(1.0, abs=0.03)
    assert independent.prior == independent.matched
    assert independent.prior.spread == pytest.approx(PIXELS / 2 * math.sqrt(2), rel=0.02)  # N(0, 1) of +-256 px

    chosen = measure_prior_gap(echo("KNN(k=8)"), data, held_out, n_windows=200, n_samples=16)
    assert chosen.shift is not None
    assert chosen.power is not None
    assert chosen.matched is not None
    assert chosen.prior == independent.prior  # the same noises
    assert 0.3 < chosen.shift < 1.0  # the place predicts the first of the four actions
    assert chosen.power < 0.85
    assert chosen.matched.error < 0.85 * chosen.prior.error


def test_what_a_sampler_draws_is_independent_of_the_initial_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def plan(self: Echo, condition: Tensor, generator=None, num_inference_steps=None, noise=None) -> Tensor:
        assert noise is not None
        seen.extend((noise, torch.randn(noise.shape, generator=generator)))
        return noise

    monkeypatch.setattr(Echo, "plan", plan)
    measure_prior_gap(echo("Independent()"), windows(600, 0), windows(200, 1), n_windows=200, n_samples=2)
    initial, drawn = (torch.cat(part).flatten() for part in (seen[::2], seen[1::2]))
    assert float((initial * drawn).mean()) == pytest.approx(0.0, abs=4 / math.sqrt(len(drawn)))


def test_a_coupling_that_is_fitted_to_the_demonstrations_is_shown_them() -> None:
    inner, residual = (
        measure_prior_gap(echo(text), windows(2000, 0), windows(200, 1), n_windows=200, n_samples=16)
        for text in ("KNN(k=2, metric='inner')", "Residual(KNN(k=2, metric='inner'))")
    )
    assert inner.shift is not None
    assert residual.shift is not None
    assert residual.matched is not None
    assert inner.shift > 0.2
    assert residual.shift == pytest.approx(0.0, abs=0.04)
    assert residual.power == pytest.approx(1.0, abs=0.03)
    assert residual.matched.error < residual.prior.error  # it is near the actions all the same
    clusters = "LinearAssignment(condition_weight=ClusteredConditions(n_clusters=8))"
    assert measure_prior_gap(echo(clusters), windows(100, 0), windows(100, 1), n_samples=2).shift is not None


def test_a_policy_that_does_not_listen_has_no_spread() -> None:
    policy = echo("LinearAssignment()")
    policy.listens = False
    held_out = windows(100, 1)
    gap = measure_prior_gap(policy, windows(300, 0), held_out, n_samples=2)
    assert gap.prior.spread == 0
    assert gap.prior == gap.matched
    middle = held_out.batch(torch.arange(len(held_out)))["action"][:, :2] - PIXELS / 2
    assert gap.prior.error == pytest.approx(math.sqrt(float(middle.square().sum(-1).mean())))


def test_a_coupling_that_cannot_choose_for_new_data_has_the_prior_alone() -> None:
    gap = measure_prior_gap(echo("SeedCache(n_data=600)"), windows(100, 0), windows(100, 1), n_samples=2)
    assert (gap.shift, gap.power, gap.matched) == (None, None, None)
    assert gap.prior.error > 0


@pytest.mark.parametrize("change", [{"n_windows": 0}, {"n_samples": 1}, {"batch_size": 0}])
def test_bad_arguments_are_named(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}={next(iter(change.values()))}"):
        measure_prior_gap(echo("KNN(k=2)"), windows(20, 0), windows(20, 1), **change)
