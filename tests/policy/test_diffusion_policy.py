"""The policy: what it trains on, what it predicts, and how it is stored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment
from immiscible_policy.coupling.base import Context
from immiscible_policy.policy import DiffusionPolicy, load_policy


def small_policy(**options: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "observation_dim": 5,
        "action_dim": 2,
        "network": {"name": "mlp", "width": 32, "n_blocks": 1, "step_embed_dim": 16},
        "num_inference_steps": 4,
        **options,
    }
    policy = DiffusionPolicy(**settings)  # type: ignore[arg-type]
    policy.fit_normalizers(512 * torch.rand(100, 5), 512 * torch.rand(100, 2))
    return policy.eval()


def batch_of(n: int) -> dict[str, Tensor]:
    return {
        "observation": 512 * torch.rand(n, 2, 5),
        "action": 512 * torch.rand(n, 16, 2),
        "action_is_pad": (torch.arange(16) >= 12).expand(n, 16),
    }


class Spy(Coupling):
    """Records what a coupling is given and returns noise that can be recognised."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor | None] = {}

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        self.seen = {"data": data, **vars(context)}
        return torch.full_like(data, 0.25)


class TimedSpy(Spy):
    uses_time = True


def test_a_coupling_that_differs_over_time_knows_the_loss_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, spy, batch = small_policy(), TimedSpy(), batch_of(8)
    seen: list[Tensor] = []

    def forward(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        seen.append(time)
        return noisy

    monkeypatch.setattr(policy.network, "forward", forward)
    policy.loss(batch | {"index": torch.arange(8)}, spy, torch.Generator().manual_seed(0))
    steps = policy.objective.num_train_timesteps
    torch.testing.assert_close(spy.seen["time"], (seen[0] + 1) / steps)
    assert torch.equal(spy.seen["indices"], torch.arange(8))
    policy.loss(batch, Spy())
    untimed = Spy()
    policy.loss(batch, untimed)
    assert untimed.seen["time"] is None


@pytest.mark.parametrize("coupling", [Independent(), KNN(k=2), LinearAssignment()])
def test_any_coupling_gives_a_finite_loss_with_gradients(coupling: Coupling) -> None:
    policy = small_policy()
    loss = policy.loss(batch_of(16), coupling)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.network.parameters())


def test_loss_target_is_the_coupled_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, spy, batch = small_policy(), Spy(), batch_of(8)
    monkeypatch.setattr(policy.network, "forward", lambda noisy, time, condition: torch.full_like(noisy, 0.25))
    assert policy.loss(batch, spy) == 0.0
    torch.testing.assert_close(spy.seen["data"], policy.action_normalizer.normalize(batch["action"]))
    torch.testing.assert_close(spy.seen["condition"], policy.observation_normalizer.normalize(batch["observation"]))
    assert spy.seen["mask"] is None


def test_coupling_sees_the_scaled_data_and_the_padding_mask() -> None:
    policy = small_policy(objective={"name": "ddpm", "data_scale": 3.0}, mask_padding=True)
    spy, batch = Spy(), batch_of(8)
    policy.loss(batch, spy)
    torch.testing.assert_close(spy.seen["data"], 3 * policy.action_normalizer.normalize(batch["action"]))
    mask = spy.seen["mask"]
    assert mask is not None
    assert mask.shape == (8, 16, 1)
    assert mask.sum() == 8 * 12


def test_loss_is_a_function_of_the_generator() -> None:
    policy, batch = small_policy(), batch_of(8)
    losses = [policy.loss(batch, KNN(k=2), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_predicted_actions_are_the_executed_part_in_the_data_range() -> None:
    policy = small_policy()
    observation, noise = 512 * torch.rand(3, 2, 5), torch.randn(3, 16, 2)
    actions = policy.predict_action(observation, noise=noise)
    assert actions.shape == (3, 8, 2)
    assert actions.min() >= policy.action_normalizer.low.min() - 1e-3
    assert actions.max() <= policy.action_normalizer.high.max() + 1e-3
    whole = policy.objective.sample(
        policy.network,
        (3, 16, 2),
        condition=policy.observation_normalizer.normalize(observation),
        steps=4,
        noise=noise,
    )
    torch.testing.assert_close(actions, policy.action_normalizer.denormalize(whole[:, 1:9]))


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 1, 5), (2, 5)])
def test_wrong_observation_size_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"this policy takes .* \(B, 2, 5\)"):
        small_policy().predict_action(torch.zeros(shape))


def test_too_long_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="n_action_steps=16 must be between 1 and"):
        small_policy(n_action_steps=16)


def test_saved_policy_acts_the_same_and_needs_no_hydra(tmp_path: Path) -> None:
    policy = small_policy(task={"name": "pusht", "max_steps": 300})
    policy.save_pretrained(tmp_path / "policy")
    files = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".ckpt")) for name in files)
    loaded = load_policy(tmp_path / "policy")
    assert loaded.task == policy.task
    observation, noise = 512 * torch.rand(3, 2, 5), torch.randn(3, 16, 2)
    torch.testing.assert_close(
        loaded.predict_action(observation, noise=noise), policy.predict_action(observation, noise=noise)
    )
    code = (
        "import sys; from immiscible_policy.policy import load_policy; "
        f"load_policy({str(tmp_path / 'policy')!r}); assert 'hydra' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_incomplete_or_foreign_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_policy(folder)
    small_policy().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "observation_dim": 6}))
    with pytest.raises(ValueError, match="do not belong together"):
        load_policy(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged or half-written"):
        load_policy(folder)
