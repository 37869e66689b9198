"""The policy: what it trains on, what it predicts, and how it is stored."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment
from immiscible_policy.coupling.base import Context
from immiscible_policy.policy import DiffusionPolicy, Planner, load_policy


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


ENCODER = {"name": "convnet", "channels": [4, 8], "n_groups": 2, "crop": 20, "n_keypoints": 4, "feature_dim": 6}


def image_policy(**options: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(
        observation_dim=2,
        action_dim=2,
        network={"name": "mlp", "width": 32, "n_blocks": 1, "step_embed_dim": 16},
        num_inference_steps=4,
        encoder={**ENCODER, **options},
    )
    position = 512 * torch.rand(100, 2)
    policy.fit_normalizers({"pixels": torch.zeros(0), "agent_pos": position}, 512 * torch.rand(100, 2))
    return policy.eval()


def image_observation(n: int) -> dict[str, Tensor]:
    pixels = torch.randint(0, 256, (n, 2, 24, 24, 3), dtype=torch.uint8)
    return {"pixels": pixels, "agent_pos": 512 * torch.rand(n, 2, 2)}


def image_batch(n: int) -> dict[str, Tensor]:
    flat = {name: value for name, value in batch_of(n).items() if name != "observation"}
    return flat | {f"observation.{name}": value for name, value in image_observation(n).items()}


def test_encoding_flat_observations_normalises_them_and_draws_nothing() -> None:
    policy, observation = small_policy(), 512 * torch.rand(3, 2, 5)
    state = torch.get_rng_state()
    condition = policy.encode(observation, training=True)
    torch.testing.assert_close(condition, policy.observation_normalizer.normalize(observation))
    assert torch.equal(torch.get_rng_state(), state)


def test_encoding_pictures_follows_the_mode_unless_told() -> None:
    policy, observation = image_policy(), image_observation(8)
    centre = policy.encode(observation)
    assert centre.shape == (8, 2, 6 + 2)
    torch.testing.assert_close(centre[..., 6:], policy.observation_normalizer.normalize(observation["agent_pos"]))
    assert not torch.equal(policy.encode(observation, training=True), centre)
    policy.train()
    assert torch.equal(policy.encode(observation, training=False), centre)
    assert not torch.equal(policy.encode(observation), centre)
    # Sampling never crops at random.
    noise = torch.randn(8, 16, 2)
    assert torch.equal(policy.predict_action(observation, noise=noise), policy.predict_action(observation, noise=noise))


def test_a_training_step_changes_the_encoder_and_the_network() -> None:
    policy = image_policy().train()
    before = {name: value.clone() for name, value in policy.named_parameters()}
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    policy.loss(image_batch(8), KNN(k=2), torch.Generator().manual_seed(0)).backward()
    optimizer.step()
    same = [name for name, value in policy.named_parameters() if torch.equal(value, before[name])]
    # A softmax does not see what is added to all of its logits.
    assert set(same) <= {"encoder.keypoints.maps.bias"}


def test_what_a_coupling_sees_of_pictures_does_not_depend_on_the_encoder() -> None:
    policy, spy, batch = image_policy().train(), Spy(), image_batch(8)
    policy.loss(batch, spy)
    expected = policy.observation_normalizer.normalize(batch["observation.agent_pos"])
    torch.testing.assert_close(spy.seen["condition"], expected)
    without_pictures = {name: value for name, value in batch.items() if name != "observation.pixels"}
    torch.testing.assert_close(policy.coupling_inputs(without_pictures)[1], expected)


def test_the_network_is_conditioned_on_the_encoded_history(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch, seen = image_policy().train(), image_batch(4), []

    def forward(noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition)
        return noisy

    monkeypatch.setattr(policy.network, "forward", forward)
    policy.loss(batch, Independent(), torch.Generator().manual_seed(3))
    observation = {name: batch[f"observation.{name}"] for name in ("pixels", "agent_pos")}
    torch.testing.assert_close(seen[0], policy.encode(observation, True, torch.Generator().manual_seed(3)))
    assert seen[0].requires_grad
    # One picture a prediction, however many network calls it takes.
    calls: list[bool] = []
    policy.encoder.register_forward_hook(lambda *_: calls.append(True))  # type: ignore[union-attr]
    policy.predict_action(observation, num_inference_steps=4)
    assert len(calls) == 1
    assert len(seen) == 1 + 4


def test_a_saved_image_policy_acts_the_same(tmp_path: Path) -> None:
    policy, observation, noise = image_policy(), image_observation(3), torch.randn(3, 16, 2)
    policy.save_pretrained(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    torch.testing.assert_close(
        loaded.predict_action(observation, noise=noise), policy.predict_action(observation, noise=noise)
    )
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["encoder"] == ENCODER


def test_a_policy_folder_from_before_encoders_loads(tmp_path: Path) -> None:
    small_policy().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("encoder", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_policy(tmp_path).encoder is None


def test_the_other_kind_of_observation_is_named() -> None:
    flat, images, seen = small_policy(), image_policy(), image_observation(2)
    with pytest.raises(
        ValueError, match=r"observation is a dictionary of \['agent_pos', 'pixels'\]; this policy takes"
    ):
        flat.predict_action(seen)
    with pytest.raises(ValueError, match="observation is one tensor; this policy takes a dictionary of pixels, agent"):
        images.predict_action(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match=r"observation is a dictionary of \['agent_pos'\]"):
        images.predict_action({"agent_pos": seen["agent_pos"]})
    with pytest.raises(ValueError, match=r"pixels have shape \(2, 1, 24, 24, 3\)"):
        images.predict_action({**seen, "pixels": seen["pixels"][:, :1]})
    with pytest.raises(ValueError, match=r"observation has shape \(2, 2, 3\)"):
        images.predict_action({**seen, "agent_pos": torch.zeros(2, 2, 3)})


def test_actions_are_a_function_of_observations_of_any_dtype() -> None:
    policy, noise = small_policy(), torch.randn(3, 16, 2)
    observation = (512 * torch.rand(3, 2, 5)).round()
    expected = policy.predict_action(observation, noise=noise)
    for dtype in (torch.float64, torch.int64):
        assert torch.equal(policy.predict_action(observation.to(dtype), noise=noise), expected)


@pytest.mark.parametrize("shape", [(3, 8, 2), (3, 32, 2), (1, 16, 2)])
@pytest.mark.parametrize("network", ["mlp", "unet1d"])
def test_noise_of_another_shape_is_named(shape: tuple[int, ...], network: str) -> None:
    options = {"width": 32, "n_blocks": 1} if network == "mlp" else {"down_dims": [16, 32], "step_embed_dim": 16}
    policy = small_policy(network={"name": network, **options})
    with pytest.raises(ValueError, match=re.escape(f"noise has shape {shape}; this sample takes (3, 16, 2)")):
        policy.predict_action(512 * torch.rand(3, 2, 5), noise=torch.randn(shape))


def test_no_sampling_steps_are_not_the_default() -> None:
    policy = small_policy()
    with pytest.raises(ValueError, match="steps=0: choose 1 to 100"):
        policy.predict_action(torch.rand(1, 2, 5), num_inference_steps=0)
    with pytest.raises(ValueError, match="steps=0: choose 1 to 100"):
        Planner(policy, [0], num_inference_steps=0).act(torch.rand(1, 2, 5))


def test_a_policy_without_data_does_not_act() -> None:
    network = {"name": "mlp", "width": 32, "n_blocks": 1}
    with pytest.raises(ValueError, match="call fit_normalizers"):
        DiffusionPolicy(5, 2, network=network).predict_action(torch.rand(1, 2, 5))


@pytest.mark.parametrize("name", ["observation_dim", "action_dim", "n_obs_steps"])
def test_sizes_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: must be an integer of at least 1"):
        small_policy(**{name: 0})
