"""Optimisers and moving averages of a configuration."""

import pytest
import torch
from torch import nn

from immiscible_policy.training import TrainerConfig
from immiscible_policy.training.setup import build_average, build_optimizer


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("radam", torch.optim.RAdam)]
)
def test_the_optimiser_is_the_named_one_with_its_settings(name: str, kind: type) -> None:
    config = TrainerConfig(optimizer=name, learning_rate=3e-4, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.99), 0.1)


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = build_optimizer(model, TrainerConfig())
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model[0].parameters()}


@pytest.mark.parametrize(
    ("warmup", "decays"),
    [
        ("power", [0.0, 1 - 2**-0.75, 1 - 3**-0.75, 0.6]),
        ("ratio", [0.0, 2 / 11, 3 / 12, 4 / 13]),
        ("none", [0.0, 0.6, 0.6, 0.6]),
    ],
)
def test_the_decay_of_the_average_grows_as_it_says(warmup: str, decays: list[float]) -> None:
    average = build_average(nn.Linear(2, 2).parameters(), TrainerConfig(ema_warmup=warmup, ema_max_decay=0.6))
    assert [average.get_decay(step) for step in (1, 2, 3, 4)] == pytest.approx(decays)
