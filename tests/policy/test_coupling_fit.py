"""What couplings are shown of the demonstrations before training."""

import numpy as np
import pytest
import torch
from torch import Tensor

from immiscible_policy.coupling import KNN, Independent, Mixture, Residual
from immiscible_policy.data.windows import ActionWindows
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.policy.coupling_fit import fit_coupling


class Masked(Independent):
    """Keeps what it is fitted to, and asks for the mask."""

    seen: tuple[Tensor | None, ...] = ()

    @property
    def fit_uses(self) -> frozenset[str]:
        return frozenset({"data", "condition", "mask"})

    def fit(self, data: Tensor, condition: Tensor | None = None, mask: Tensor | None = None) -> None:
        object.__setattr__(self, "seen", (data, condition, mask))


def windows_and_policy(mask_padding: bool) -> tuple[ActionWindows, DiffusionPolicy]:
    generator = np.random.default_rng(0)
    observation, action = generator.random((60, 3)), generator.random((60, 2))
    windows = ActionWindows(observation, action, np.array([25, 60]), horizon=8, n_obs_steps=2, n_action_steps=6)
    policy = DiffusionPolicy(
        observation_dim=3,
        action_dim=2,
        horizon=8,
        n_action_steps=6,
        network={"name": "mlp", "width": 8, "n_blocks": 1, "step_embed_dim": 8},
        objective={"name": "ddpm", "data_scale": 2.0},
        mask_padding=mask_padding,
    )
    policy.fit_normalizers(torch.as_tensor(observation).float(), torch.as_tensor(action).float())
    return windows, policy


@pytest.mark.parametrize("mask_padding", [True, False])
def test_a_coupling_is_fitted_with_the_mask_it_will_be_called_with(mask_padding: bool) -> None:
    windows, policy = windows_and_policy(mask_padding)
    coupling = Masked()
    fit_coupling(Mixture(coupling), policy, windows)
    data, observation, mask = policy.coupling_inputs(windows.batch(torch.arange(len(windows))))
    torch.testing.assert_close(coupling.seen[0], 2.0 * data)
    torch.testing.assert_close(coupling.seen[1], observation)
    if mask is None:
        assert coupling.seen[2] is None
    else:
        assert not mask.all()
        assert coupling.seen[2] is not None
        assert torch.equal(coupling.seen[2], mask)


def test_padding_takes_no_part_in_the_residual() -> None:
    windows, policy = windows_and_policy(mask_padding=True)
    coupling, expected = Residual(KNN(k=2)), Residual(KNN(k=2))
    fit_coupling(coupling, policy, windows)
    data, observation, mask = policy.coupling_inputs(windows.batch(torch.arange(len(windows))))
    assert mask is not None
    expected.fit(2.0 * torch.where(mask, data, torch.nan), observation, mask)
    for name, value in expected.state_dict()["regression"].items():
        assert torch.equal(coupling.state_dict()["regression"][name], value)
