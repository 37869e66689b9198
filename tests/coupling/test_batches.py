"""Batches of a data set without training: epochs, what couplings are told, and that they are left alone."""

import pytest
import torch

from immiscible_policy.coupling import KNN, Independent, Warmup
from immiscible_policy.coupling.batches import check_sizes, coupled_batches, epoch_batches, fitted_copy


def test_batches_are_epochs_without_repetition():
    batches = epoch_batches(23, 5, 9, seed=0)
    assert batches.shape == (9, 5)
    for begin in (0, 4, 8):
        seen = batches[begin : begin + 4].flatten()
        assert len(torch.unique(seen)) == len(seen)
    assert not torch.equal(batches[:4], batches[4:8])


def test_each_batch_begins_with_a_generator_of_its_own():
    data, batches = torch.zeros(12, 2, 3), epoch_batches(12, 4, 3, seed=0)
    noises = [noise for _, _, noise in coupled_batches(Independent(), data, None, batches, seed=0)]
    assert [noise.shape for noise in noises] == [(4, 6)] * 3
    last = next(coupled_batches(Independent(), data, None, batches[2:], seed=0))[2]
    assert torch.equal(last, noises[0])  # numbered within the call
    assert not torch.equal(noises[0], noises[1])
    other = next(coupled_batches(Independent(), data, None, batches, seed=1))[2]
    assert not torch.equal(other, noises[0])


def test_copies_are_fitted_and_the_original_is_not():
    shown = []

    class Fitted(KNN):
        def fit(self, data, condition=None):
            shown.append((self, data, condition))

    original, data = Fitted(k=2), torch.zeros(3, 2)
    copy = fitted_copy(original, data, None)
    assert copy == original
    assert copy is not original
    assert len(shown) == 1
    assert shown[0][0] is copy
    assert shown[0][1] is data
    warm = Warmup(KNN(k=2), start=1)
    list(coupled_batches(warm, torch.ones(4, 2), None, epoch_batches(4, 2, 2, 0), seed=0))
    assert warm.calls == 0


def test_sizes_that_do_not_fit_are_named():
    check_sizes(5, 5)
    for size in (1, 6):
        with pytest.raises(ValueError, match=f"batch_size must be from 2 to the 5 data, got {size}"):
            check_sizes(5, size)
