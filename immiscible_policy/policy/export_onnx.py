"""A policy as one ONNX graph: its network is translated once, and stands in the graph once for each sampling step.

Translating the unrolled sampler as a whole would take minutes (16 steps of the default network are 11,000 operations),
and its file would be read slowly: matrices that are transposed for a product would be so in each copy.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_policy.policy.diffusion_policy import DiffusionPolicy
from immiscible_policy.policy.exportable import ExportablePolicy, example_inputs, trace_module

_DOMAIN, _NAME = "immiscible_policy", "network"
_ANY_SIZE = 2**62  # bytes; the default leaves out all that is larger than small


def save_onnx(policy: DiffusionPolicy, steps: int, batch: int | str, path: Path) -> None:
    """Write ``ExportablePolicy`` as an ONNX file.

    Args:
        policy: on the CPU.
        steps: network calls of a prediction.
        batch: the only batch size that it takes, or ``dynamic``.
    """
    import onnx_ir as ir  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from onnx_ir.passes import common  # type: ignore[import-not-found,import-untyped,unused-ignore]

    module = ExportablePolicy(policy, steps)
    inputs = example_inputs(policy, batch if isinstance(batch, int) else 2)
    call = _take_out_network(module, tuple(inputs.values()))
    network = _translate(call.network, call.examples, batch, ["noisy", "time", "condition"], ["prediction"])
    model = _translate(module, tuple(inputs.values()), batch, list(inputs), ["actions", "sequence"])
    _put_network_in(model, network)
    common.InlinePass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # which would be nearly half of the file
    ir.save(model, path)


class _NetworkCall(nn.Module):
    """Stands in for the network where the sampler is translated, and remembers the network and what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = [network]  # in a list, so that its weights are not this module's
        self.examples: tuple[Tensor, ...] = ()

    @property
    def network(self) -> nn.Module:
        return self._network[0]

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            self.examples = (noisy, time, condition)
            return self.network(noisy, time, condition)
        return torch.onnx.ops.symbolic(
            f"{_DOMAIN}::{_NAME}", (noisy, time, condition), dtype=noisy.dtype, shape=noisy.shape, version=1
        )


def _take_out_network(module: ExportablePolicy, inputs: tuple[Tensor, ...]) -> _NetworkCall:
    assert module.sampler is not None
    call = _NetworkCall(module.sampler.network)  # type: ignore[arg-type]
    module.sampler.network = call
    module.policy.network = call
    module(*inputs)
    return call


def _translate(
    module: nn.Module, inputs: tuple[Tensor, ...], batch: int | str, names: list[str], outputs: list[str]
) -> Any:
    """The module's ONNX model, in memory."""
    program = trace_module(module, inputs, batch)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which has no part in this
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's about its own code
        translated = torch.onnx.export(program, dynamo=True, input_names=names, output_names=outputs, verbose=False)
    assert translated is not None
    return translated.model


def _put_network_in(model: Any, network: Any) -> None:
    """Make the network a function of the model, which is given its weights by all its calls."""
    import onnx_ir as ir  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from onnx_ir.passes import common  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from onnxscript import optimizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    optimizer.fold_constants(network, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    common.RemoveUnusedNodesPass()(network)
    weights = list(network.graph.initializers.values())
    network.graph.initializers.clear()
    network.graph.inputs.extend(weights)
    shared = [
        ir.Value(name=f"{_NAME}.{w.name}", shape=w.shape, type=w.type, const_value=w.const_value) for w in weights
    ]
    for value in shared:
        model.graph.register_initializer(value)
    for node in model.graph:
        if node.domain == _DOMAIN:
            given = len(node.inputs)
            node.resize_inputs(given + len(shared))
            for position, value in enumerate(shared, start=given):
                node.replace_input_with(position, value)
    function = ir.Function(_DOMAIN, _NAME, graph=network.graph, attributes=[])
    model.functions[function.identifier()] = function
    model.opset_imports[_DOMAIN] = 1
