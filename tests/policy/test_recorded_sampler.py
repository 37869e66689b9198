"""Recorded samplers against the objectives' own."""

import pytest
import torch
from torch import Tensor, nn

from immiscible_policy.diffusion import build_objective
from immiscible_policy.policy.networks import build_network
from immiscible_policy.policy.recorded_sampler import SamplerNotRecordable, record_sampler

SHAPE, CONDITION = (16, 2), (2, 5)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    config = {"name": "mlp", "width": 32, "n_blocks": 1, "step_embed_dim": 16}
    return build_network(config, action_dim=2, observation_dim=5, horizon=16, n_obs_steps=2).eval()


def draw(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *SHAPE, generator=generator), torch.randn(batch, *CONDITION, generator=generator)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    "config",
    [
        {"name": "ddpm"},
        {"name": "ddpm", "prediction_type": "sample"},
        {"name": "ddpm", "prediction_type": "v_prediction", "data_scale": 2.0, "num_train_timesteps": 7},
        {"name": "ddpm", "clip_sample": False, "beta_schedule": "linear"},
        {"name": "flow_matching", "sampler": "euler"},
        {"name": "flow_matching", "sampler": "heun", "data_scale": 0.5},
    ],
)
def test_a_record_gives_the_samplers_samples_to_the_last_bit(config: dict, steps: int, network: nn.Module) -> None:
    objective = build_objective(config)
    record = record_sampler(objective, network, *draw(1), steps)
    for batch in (1, 6):
        noise, condition = draw(batch, seed=batch)
        kept = noise.clone()
        with torch.no_grad():
            expected = objective.sample(network, noise.shape, condition, steps, noise=noise)
            assert torch.equal(record(noise, condition), expected)
        assert torch.equal(noise, kept)


def test_a_consistency_models_one_step_is_recorded_and_more_are_refused(network: nn.Module) -> None:
    objective = build_objective({"name": "consistency"})
    noise, condition = draw(3)
    record = record_sampler(objective, network, *draw(1, seed=1), 1)
    with torch.no_grad():
        assert torch.equal(record(noise, condition), objective.sample(network, noise.shape, condition, 1, noise=noise))
    with pytest.raises(SamplerNotRecordable, match="draws noise at its steps"):
        record_sampler(objective, network, noise[:1], condition[:1], 2)


def test_the_record_calls_the_network_once_a_step_and_holds_its_weights_once(network: nn.Module) -> None:
    record = record_sampler(build_objective({"name": "ddpm"}), network, *draw(1), 5)
    assert sum(node.op == "call_module" for node in record.graph.nodes) == 5
    assert {id(p) for p in record.parameters()} == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "ddpm", "sampler": "ddpm"}, "draws noise at its steps"),
        ({"name": "flow_matching", "sampler": "adaptive"}, "leaves torch"),
    ],
)
def test_samplers_that_are_no_fixed_list_of_operations_are_refused(
    config: dict, message: str, network: nn.Module
) -> None:
    with pytest.raises(SamplerNotRecordable, match=message):
        record_sampler(build_objective(config), network, *draw(1), 3)


class Deciding:
    """An objective whose sampler does with the sample what a test asks it to."""

    sampler = "deciding"

    def __init__(self, act) -> None:
        self.act = act

    def sample(self, network, shape, *, condition, noise, device, **settings) -> Tensor:
        return self.act(network(noise, torch.zeros(1), condition))


@pytest.mark.parametrize(
    "act",
    [
        lambda sample: sample if sample.mean() > 0 else -sample,  # by a value
        lambda sample: sample * sample.std().item(),
        lambda sample: torch.empty(sample.shape).copy_(sample),  # the constant would be written into
        lambda sample: torch.from_numpy(sample.numpy() + 1),
    ],
)
def test_decisions_by_the_samples_values_are_refused(act, network: nn.Module) -> None:
    with pytest.raises(SamplerNotRecordable, match="cannot be exported"):
        record_sampler(Deciding(act), network, *draw(1), 1)


def test_operations_with_several_results_and_in_place_ones_are_replayed(network: nn.Module) -> None:
    def act(sample: Tensor) -> Tensor:
        first, second = sample.split(8, dim=1)
        doubled = torch.cat([second, first], dim=1) * torch.arange(2.0)
        return doubled.add_(1).clamp_(max=1.5)

    record = record_sampler(Deciding(act), network, *draw(1), 1)
    noise, condition = draw(4, seed=5)
    with torch.no_grad():
        assert torch.equal(record(noise, condition), act(network(noise, torch.zeros(4), condition)))
