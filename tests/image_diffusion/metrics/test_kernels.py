"""Sums over pairs by blocks equal the sums over the whole matrix."""

import pytest
import torch

from image_diffusion.metrics import kernels


def test_blocks_give_the_sums_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(kernels, "_BLOCK_VALUES", 20)
    x, y = torch.randn(13, 3), torch.randn(7, 3)
    seen = []

    def kernel(a, b):
        seen.append(len(a))
        return (a @ b.T).exp()

    over_y, over_x = kernels.pair_sums(kernel, x, y)
    expected = (x.double() @ y.double().T).exp()
    torch.testing.assert_close(over_y, expected.sum(1))
    torch.testing.assert_close(over_x, expected.sum(0))
    assert max(seen) * len(y) <= 20
    assert sum(seen) == 13


def test_features_that_do_not_fit_are_refused():
    good = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="equal dims, got 3 and 2"):
        kernels.check_pair(good, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="reference holds features that are NaN"):
        kernels.check_pair(good, torch.full((4, 3), torch.nan))
    with pytest.raises(ValueError, match=r"generated must be \(N, dim\)"):
        kernels.check_pair(torch.zeros(4), good)
