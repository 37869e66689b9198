"""Off must be off to the last bit."""

import pytest
import torch

from immiscible_policy.coupling import Independent, LinearAssignment, Sinkhorn


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (64, 16, 2), (3, 4, 5, 6)])
def test_bit_identical_to_randn(shape, dtype):
    data = torch.ones(shape, dtype=dtype)
    torch.manual_seed(3)
    expected = [torch.randn(shape, dtype=dtype) for _ in range(3)]
    torch.manual_seed(3)
    for row in expected:
        assert torch.equal(Independent()(data), row)


def test_bit_identical_to_randn_with_a_generator():
    ours, reference = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    for size in (1, 5, 64):
        data = torch.zeros(size, 16, 2)
        mask, condition = torch.ones(size, 16, 1, dtype=torch.bool), torch.zeros(size)
        noise = Independent()(data, condition=condition, mask=mask, generator=ours)
        assert torch.equal(noise, torch.randn(data.shape, generator=reference))
    assert torch.equal(ours.get_state(), reference.get_state())


def test_given_noise_is_returned_and_no_randomness_used():
    noise, generator = torch.randn(4, 3), torch.Generator().manual_seed(1)
    state = generator.get_state()
    result = Independent()(torch.zeros(4, 3), noise, generator=generator)
    assert result.data_ptr() == noise.data_ptr()
    assert torch.equal(result, noise)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("kind", [Independent, LinearAssignment, Sinkhorn])
def test_a_source_that_is_no_function_is_named(kind):
    with pytest.raises(TypeError, match=r"source must be a function \(shape, generator\) -> tensor or None, got 3"):
        kind(source=3)(torch.zeros(4, 2))
