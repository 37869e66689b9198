"""prefetch: the noises of a plain loop, one batch ahead, in another thread."""

import threading

import pytest
import torch

from immiscible_policy.coupling import LinearAssignment, Warmup, prefetch


def batches(count: int) -> list[torch.Tensor]:
    return [torch.randn(32, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_same_noises_as_a_plain_loop(count):
    coupling = LinearAssignment()
    generator = torch.Generator().manual_seed(0)
    plain = [(batch, coupling(batch, generator=generator)) for batch in batches(count)]
    generator.manual_seed(0)
    ahead = list(prefetch(batches(count), lambda batch: coupling(batch, generator=generator)))
    assert len(ahead) == count
    for (batch, noise), (wanted_batch, wanted_noise) in zip(ahead, plain, strict=True):
        assert torch.equal(batch, wanted_batch)
        assert torch.equal(noise, wanted_noise)


def test_the_next_batch_is_coupled_while_the_loop_works():
    """The loop waits for the next batch's coupling to begin: with a plain loop it would wait for ever."""
    begun = [threading.Event() for _ in range(4)]

    def couple(index: int) -> torch.Tensor:
        begun[index].set()
        assert threading.current_thread() is not threading.main_thread()
        return torch.tensor(index)

    for index, noise in prefetch(range(4), couple):
        assert int(noise) == index
        if index < 3:
            assert begun[index + 1].wait(timeout=30)


def test_only_one_batch_ahead():
    taken = []

    def source():
        for index in range(10):
            taken.append(index)
            yield index

    for index, _ in prefetch(source(), torch.tensor):
        assert taken[-1] <= index + 1
        if index == 4:
            break
    assert taken[-1] == 5


def test_an_error_appears_at_its_batch():
    def couple(index: int) -> torch.Tensor:
        if index == 2:
            raise ValueError("data must be finite")
        return torch.tensor(index)

    ahead = prefetch(range(5), couple)
    assert [next(ahead)[0], next(ahead)[0]] == [0, 1]
    with pytest.raises(ValueError, match="data must be finite"):
        next(ahead)


def test_leaving_the_loop_ends_the_thread():
    for index, _ in prefetch(range(100), torch.tensor):
        if index == 1:
            break
    assert not [t for t in threading.enumerate() if t.name.startswith("coupling")]


def test_batches_before_an_error_of_the_loader_are_trained_on():
    def batches():
        yield torch.zeros(1)
        yield torch.ones(1)
        raise OSError("the disk is gone")

    loop = prefetch(batches(), lambda batch: batch + 1)
    assert [next(loop), next(loop)] == [(torch.zeros(1), torch.ones(1)), (torch.ones(1), 2 * torch.ones(1))]
    with pytest.raises(OSError, match="the disk is gone"):
        next(loop)


def test_state_is_that_of_a_plain_loop_only_after_the_loop():
    ahead, plain = Warmup(LinearAssignment(), start=2), Warmup(LinearAssignment(), start=2)
    assert "after the loop" in (prefetch.__doc__ or "")
    for part in (batches(6)[:2], batches(6)[2:]):
        for batch, _ in prefetch(part, ahead):
            plain(batch)
        assert ahead.state_dict() == plain.state_dict()
