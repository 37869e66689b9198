"""What every objective promises, whatever it predicts."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from immiscible_policy.coupling import KNN, Coupling, Mixture
from immiscible_policy.diffusion import OBJECTIVES, Objective, build_objective
from immiscible_policy.policy import DiffusionPolicy

NAMES = sorted(OBJECTIVES)
SHAPES = [(6, 3), (6, 16, 2), (6, 3, 8, 8)]
PRECISIONS = [
    {"name": "ddpm"},
    {"name": "ddpm", "sampler": "ddpm"},
    {"name": "ddpm", "sampler": "pndm", "clip_sample": False},
    {"name": "flow_matching"},
    {"name": "flow_matching", "sampler": "heun"},
    {"name": "flow_matching", "sampler": "adaptive"},
    {"name": "consistency"},
]


def build(name: str, **options: object) -> Objective:
    return build_objective({"name": name, **options})


def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
    assert time.shape == noisy.shape[:1]
    return torch.tanh(noisy.flip(-1) + time.view(-1, *[1] * (noisy.ndim - 1)) / 500)


def test_unknown_objectives_are_refused_with_the_list() -> None:
    for options in ({"name": "score"}, {}):
        with pytest.raises(ValueError, match="choose one of ddpm, flow_matching, consistency"):
            build_objective(options)


@pytest.mark.parametrize("name", NAMES)
class TestEveryObjective:
    def test_it_is_an_objective_and_names_its_sampler(self, name: str) -> None:
        objective = build(name)
        assert isinstance(objective, Objective)
        assert isinstance(objective.sampler, str)
        assert objective.data_scale == 1.0
        assert objective.max_steps == (100 if name == "ddpm" else None)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_data_may_have_any_rank(self, name: str, shape: tuple[int, ...]) -> None:
        objective = build(name)
        loss = objective.loss(network, torch.randn(shape), torch.randn(shape))
        assert loss.shape == ()
        assert loss.isfinite()
        for steps in (None, 1, 4, 16):
            samples = objective.sample(network, shape, steps=steps)
            assert samples.shape == shape
            assert samples.isfinite().all()
            assert samples.abs().max() <= 1.001

    def test_the_loss_draws_no_noise(self, name: str) -> None:
        """All that it draws is the time, so with the time given it leaves the generators alone."""
        objective, data, noise = build(name), torch.randn(6, 3), torch.randn(6, 3)
        generator = torch.Generator().manual_seed(0)
        time = objective.draw_time(6, data.device, generator)
        before, torch_before = generator.get_state(), torch.get_rng_state()
        given = objective.loss(network, data, noise, generator=generator, time=time)
        assert torch.equal(before, generator.get_state())
        assert torch.equal(torch_before, torch.get_rng_state())
        assert torch.equal(given, objective.loss(network, data, noise, generator=generator.manual_seed(0)))
        assert not torch.equal(given, objective.loss(network, data, noise + 1, time=time))

    def test_the_loss_does_not_modify_what_it_is_given(self, name: str) -> None:
        data, noise = torch.randn(6, 3), torch.randn(6, 3)
        copies = data.clone(), noise.clone()
        build(name, data_scale=2.0).loss(network, data, noise)
        assert torch.equal(data, copies[0])
        assert torch.equal(noise, copies[1])

    def test_diffusion_times_are_in_the_unit_interval_and_noisier_is_later(self, name: str) -> None:
        objective = build(name, **{"time_sampling": "uniform"} if name == "consistency" else {})
        time = objective.draw_time(5_000, torch.device("cpu"), torch.Generator().manual_seed(0)).sort().values
        known = objective.diffusion_time(time)
        assert known.shape == (5_000,)
        assert known.dtype == torch.float32
        assert 0 < known.min() < 0.1
        assert 0.9 < known.max() <= 1
        assert (known.diff() >= 0).all()
        # Noisier: the input of the network says less about the data at later times.
        data = torch.full((5_000, 64), 1.0)
        inputs: list[Tensor] = []

        def listen(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            inputs.append(noisy)
            return noisy

        objective.loss(listen, data, torch.randn(5_000, 64, generator=torch.Generator().manual_seed(0)), time=time)
        signal = inputs[0].mean(1) / inputs[0].std(1)
        assert signal[:500].mean() > signal[2_000:3_000].mean() > signal[-500:].mean()
        assert signal[known > 0.99].abs().mean() < 0.5

    @pytest.mark.parametrize("shape", SHAPES)
    def test_entries_that_the_mask_leaves_out_do_not_count(self, name: str, shape: tuple[int, ...]) -> None:
        """Neither their data nor their noise, for a network that looks at each entry alone."""
        objective, data, noise = build(name), torch.randn(shape), torch.randn(shape)
        mask = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)) < shape[1] // 2

        def entrywise(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            return torch.tanh(noisy)

        time = objective.draw_time(6, data.device)
        cut = [x[:, : shape[1] // 2] for x in (data, noise)]
        masked = objective.loss(entrywise, torch.where(mask, data, 100.0), noise, mask=mask, time=time)
        torch.testing.assert_close(masked, objective.loss(entrywise, *cut, time=time))
        full = objective.loss(entrywise, data, noise, mask=torch.ones(1, dtype=torch.bool), time=time)
        torch.testing.assert_close(full, objective.loss(entrywise, data, noise, time=time))
        none = objective.loss(entrywise, data, noise, mask=torch.zeros(1, dtype=torch.bool), time=time)
        assert none == 0

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_the_mask_leaves_out_may_be_nan_or_infinite(self, name: str, value: float) -> None:
        """For a network that mixes all entries: nothing of them in the loss, nor in its gradient."""
        objective, noise = build(name), torch.randn(6, 8)
        mask = (torch.arange(8) < 5)[None]
        data = torch.where(mask, torch.randn(6, 8), value)
        mixing = torch.nn.Linear(8, 8)
        time = objective.draw_time(6, data.device)

        def loss_of(data: Tensor) -> Tensor:
            return objective.loss(lambda noisy, *_: mixing(noisy.float()), data, noise, mask=mask, time=time)

        loss = loss_of(data)
        assert torch.equal(loss, loss_of(torch.where(mask, data, 0.0)))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(mixing.weight.grad).all()

    @pytest.mark.parametrize("steps", [1, 4])
    def test_sampling_follows_the_generator_and_the_initial_noise(self, name: str, steps: int) -> None:
        objective = build(name)

        def sample(seed: int, noise: Tensor | None = None) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return objective.sample(network, (6, 3), steps=steps, generator=generator, noise=noise)

        assert torch.equal(sample(0), sample(0))
        assert not torch.equal(sample(0), sample(1))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(6, 3, generator=generator)
        again = objective.sample(network, (6, 3), steps=steps, generator=generator, noise=noise)
        assert torch.equal(again, sample(0))
        torch.manual_seed(0)
        state = torch.get_rng_state()
        sample(0)
        assert torch.equal(state, torch.get_rng_state())

    def test_conditions_reach_the_network_in_both_directions(self, name: str) -> None:
        seen: list[Tensor | None] = []

        def listen(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            seen.append(condition)
            return noisy

        condition, objective = torch.randn(6, 5), build(name)
        objective.loss(listen, torch.randn(6, 3), torch.randn(6, 3), condition=condition)
        objective.sample(listen, (6, 3), condition=condition, steps=3)
        assert len(seen) == (5 if name == "consistency" else 4)
        assert all(c is condition for c in seen)

    @pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
    def test_scaled_data_comes_back_unscaled(self, name: str, scale: float) -> None:
        """A network that knows the one datum, scaled, samples it unscaled, at the edge of the range too."""
        objective = build(name, data_scale=scale)
        datum = torch.tensor([-1.0, 0.25, 1.0]).expand(6, 3)

        def knowing(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            data = datum * scale
            if name == "ddpm":
                abar = objective.scheduler.alphas_cumprod[time.long()].view(-1, 1)
                return (noisy - abar.sqrt() * data) / (1 - abar).sqrt()
            if name == "flow_matching":
                return (noisy - data) / (time / 1000).view(-1, 1)
            sigma = (time / 250).exp().view(-1, 1)
            root = (sigma.square() + (0.5 * scale) ** 2).sqrt()
            skip = (0.5 * scale) ** 2 / ((sigma - objective.sigma_min).square() + (0.5 * scale) ** 2)
            return (data - skip * noisy * root) * root / ((sigma - objective.sigma_min) * 0.5 * scale)

        for steps in (1, 5):
            samples = objective.sample(knowing, (6, 3), steps=steps)
            torch.testing.assert_close(samples, datum, atol=2e-3, rtol=0)

    def test_steps_out_of_range_are_refused(self, name: str) -> None:
        objective = build(name)
        for steps in (0, 2.5):
            with pytest.raises(ValueError, match=f"steps={steps}: choose 1 to"):
                objective.sample(network, (6, 3), steps=steps)
        if objective.max_steps is not None:
            with pytest.raises(ValueError, match="steps=101"):
                objective.sample(network, (6, 3), steps=101)

    def test_noise_of_another_shape_is_refused(self, name: str) -> None:
        objective = build(name)
        with pytest.raises(ValueError, match=r"noise has shape \(1, 3\); it must have that of data, \(6, 3\)"):
            objective.loss(network, torch.zeros(6, 3), torch.randn(1, 3))
        with pytest.raises(ValueError, match=r"noise has shape \(1, 3\); this sample takes \(6, 3\)"):
            objective.sample(network, (6, 3), steps=1, noise=torch.randn(1, 3))

    def test_a_network_in_half_precision_has_a_loss_in_float32(self, name: str) -> None:
        def half(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            return network(noisy, time, condition).bfloat16()

        objective, data = build(name), torch.randn(6, 3)
        assert objective.loss(half, data, torch.randn(6, 3)).dtype == torch.float32
        assert objective.sample(half, (6, 3), steps=2).dtype == torch.float32

    def test_state_of_another_objective_is_refused(self, name: str) -> None:
        objective = build(name)
        objective.begin_step(nn.Linear(2, 2), 1, 10)
        assert objective.state_dict() == {}
        objective.load_state_dict({})
        with pytest.raises(ValueError, match="got the keys"):
            objective.load_state_dict({"calls": 3})

    @pytest.mark.parametrize("coupling", [KNN(k=4), Mixture(KNN(k=4), p=(0.0, 1.0))])
    def test_a_policy_trains_and_acts_with_it(self, name: str, coupling: Coupling) -> None:
        torch.manual_seed(0)
        mlp = {"name": "mlp", "width": 32, "n_blocks": 1, "step_embed_dim": 16}
        policy = DiffusionPolicy(5, 2, network=mlp, objective={"name": name}, num_inference_steps=4)
        policy.fit_normalizers(512 * torch.rand(100, 5), 512 * torch.rand(100, 2))
        observation = 512 * torch.rand(32, 2, 5)
        batch = {"observation": observation, "action": 512 * torch.rand(32, 16, 2)}
        policy.begin_step(1, 10)
        policy.loss(batch, coupling).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())
        actions = policy.predict_action(observation)
        assert actions.shape == (32, 8, 2)
        low, high = policy.action_normalizer.low, policy.action_normalizer.high
        assert ((actions >= low - 0.5) & (actions <= high + 0.5)).all()


@pytest.mark.parametrize("options", PRECISIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_learns_from_and_samples_in_its_own_dtype(
    options: dict, dtype: torch.dtype
) -> None:
    objective, layer = build_objective(options), nn.Linear(4, 4, bias=False).to(dtype)
    nn.init.eye_(layer.weight)  # all of the input is noise: estimates of the data stay in float16's range
    data, noise = (torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    seen: set[torch.dtype] = set()

    def own(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        seen.add(noisy.dtype)
        return layer(noisy)

    loss = objective.loss(own, data, noise)
    assert loss.dtype == torch.float32
    assert objective.sample(own, (8, 4), steps=3, noise=noise).isfinite().all()
    assert seen == {dtype}


def test_targets_of_flow_matching_are_not_rounded_to_half_precision() -> None:
    """Of a network that returns nothing the loss is the mean square of the exact difference of noise and data."""
    data, noise = (torch.randn(500, 4, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    loss = build("flow_matching").loss(lambda noisy, time, condition: torch.zeros_like(noisy), data, noise)
    torch.testing.assert_close(loss, (noise.float() - data.float()).square().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", PRECISIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_times_are_where_the_noise_is(options: dict) -> None:
    """On the meta device, of which a CPU has one too; the adaptive solver needs numbers and ends at the first call."""
    seen: set[tuple[str, str]] = set()

    def network(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        seen.add((noisy.device.type, time.device.type))
        return noisy

    objective = build_objective(options)
    with nullcontext() if objective.sampler != "adaptive" else pytest.raises(NotImplementedError):
        objective.sample(network, (4, 2), steps=2, noise=torch.empty(4, 2, device="meta"))
    assert seen <= {("meta", "meta")}


@pytest.mark.parametrize(
    "options",
    [
        {"name": "ddpm"},
        {"name": "flow_matching"},
        {"name": "flow_matching", "time_sampling": "logit_normal"},
        {"name": "consistency", "time_sampling": "uniform"},
        {"name": "consistency"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_a_compiled_step_takes_batches_of_any_size(options: dict) -> None:
    objective = build_objective(options)
    torch.compiler.reset()

    @torch.compile(backend="eager")
    def times(like: Tensor) -> Tensor:
        return objective.diffusion_time(objective.draw_time(like.shape[0], like.device))

    for size in (16, 10, 12):
        assert times(torch.zeros(size)).shape == (size,)
