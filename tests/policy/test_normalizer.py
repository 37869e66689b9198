"""Min-max normalisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from immiscible_policy.policy.normalizer import MinMaxNormalizer


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), dim=st.integers(1, 6), scale=st.floats(0.1, 1e3))
def test_round_trip_and_range(seed: int, dim: int, scale: float) -> None:
    data = scale * torch.randn(40, 3, dim, generator=torch.Generator().manual_seed(seed))
    normalizer = MinMaxNormalizer(dim)
    normalizer.fit(data)
    normalized = normalizer.normalize(data)
    torch.testing.assert_close(normalized.amin(dim=(0, 1)), -torch.ones(dim), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.amax(dim=(0, 1)), torch.ones(dim), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalizer.denormalize(normalized), data, atol=1e-4 * scale, rtol=1e-4)


def test_constant_entry_maps_to_zero_and_back() -> None:
    normalizer = MinMaxNormalizer(2)
    normalizer.fit(torch.tensor([[7.0, 0.0], [7.0, 1.0]]))
    assert normalizer.normalize(torch.tensor([7.0, 0.5])).tolist() == [0.0, 0.0]
    assert normalizer.denormalize(torch.tensor([0.0, 0.0])).tolist() == [7.0, 0.5]


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="3 entries, the normaliser 2"):
        MinMaxNormalizer(2).fit(torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), "data must be finite, got ranges from"),
        (torch.tensor([[1.0, float("inf")]]), "data must be finite, got ranges from"),
        (torch.zeros(0, 2), r"data has shape \(0, 2\): ranges need at least one datum"),
    ],
)
def test_data_without_ranges_are_refused(data: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MinMaxNormalizer(2).fit(data)


def test_without_ranges_nothing_is_normalised() -> None:
    normalizer = MinMaxNormalizer(2)
    for way in (normalizer.normalize, normalizer.denormalize):
        with pytest.raises(ValueError, match="no ranges of observations and actions yet: call fit_normalizers"):
            way(torch.zeros(1, 2))
    normalizer.fit(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    fitted = MinMaxNormalizer(2)
    fitted.load_state_dict(normalizer.state_dict())
    assert fitted.normalize(torch.tensor([[1.0, 3.0]])).tolist() == [[0.0, 1.0]]
    fitted.load_state_dict(MinMaxNormalizer(2).state_dict())
    assert not fitted.is_fitted


def test_observations_of_any_dtype_become_the_normalizers() -> None:
    normalizer = MinMaxNormalizer(1)
    normalizer.fit(torch.tensor([[0.0], [4.0]]))
    for dtype in (torch.float64, torch.int64, torch.float16):
        assert torch.equal(normalizer.normalize(torch.tensor([[1]], dtype=dtype)), torch.tensor([[-0.5]]))
