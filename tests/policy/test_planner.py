"""Coupled inference: whose noise, chosen against what, and how it stays each episode's own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_policy.coupling import KNN, Coupling, Independent
from immiscible_policy.coupling.base import Context
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling, Planner, load_policy

HORIZON, EXECUTED = 16, 8


def small_policy(coupling: str | None = "KNN(k=2)", **options: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    network = {"name": "mlp", "width": 32, "n_blocks": 1, "step_embed_dim": 16}
    policy = DiffusionPolicy(5, 2, network=network, num_inference_steps=3, coupling=coupling, **options)
    policy.fit_normalizers(512 * torch.rand(100, 5), 512 * torch.rand(100, 2))
    return policy.eval()


class Spied(DiffusionPolicy):
    """Remembers the noise of every sample, and answers with plans that can be recognised: 0.001 times their number."""

    @classmethod
    def of(cls, policy: DiffusionPolicy) -> Any:
        policy.__class__ = cls
        policy.noises, policy.answer = [], lambda noise: noise.clone()  # type: ignore[assignment]
        return policy

    def plan(self, condition: Tensor, generator: Any = None, steps: Any = None, noise: Any = None) -> Tensor:
        self.noises.append(noise)
        super().plan(condition, generator, steps, noise)  # whose network calls count
        return self.answer(noise)


def observations(n: int, seed: int = 0) -> Tensor:
    return 512 * torch.rand(n, 2, 5, generator=torch.Generator().manual_seed(seed))


def test_none_is_predict_action_from_each_episodes_own_noise() -> None:
    policy = Spied.of(small_policy())
    Planner(policy, [7, 9]).act(observations(2))
    Planner(policy, [9]).act(observations(1))
    assert torch.equal(policy.noises[0][1:], policy.noises[1])
    plain = small_policy()
    planner = Planner(plain, [7, 9])
    actions = planner.act(observations(2))
    expected = plain.predict_action(observations(2), noise=policy.noises[0])
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(planner.last_plan()[:, 1 : 1 + EXECUTED], expected)
    assert planner.network_calls.tolist() == [3, 3]


class Recorder(Coupling):
    """Chooses zero noise, and remembers what against."""

    seen: list[tuple[Tensor, Context]] = []  # noqa: RUF012
    is_rowwise = True

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        Recorder.seen.append((data, context))
        return torch.zeros_like(data)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.seen = []
    monkeypatch.setattr(InferenceCoupling, "coupling_for", lambda self, policy: Recorder())
    return Recorder


def test_warm_chooses_against_the_shifted_previous_plan(recorder: type[Recorder]) -> None:
    policy = Spied.of(small_policy(objective={"name": "ddpm", "data_scale": 2.0}))
    planner = Planner(policy, [3], inference_coupling=InferenceCoupling("warm", first_chunk="independent"))
    planner.act(observations(1))
    assert recorder.seen == []
    first = policy.noises[0]  # which is also the plan
    planner.act(observations(1, 1))
    data, context = recorder.seen[0]
    torch.testing.assert_close(data[:, : HORIZON - EXECUTED], 2 * first[:, EXECUTED:])
    torch.testing.assert_close(data[:, HORIZON - EXECUTED :], 2 * first[:, -1:].expand(-1, EXECUTED, -1))
    assert context.mask is None
    expected = policy.observation_normalizer.normalize(observations(1, 1))
    torch.testing.assert_close(context.condition, expected)
    assert torch.equal(policy.noises[1], torch.zeros(1, HORIZON, 2))


@pytest.mark.parametrize("mode", ["none", "warm", "two_pass"])
def test_every_initial_noise_is_scaled(mode: str) -> None:
    noises = {}
    for scale in (1.0, 0.5):
        policy = Spied.of(small_policy())
        policy.answer = lambda noise: torch.ones_like(noise)  # so that the choices are the same
        planner = Planner(policy, [3, 4], inference_coupling=InferenceCoupling(mode, noise_scale=scale))
        for _ in range(2):
            planner.act(observations(2))
        noises[scale] = policy.noises
    assert len(noises[1.0]) == {"none": 2, "warm": 3, "two_pass": 4}[mode]
    for whole, half in zip(noises[1.0], noises[0.5], strict=True):
        torch.testing.assert_close(half, 0.5 * whole)


def test_without_noise_an_observation_has_one_plan() -> None:
    policy = small_policy()
    settings = InferenceCoupling(noise_scale=0)
    plans = [Planner(policy, [3, 4], noise_seed=s, inference_coupling=settings).act(observations(2)) for s in (0, 1)]
    assert torch.equal(*plans)


def test_known_only_leaves_the_repeated_actions_out(recorder: type[Recorder]) -> None:
    settings = InferenceCoupling("warm", "independent", known_only=True)
    planner = Planner(Spied.of(small_policy()), [3], inference_coupling=settings)
    for _ in range(2):
        planner.act(observations(1))
    mask = recorder.seen[0][1].mask
    assert mask is not None
    assert mask.flatten().tolist() == [True] * (HORIZON - EXECUTED) + [False] * EXECUTED


@pytest.mark.parametrize("scale", [-1e-9, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"noise_scale={scale}: must be 0 or more"):
        InferenceCoupling(noise_scale=scale)


def test_the_first_chunk_of_warm_is_sampled_twice_and_two_pass_always_is(recorder: type[Recorder]) -> None:
    for mode, samples in (("warm", [2, 1, 1]), ("two_pass", [2, 2, 2])):
        policy = Spied.of(small_policy())
        planner = Planner(policy, [3], inference_coupling=mode)
        for total in samples:
            before = len(policy.noises), int(planner.network_calls[0])
            planner.act(observations(1))
            assert len(policy.noises) - before[0] == total
            assert planner.network_calls[0] - before[1] == 3 * total
    # The noise of two_pass is chosen against the sample that it has just drawn.
    torch.testing.assert_close(recorder.seen[-1][0], policy.noises[-2])
    planner = Planner(Spied.of(small_policy()), [3], inference_coupling="warm")
    planner.act(observations(1))
    planner.reset()
    planner.act(observations(1))
    assert planner.network_calls[0] == 12


def test_an_episodes_actions_do_not_depend_on_its_neighbours() -> None:
    # By flow matching: DDIM's first step multiplies by 2,029 what batches of other sizes differ by in rounding.
    policy = small_policy(objective={"name": "flow_matching"})
    for mode in ("warm", "two_pass"):
        together = Planner(policy, [4, 5, 6], inference_coupling=mode)
        alone = Planner(policy, [5], inference_coupling=mode)
        seen = observations(3)
        together.act(seen)
        first = alone.act(seen[1:2])
        torch.testing.assert_close(together.last_plan([1])[:, 1 : 1 + EXECUTED], first, rtol=1e-4, atol=1e-2)
        later = together.act(seen[:2], rows=[0, 1])  # the third episode has ended
        torch.testing.assert_close(later[1:], alone.act(seen[1:2]), rtol=1e-4, atol=1e-2)


def test_the_chosen_noise_has_the_law_of_training() -> None:
    policy = Spied.of(small_policy("KNN(k=8)"))
    plan = torch.full((1, HORIZON, 2), 0.5)
    policy.answer = lambda noise: plan.expand(len(noise), -1, -1)
    planner = Planner(policy, range(400), inference_coupling=InferenceCoupling("two_pass"))
    planner.act(observations(400))
    chosen = policy.noises[-1]
    reference = KNN(k=8)(plan.expand(20_000, -1, -1), generator=torch.Generator().manual_seed(0))
    for statistic in (lambda n: n.mean((1, 2)), lambda n: n.square().mean((1, 2))):
        mine, theirs = statistic(chosen), statistic(reference)
        assert abs(float(mine.mean() - theirs.mean())) < 4 * float(theirs.std()) / 20
    assert float(chosen.mean()) > 0.1  # towards the plan


def test_an_assignment_chooses_among_companions() -> None:
    policy = Spied.of(small_policy("LinearAssignment()", n_companions=40))
    with pytest.raises(ValueError, match="n_companions=0"):
        Planner(small_policy("LinearAssignment()"), [0], inference_coupling="warm")
    policy.keep_companions(-0.5 * torch.ones(40, HORIZON, 2), torch.zeros(40, 2, 5), batch_size=32)
    policy.answer = lambda noise: torch.full_like(noise, 0.5)
    Planner(policy, range(200), inference_coupling="two_pass").act(observations(200))
    # Alone among data on the other side, it gets the batch's noise that lies most on its own.
    along = policy.noises[-1].sum((1, 2)) / (2 * HORIZON) ** 0.5
    assert 1.6 < float(along.mean()) < 2.6  # the largest of 32 normals: 2.07 on average


def test_companions_travel_with_the_policy(tmp_path: Any) -> None:
    policy = small_policy("LinearAssignment()", n_companions=8)
    policy.keep_companions(torch.rand(8, HORIZON, 2), torch.rand(8, 2, 5), batch_size=4)
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert torch.equal(loaded.companion_data, policy.companion_data)
    assert int(loaded.companion_batch_size) == 4
    actions = [Planner(p, [0], inference_coupling="two_pass").act(observations(1)) for p in (policy, loaded)]
    torch.testing.assert_close(*actions)


def test_what_was_trained_at_the_end_is_what_chooses() -> None:
    def chosen(text: str | None, **settings: Any) -> Coupling:
        return InferenceCoupling("warm", **settings).coupling_for(small_policy(text, n_companions=2))

    assert chosen("Warmup(KNN(k=2), start=100)") == KNN(k=2)
    assert chosen("Warmup(KNN(k=8), start=0, anneal_to={'k': 1}, anneal_over=9)") == KNN(k=1)
    assert chosen("Independent()", selection="KNN(k=4)") == KNN(k=4)
    with pytest.raises(ValueError, match="does not say which coupling"):
        chosen(None)
    with pytest.raises(ValueError, match="SeedCache keeps noises"):
        chosen("SeedCache(n_data=10)")
    with pytest.raises(ValueError, match="was fitted to the training data"):
        chosen("LinearAssignment(condition_weight=ClusteredConditions())")
    policy = Spied.of(small_policy("Independent()"))
    with pytest.warns(UserWarning, match="trained without a coupling, so that its noise is drawn as ever"):
        Planner(policy, [1], inference_coupling="warm").act(observations(1))
    Planner(policy, [1]).act(observations(1))
    with pytest.warns(UserWarning, match="drawn as ever"):
        assert isinstance(InferenceCoupling("warm").coupling_for(policy), Independent)
    assert torch.equal(policy.noises[0], policy.noises[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "hot"}, r"inference_coupling='hot': choose one of none, warm, two_pass"),
        ({"first_chunk": "zero"}, r"first_chunk='zero': choose one of two_pass, independent"),
        ({"selection": "Nearest(k=2)"}, r"'Nearest' is none of the couplings"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceCoupling(**settings)


@pytest.mark.parametrize(
    ("objective", "calls"),
    [
        ({"name": "ddpm", "sampler": "pndm", "clip_sample": False}, 4),
        ({"name": "flow_matching", "sampler": "midpoint"}, 3),
        ({"name": "flow_matching", "sampler": "adaptive"}, None),
    ],
    ids=["pndm", "midpoint", "adaptive"],
)
def test_network_calls_are_those_that_the_sampler_makes(objective: dict[str, Any], calls: int | None) -> None:
    policy, made = small_policy(objective=objective), []
    planner = Planner(policy, [0, 1])
    with torch.no_grad():
        handle = policy.network.register_forward_hook(lambda *_: made.append(1))
        planner.act(observations(2))
        planner.act(observations(1), rows=[1])
        handle.remove()
    assert int(planner.network_calls[1]) == len(made) > planner.network_calls[0]
    assert calls is None or planner.network_calls.tolist() == [calls, 2 * calls]


def test_before_the_first_chunk_there_is_no_plan() -> None:
    planner = Planner(small_policy(), [0, 1])
    assert bool(planner.last_plan().isnan().all())
    planner.act(observations(1), rows=[1])
    assert planner.last_plan().isnan().flatten(1).all(1).tolist() == [True, False]
    planner.reset([1])
    assert bool(planner.last_plan([1]).isnan().all())
