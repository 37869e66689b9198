"""Residual: noise follows what the condition leaves open of the data, and tells nothing of the condition."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment, Mixture, Residual, Warmup, diagnose
from immiscible_policy.coupling.condition_regression import fit_regression, predict
from immiscible_policy.coupling.spec import parse_coupling

INNER = KNN(k=2, metric="inner")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(coupling: Coupling, data: Tensor, condition: Tensor | None, **options: int) -> Residual:
    residual = Residual(coupling, **options)
    residual.fit(data, condition)
    return residual


def curved(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data (n, 8), conditions (n, 3), and what these say of the data, by curves; the rest is of either sign alike."""
    condition = torch.rand(n, 3, generator=generator(seed)) * 4 - 2
    along = torch.cat([condition, condition.sin() * 2, condition[:, :2] ** 2 - 1], dim=1)
    return along + 0.3 * torch.randn(n, 8, generator=generator(seed + 1)), condition, along


def means_along(noise: Tensor, direction: Tensor) -> tuple[float, float]:
    """Mean of the noise along each row's direction, and its standard error."""
    along = (noise * torch.nn.functional.normalize(direction, dim=1)).sum(1)
    return float(along.mean()), float(along.std()) / math.sqrt(len(along))


@pytest.mark.parametrize("labelled", [True, False])
def test_with_two_candidates_the_noise_given_the_condition_is_that_of_the_prior(labelled: bool) -> None:
    n = 40_000
    if labelled:  # two classes, each with two opposite modes
        condition = torch.randint(2, (n,), generator=generator(0))
        said = torch.tensor([[3.0, 0.0, 1.0], [-1.0, 2.0, 0.0]])[condition]
        sign = torch.randint(2, (n, 1), generator=generator(1)) * 2.0 - 1
        data = said + sign * torch.tensor([0.2, 0.5, -0.4])
    else:
        data, condition, said = curved(n, 0)
    noise = fitted(INNER, data, condition)(data, condition=condition, generator=generator(2))
    # Selection is as strong as without a condition: E[max of two normals] = 1 / sqrt(pi).
    along, error = means_along(noise, data - said)
    assert along == pytest.approx(1 / math.sqrt(math.pi), abs=5 * error if labelled else 0.03)
    # What the condition says of the data is met by N(0, 1), where the plain coupling's noise leans to it.
    rows = (noise * torch.nn.functional.normalize(said, dim=1)).sum(1).double().numpy()
    assert stats.kstest(rows, "norm").pvalue > 1e-3
    plain = INNER(data, generator=generator(2))
    leaning = (plain * torch.nn.functional.normalize(said, dim=1)).sum(1).double().numpy()
    assert stats.kstest(leaning, "norm").pvalue < 1e-12
    # All second moments of N(0, I).
    assert torch.allclose(noise.T @ noise / n, torch.eye(noise.shape[1]), atol=5 * math.sqrt(2 / n))
    if labelled:  # given the class, exactly N(0, I): also along its own modes
        modes = torch.nn.functional.normalize(torch.tensor([0.2, 0.5, -0.4]), dim=0)
        for label in (0, 1):
            assert stats.kstest((noise[condition == label] @ modes).double().numpy(), "norm").pvalue > 1e-3


def test_the_condition_tells_less_of_the_noise_the_better_it_is_regressed() -> None:
    data, condition, said = curved(20_000, 3)
    shifts = [
        means_along(coupling(data, condition=condition, generator=generator(5)), said)[0]
        for coupling in (INNER, fitted(INNER, data, condition, n_features=0), fitted(INNER, data, condition))
    ]
    assert shifts[0] > 0.5  # a linear regression leaves the curves
    assert 0.05 < shifts[1] < 0.4
    assert abs(shifts[2]) < 0.03
    skew = diagnose(
        data, fitted(INNER, data, condition)(data, condition=condition, generator=generator(6)), condition=condition
    ).condition_skew
    assert abs(skew) < 0.002


def test_labels_take_the_means_of_their_classes_and_unknown_ones_that_of_all() -> None:
    data, labels = torch.randn(60, 2, 3, generator=generator(0)), torch.tensor([7, 2, 5]).repeat(20)
    regression = fit_regression(data, labels, 512, 0)
    found = predict(regression, torch.tensor([2, 7, 9, -1]), 4)
    torch.testing.assert_close(found[0], data[labels == 2].mean(0).flatten())
    torch.testing.assert_close(found[1], data[labels == 7].mean(0).flatten())
    torch.testing.assert_close(found[2:], data.mean(0).flatten().expand(2, -1))
    yes = torch.arange(60) % 2 == 0
    found = predict(fit_regression(data, yes, 512, 0), yes[:2], 2)
    torch.testing.assert_close(found, torch.stack([data[yes].mean(0).flatten(), data[~yes].mean(0).flatten()]))


def test_without_features_it_is_least_squares() -> None:
    condition = torch.randn(500, 4, generator=generator(0), dtype=torch.float64)
    data = condition @ torch.randn(4, 6, generator=generator(1), dtype=torch.float64)
    data = data + 2 + 0.1 * torch.randn(500, 6, generator=generator(2), dtype=torch.float64)
    design = torch.cat([condition, torch.ones(500, 1, dtype=torch.float64)], dim=1)
    expected = design @ torch.linalg.lstsq(design, data).solution
    found = predict(fit_regression(data, condition, 0, 0), condition, 500)
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0)  # but for the ridge, of data of order 2


def test_curves_are_found_where_nothing_was_fitted() -> None:
    data, condition, _ = curved(4000, 10)
    _, new, said = curved(500, 20)
    found = predict(fit_regression(data, condition, 512, 0), new, 500)
    assert float((found - said).square().sum() / (said - said.mean(0)).square().sum()) < 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 130), st.integers(1, 4), st.integers(0, 40), st.booleans())
def test_any_number_of_data_can_be_fitted(n: int, entries: int, n_features: int, constant: bool) -> None:
    data = torch.randn(n, 3, 2, generator=generator(n))
    condition = torch.ones(n, entries) if constant else torch.randn(n, entries, generator=generator(1))
    residual = fitted(INNER, data, condition, n_features=n_features)
    noise = residual(data, condition=condition, generator=generator(2))
    assert noise.shape == data.shape
    assert noise.isfinite().all()
    if constant:
        assert torch.allclose(predict(residual._state, condition, n), data.mean(0).flatten(), atol=1e-5)


def test_off_it_is_randn_to_the_bit() -> None:
    data, condition, _ = curved(64, 0)
    noise = fitted(Independent(), data, condition)(data, condition=condition, generator=generator(1))
    assert torch.equal(noise, torch.randn(64, 8, generator=generator(1)))


def test_it_is_the_coupling_of_the_residuals() -> None:
    data, condition = torch.randn(32, 4, generator=generator(0)) + 5, None
    for coupling in (LinearAssignment(), KNN(k=3), Mixture(KNN(k=3), p=0.5)):
        noise = fitted(coupling, data, condition)(data, generator=generator(1))
        expected = coupling(data - data.mean(0), generator=generator(1))
        torch.testing.assert_close(noise, expected)


def test_padding_may_hold_anything() -> None:
    data, condition, _ = curved(64, 0)
    residual = fitted(KNN(k=4), data, condition)
    mask = torch.arange(8).expand(64, 8) < 6
    clean = residual(data, condition=condition, mask=mask, generator=generator(1))
    spoiled = torch.where(mask, data, math.nan)
    assert torch.equal(residual(spoiled, condition=condition, mask=mask, generator=generator(1)), clean)


@pytest.mark.parametrize("kind", ["vectors", "labels", "none"])
def test_entries_are_regressed_over_the_data_where_they_count(kind: str) -> None:
    data, vectors, _ = curved(400, 0)
    mask = torch.rand(400, 1, generator=generator(7)) * 8 > torch.arange(8) - 3  # later entries count less often
    mask[:, 7] = False
    condition = {"vectors": vectors, "labels": (vectors[:, 0] > 0).long(), "none": None}[kind]
    found = predict(fit_regression(torch.where(mask, data, math.nan), condition, 0, 0, mask), condition, 400)
    assert torch.equal(found[:, 7], torch.zeros(400))
    for entry in range(7):
        rows = mask[:, entry]
        own = None if condition is None else condition[rows]
        alone = fit_regression(data[rows, entry : entry + 1], own, 0, 0)
        # Ridges are chosen for all entries at once, and scales are those of all conditions.
        torch.testing.assert_close(found[rows, entry], predict(alone, own, int(rows.sum()))[:, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_mask_of_all_is_none(labelled: bool) -> None:
    data, condition, _ = curved(300, 0)
    condition = (condition[:, 0] > 0).long() if labelled else condition
    plain = fit_regression(data, condition, 32, 0)
    masked = fit_regression(data, condition, 32, 0, torch.ones(1, 8, dtype=torch.bool))
    assert plain.keys() == masked.keys()
    for name, value in plain.items():
        torch.testing.assert_close(masked[name], value)


@pytest.mark.parametrize("padding", [0.0, 3.0, math.nan])
def test_padding_does_not_make_the_noise_lean_to_what_the_condition_says(padding: float) -> None:
    n = 20_000
    condition = torch.randn(n, 2, generator=generator(0))
    said = condition[:, :1].expand(n, 16)
    mask = torch.arange(16) < torch.randint(8, 17, (n, 1), generator=generator(1))
    data = torch.where(mask, said + 0.3 * torch.randn(n, 16, generator=generator(2)), padding)
    coupling = Warmup(Residual(INNER, n_features=32))
    coupling.fit(data, condition, mask)
    noise = coupling(data, condition=condition, mask=mask, generator=generator(3))
    mean, error = means_along(noise, torch.where(mask, said, 0.0))
    assert abs(mean) < 5 * error
    with pytest.raises(ValueError, match="mask must be broadcastable to data"):
        coupling.fit(data, condition, mask[:, :3])


def test_a_checkpoint_holds_what_was_fitted() -> None:
    data, condition, _ = curved(300, 0)
    residual = fitted(INNER, data, condition)
    restored = Residual(INNER)
    restored.load_state_dict(residual.state_dict())
    arguments = {"condition": condition[:9], "generator": generator(4)}
    expected = residual(data[:9], **arguments)
    arguments["generator"] = generator(4)
    assert torch.equal(restored(data[:9], **arguments), expected)
    for twin in (residual.for_validation(), residual.at_inference(), Warmup(residual).for_validation()):
        assert torch.equal(twin(data[:9], condition=condition[:9], generator=generator(4)), expected)
    for state, message in (
        ({}, "must hold regression and coupling, got the keys []"),
        ({"regression": {"mean": data[0], "slope": data[0]}, "coupling": {}}, "holds ['mean', 'slope']"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            restored.load_state_dict(state)
    assert torch.equal(restored(data[:9], condition=condition[:9], generator=generator(4)), expected)


def test_it_says_what_it_needs() -> None:
    data, condition, _ = curved(200, 0)
    residual = Residual(INNER)
    with pytest.raises(RuntimeError, match="Residual must be fitted before it is used"):
        residual(data, condition=condition)
    with pytest.raises(ValueError, match="was fitted to the training data"):
        residual.at_inference()
    residual.fit(data, condition)
    for given_condition, found in ((None, "None"), (condition[:, :2], "(200, 2)"), (torch.arange(200), "int64")):
        with pytest.raises(ValueError, match=r"condition must be of the 3 entries a row .*" + re.escape(found)):
            residual(data, condition=given_condition)
    with pytest.raises(ValueError, match=r"data must have the 8 entries a row .* got \(200, 4\)"):
        residual(data[:, :4], condition=condition)
    residual.fit(data, torch.arange(200) % 3)
    with pytest.raises(ValueError, match=r"condition must be \(B,\) labels.* got torch.float32 of shape \(200, 3\)"):
        residual(data, condition=condition)
    for bad in ("data", "condition"):
        spoiled = {"data": data.clone(), "condition": condition.clone()}
        spoiled[bad][3, 1] = math.nan
        with pytest.raises(ValueError, match=f"{bad} must be finite, got 1 NaN or infinite"):
            residual.fit(**spoiled)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coupling": "KNN"}, TypeError, "coupling must be a Coupling, got str"),
        ({"coupling": INNER, "n_features": -1}, ValueError, "n_features must be an integer >= 0, got -1"),
        ({"coupling": INNER, "seed": 0.5}, ValueError, "seed must be an integer >= 0, got 0.5"),
    ],
)
def test_bad_settings_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Residual(**arguments)


def test_it_is_written_and_asked_like_other_couplings() -> None:
    text = "Residual(coupling=KNN(k=2, metric='inner'))"
    assert repr(Residual(INNER)) == text
    assert parse_coupling(text) == Residual(INNER)
    assert Residual(INNER).fit_uses == Warmup(Residual(INNER)).fit_uses == {"data", "condition", "mask"}
    assert Residual(INNER).is_rowwise
    assert not Residual(LinearAssignment()).is_rowwise
    assert Residual(Mixture(INNER, p=(0.0, 1.0))).uses_time
    assert Residual(Independent()).caveat is None
    assert "what the condition leaves open" in (Residual(INNER).caveat or "")


@pytest.mark.parametrize("condition", [torch.zeros(9, 3), torch.zeros(9, dtype=torch.long)])
def test_a_fit_needs_a_condition_for_each_datum(condition: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a condition for each, got 10 data and 9 conditions"):
        Residual(INNER).fit(torch.zeros(10, 4), condition)
    with pytest.raises(ValueError, match="got 0 data and no condition"):
        Residual(INNER).fit(torch.zeros(0, 4))


def test_a_condition_that_is_not_finite_is_the_one_named() -> None:
    coupling = Residual(INNER)
    coupling.fit(torch.randn(50, 4), torch.randn(50, 3))
    with pytest.raises(ValueError, match="condition must be finite"):
        coupling(torch.randn(5, 4), condition=torch.full((5, 3), float("nan")))
