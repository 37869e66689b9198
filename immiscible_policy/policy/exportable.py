"""``predict_action`` as a module of tensor operations alone, and the inputs to try it on."""

import copy

import torch
from torch import Tensor, nn

from immiscible_policy.diffusion.objective import Objective
from immiscible_policy.policy.diffusion_policy import DiffusionPolicy
from immiscible_policy.policy.recorded_sampler import record_sampler

# Rows and columns where the policy's task does not say; those of the environment's pictures.
DEFAULT_PICTURE = (96, 96)

Inputs = dict[str, Tensor]
"""The inputs of an exported policy by name, in order; ``noise`` is the last."""


class ExportablePolicy(nn.Module):
    """``predict_action`` with a fixed number of steps, as a function of tensors alone.

    Called with the policy's inputs by position (see ``example_inputs``), it returns the actions (B, n_action_steps,
    action_dim) in their own units, and the whole plan (B, horizon, action_dim) that they were cut from, normalised:
    what ``DiffusionPolicy.plan`` returns, and what a coupling chooses the next noise by.
    """

    def __init__(self, policy: DiffusionPolicy, num_inference_steps: int) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).eval()
        self.steps = num_inference_steps
        for name in list(self.policy._buffers):
            delattr(self.policy, name)  # data for choosing noise by a coupling, which is the caller's affair
        recorded = _RecordedObjective(policy.objective)
        self.policy.objective = recorded  # type: ignore[assignment]
        self(*example_inputs(policy, 1).values())
        self.sampler = recorded.sampler

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *parts, noise = inputs
        observation = parts[0] if len(parts) == 1 else dict(zip(observation_shapes(self.policy), parts, strict=True))
        condition = self.policy.encode(observation, training=False)
        sequence = self.policy.plan(condition, num_inference_steps=self.steps, noise=noise)
        return self.policy.executed(sequence), sequence


class _RecordedObjective:
    """Stands in for a policy's objective: the first call records its sampler, all calls replay the record."""

    sampler: nn.Module | None = None

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def sample(
        self, network: nn.Module, shape: object, *, condition: Tensor, steps: int, noise: Tensor, **unused: object
    ) -> Tensor:
        if self.sampler is None:
            self.sampler = record_sampler(self.objective, network, noise, condition, steps)
        return self.sampler(noise, condition)


def observation_shapes(policy: DiffusionPolicy) -> dict[str, tuple[int, ...]]:
    """Shapes of the observation's parts without the batch, by the names that ``predict_action`` knows them by."""
    steps = policy.n_obs_steps
    if policy.encoder is None:
        return {"observation": (steps, policy.observation_dim)}
    size = (policy.task.get("observation_height"), policy.task.get("observation_width"))
    height, width = (given or default for given, default in zip(size, DEFAULT_PICTURE, strict=True))
    return {"pixels": (steps, height, width, 3), "agent_pos": (steps, policy.observation_dim)}


def example_inputs(policy: DiffusionPolicy, batch: int, like: str = "demonstrations", seed: int = 0) -> Inputs:
    """Made-up inputs for ``batch`` predictions, on the policy's device.

    Args:
        like: random: observations anywhere in a range a fifth wider than the data's, each by itself | demonstrations:
            observations in the data's range, from one to the next a hundredth of it apart.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs: Inputs = {}
    low, high = policy.observation_normalizer.low.cpu(), policy.observation_normalizer.high.cpu()
    for name, shape in observation_shapes(policy).items():
        if name == "pixels":
            inputs[name] = torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)
            continue
        place = torch.rand(batch, *shape, generator=generator)
        nearby = place[:, :1] + 0.01 * (2 * place - 1).cumsum(1)
        inputs[name] = low + (high - low) * (1.2 * place - 0.1 if like == "random" else nearby)
    inputs["noise"] = torch.randn(batch, policy.horizon, policy.action_dim, generator=generator)
    return {name: value.to(policy.device) for name, value in inputs.items()}


def trace(policy: DiffusionPolicy, num_inference_steps: int, batch: int | str) -> torch.export.ExportedProgram:
    """The exported program of ``ExportablePolicy``.

    Args:
        batch: the only batch size that it takes, or ``dynamic``.
    """
    return trace_module(ExportablePolicy(policy, num_inference_steps), traced_inputs(policy, batch), batch)


def traced_inputs(policy: DiffusionPolicy, batch: int | str) -> tuple[Tensor, ...]:
    """What ``ExportablePolicy`` is traced with: a batch of the one size, or of any that is not special."""
    return tuple(example_inputs(policy, batch if isinstance(batch, int) else 2).values())


def trace_module(module: nn.Module, inputs: tuple[Tensor, ...], batch: int | str) -> torch.export.ExportedProgram:
    """The exported program of a module of tensors, of which those with more than one axis are batches."""
    sizes = torch.export.ShapesCollection()
    if not isinstance(batch, int):
        size = torch.export.Dim("batch", min=1)
        for value in inputs:
            if value.dim() > 1:
                sizes[value] = {0: size}
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=sizes.dynamic_shapes(module, inputs), strict=False)
    _tidy(program.graph_module)
    return program


def _tidy(module: torch.fx.GraphModule) -> None:
    """Take out what computes nothing: casts to the type that a tensor has, checks of types, where it all came from."""
    for node in list(module.graph.nodes):
        for origin in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(origin, None)
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target is torch.ops.aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()


def predict(policy: DiffusionPolicy, inputs: Inputs, steps: int) -> Tensor:
    """``predict_action`` on the inputs of an exported policy."""
    parts = {name: value for name, value in inputs.items() if name != "noise"}
    observation = parts["observation"] if policy.encoder is None else parts
    return policy.predict_action(observation, noise=inputs["noise"], num_inference_steps=steps)
