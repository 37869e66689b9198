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
