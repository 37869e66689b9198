"""Validation loss on independent and on coupled noise."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment, Mixture, SeedCache
from immiscible_policy.diffusion import DDPM, couple
from immiscible_policy.evaluation.validation import validation_losses


class Zero(nn.Module):
    """Predicts no noise, so its loss is the mean square of the noise it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator) -> Tensor:
        return coupling(batch["data"], generator=generator).square().mean()


class Data:
    def __init__(self) -> None:
        # Another stream than the noise's: data equal to a noise would be its own nearest neighbour.
        self.data = torch.randn(300, 32, generator=torch.Generator().manual_seed(123))

    def __len__(self) -> int:
        return 300

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"data": self.data[indices]}


def test_both_losses_are_means_over_all_data_and_repeat_themselves() -> None:
    first, second = (validation_losses(Zero(), Data(), KNN(k=8), batch_size=128) for _ in range(2))
    assert first["validation/loss_independent"] == second["validation/loss_independent"]
    assert first["validation/loss_independent"] == pytest.approx(1.0, abs=0.05)
    # Nearest-of-8 noise is shorter in 32 dimensions (0.83 at this data norm), so this "network" looks better on it
    # without being better.
    assert first["validation/loss_coupled"] == pytest.approx(0.83, abs=0.05)


def test_independent_coupling_has_one_loss() -> None:
    assert list(validation_losses(Zero(), Data(), Independent())) == ["validation/loss_independent"]


class Recording(nn.Module):
    """Trains nothing, and writes down which times and which noises it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator) -> Tensor:
        objective = DDPM()
        noise, time = couple(objective, coupling, batch["data"], generator=generator)
        time = objective.draw_time(len(noise), noise.device, generator) if time is None else time
        self.seen.append((time, noise))
        return noise.mean()


def test_couplings_that_make_all_noises_themselves_are_measured() -> None:
    coupling = SeedCache(300)
    losses = validation_losses(Zero(), Data(), Mixture(coupling, p=0.5))
    assert set(losses) == {"validation/loss_independent", "validation/loss_coupled"}


@pytest.mark.parametrize("coupling", [KNN(k=2), Mixture(KNN(k=2), p=(0.0, 0.0)), LinearAssignment()])
def test_both_losses_are_of_the_same_times_and_noises(coupling: Coupling) -> None:
    model = Recording()
    validation_losses(model, Data(), coupling, batch_size=128)
    independent, coupled = model.seen[:3], model.seen[3:]
    assert all(torch.equal(mine[0], theirs[0]) for mine, theirs in zip(independent, coupled, strict=True))
    for (_, before), (_, after) in zip(independent, coupled, strict=True):
        if isinstance(coupling, Mixture):  # which couples none
            assert torch.equal(before, after)
        if isinstance(coupling, LinearAssignment):
            assert torch.equal(before.sum(1).sort().values, after.sum(1).sort().values)
