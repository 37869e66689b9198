"""A sampler as the list of tensor operations that it applies to the noise, so that it can be exported.

Schedulers decide in Python and numpy what each step does (``if previous >= 0``), which ``torch.export`` cannot follow.
But none of that depends on the noise: a sampler runs once here, on real tensors, and what it does to everything that
derives from the noise is written down. All else, the whole schedule, is left behind as constants, to the last bit those
of the sampler itself. Any objective whose steps do not depend on the values of the samples can be recorded.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from immiscible_policy.diffusion.objective import Network, Objective


class SamplerNotRecordable(ValueError):
    """A sampler that draws noise of its own, or whose steps depend on the values that it computes."""


def record_sampler(objective: Objective, network: nn.Module, noise: Tensor, condition: Tensor, steps: int) -> nn.Module:
    """``objective.sample`` from given noise in ``steps`` network calls, unrolled into a graph.

    Args:
        objective: any; its sampler must be a function of the noise and the condition.
        network: ``network(noisy, time, condition)``; becomes a submodule of the result.
        noise, condition: (1, ...) examples; only their shapes matter to the result.

    Returns:
        a module ``(noise (B, ...), condition (B, ...)) -> sample (B, ...)`` for any B, without Python control flow.

    Raises:
        SamplerNotRecordable: the sampler draws noise at its steps, or decides by the values of the samples.
    """
    recorder = _Recorder()
    recorder.track(noise, recorder.graph.placeholder("noise"))
    recorder.track(condition, recorder.graph.placeholder("condition"))
    with torch.no_grad(), recorder:
        sample = objective.sample(
            recorder.leaf(network),
            tuple(noise.shape),
            condition=condition,
            steps=steps,
            device=noise.device,
            noise=noise,
        )
    if not recorder.is_tracked(sample):
        raise SamplerNotRecordable(
            f"{_name(objective)} computes its samples outside of torch, which cannot be exported"
        )
    recorder.graph.output(recorder.node_of(sample))
    root = nn.Module()
    root.add_module("network", _NetworkAtTime(network))
    for name, value in recorder.constants.items():
        root.register_buffer(name, value)
    recorded = fx.GraphModule(root, recorder.graph)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


class _NetworkAtTime(nn.Module):
    """A network for batches of any size that are all at one diffusion time, (1,)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        return self.network(noisy, time.expand(noisy.shape[0]), condition)


class _Recorder(TorchDispatchMode):
    """Writes the operations on tensors that derive from the tracked ones into ``graph``."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._paused = False
        # By identity; the tensors are kept because a freed one's identity could be another's.
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}

    def is_tracked(self, value: object) -> bool:
        return id(value) in self._nodes

    def track(self, value: object, node: fx.Node) -> None:
        if isinstance(value, Tensor):
            self._nodes[id(value)] = (value, node)

    def node_of(self, value: Any) -> Any:
        """The node of a tracked tensor, a new constant for any other one, and what is no tensor as it is."""
        if not isinstance(value, Tensor):
            return value
        if self.is_tracked(value):
            return self._nodes[id(value)][1]
        name = f"constant_{len(self.constants)}"
        self._paused = True
        self.constants[name] = value.detach().clone()
        self._paused = False
        return self.graph.get_attr(name)

    def leaf(self, network: nn.Module) -> Network:
        """The network as one call in the graph, whatever happens inside."""

        def call(noisy: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            if not self.is_tracked(noisy):
                raise SamplerNotRecordable(
                    "the sampler leaves torch between its steps (an adaptive one does), which cannot be exported"
                )
            self._paused = True
            prediction = network(noisy, time, condition)
            self._paused = False
            arguments = tuple(self.node_of(value) for value in (noisy, time, condition))
            self.track(prediction, self.graph.call_module("network", arguments))
            return prediction

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._paused:
            return result
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise SamplerNotRecordable(
                "the sampler draws noise at its steps, which an exported policy cannot; export a deterministic one "
                "(objective ddpm with sampler=ddim, flow_matching, consistency with 1 step)"
            )
        if not any(self.is_tracked(value) for value in tree_leaves((args, kwargs))):
            return result
        if torch.Tag.data_dependent_output in func.tags or (func._schema.is_mutable and not self.is_tracked(args[0])):
            raise SamplerNotRecordable(
                f"the sampler does {func} with a sample, so that what it does next depends on the sample's values; "
                "this cannot be exported"
            )
        node = self.graph.call_function(func, tree_map(self.node_of, tuple(args)), tree_map(self.node_of, kwargs))
        if isinstance(result, Sequence):
            for position, value in enumerate(result):
                self.track(value, self.graph.call_function(operator.getitem, (node, position)))
        else:
            self.track(result, node)
        return result


def _name(objective: Objective) -> str:
    return f"objective {type(objective).__name__} with sampler={objective.sampler!r}"
