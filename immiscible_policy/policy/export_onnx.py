"""A policy as one ONNX graph: its network is translated once, and stands in the graph once for each sampling step.

Translating the unrolled sampler as a whole would take minutes (16 steps of the default network are 11,000 operations),
and its file would be read slowly: matrices that are transposed for a product would be so in each copy.
"""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_policy.policy.diffusion_policy import DiffusionPolicy
from immiscible_policy.policy.exportable import ExportablePolicy, observation_shapes, trace_module, traced_inputs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_DOMAIN, _NAME = "immiscible_policy", "network"
_ANY_SIZE = 2**62  # bytes; the default leaves out all that is larger than small


def missing_packages() -> list[str]:
    """Those of ``PACKAGES`` that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def save_onnx(policy: DiffusionPolicy, steps: int, batch: int | str, path: Path) -> None:
    """Write ``ExportablePolicy`` as an ONNX file.

    Args:
        policy: on the CPU.
        steps: network calls of a prediction.
        batch: the only batch size that it takes, or ``dynamic``.
    """
    import onnx_ir as ir  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from onnx_ir.passes import common  # type: ignore[import-not-found,import-untyped,unused-ignore]

    module, inputs = ExportablePolicy(policy, steps), traced_inputs(policy, batch)
    taken_out, given = _take_out_network(module, inputs)
    network = _translate(taken_out, given, batch, ["noisy", "time", "condition"], ["prediction"])
    names = [*observation_shapes(policy), "noise"]
    model = _translate(module, inputs, batch, names, ["actions", "sequence"])
    _put_network_in(model, network)
    common.InlinePass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # which would be nearly half of the file
    ir.save(model, path)


class _NetworkCall(nn.Module):
    """Stands in for the network where the sampler is translated, as one operation."""

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{_DOMAIN}::{_NAME}", (noisy, time, condition), dtype=noisy.dtype, shape=noisy.shape, version=1
        )


def _take_out_network(module: ExportablePolicy, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network, and what it is given for these inputs; a call stands in its place."""
    assert module.sampler is not None
    network: nn.Module = module.sampler.network  # type: ignore[assignment]
    given: list[tuple[Tensor, ...]] = []
    with network.register_forward_pre_hook(lambda _, arguments: given.append(arguments)):
        module(*inputs)
    module.sampler.network = module.policy.network = _NetworkCall()
    return network, given[0]


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
