"""The examples for other people's loops run as they stand: README blocks and docstrings."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import immiscible_policy.coupling
from immiscible_policy.coupling import KNN

ROOT = Path(__file__).resolve().parents[2]


def readme_blocks() -> list[str]:
    section = (ROOT / "README.md").read_text().split("## In your own loop")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


DDPM, FLOW_MATCHING, DIFFUSION_POLICY, ACCELERATE = readme_blocks()


class Velocity(nn.Module):
    """A flow-matching network of a few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat((x, t), 1))


def namespace(model: nn.Module, loader: Any) -> dict[str, Any]:
    return {
        "torch": torch,
        "coupling": KNN(2),
        "model": model,
        "loader": loader,
        "optimizer": torch.optim.SGD(model.parameters(), 0.05),
    }


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_ddpm_loop_with_diffusers() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    names = namespace(model, torch.randn(3, 4, 3, 8, 8))
    before = weights(model)
    exec(DDPM, names)
    assert torch.isfinite(names["loss"])
    assert not torch.equal(weights(model), before)
    assert names["noise"].shape == (4, 3, 8, 8)


def test_flow_matching_pair() -> None:
    torch.manual_seed(0)
    names = namespace(Velocity(), None) | {"x1": 2 * torch.randn(64, 4)}
    exec(FLOW_MATCHING, names)
    names["loss"].backward()
    assert (names["x0"] * names["x1"]).sum(1).mean() > 0.3  # noise leans towards its own data


def test_diffusion_policy_compute_loss() -> None:
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    names: dict[str, Any] = {"torch": torch}
    exec(DIFFUSION_POLICY, names)
    seen: list[torch.Tensor] = []

    def network(sample: torch.Tensor, timestep: torch.Tensor, global_cond: torch.Tensor) -> torch.Tensor:
        seen.append(global_cond)
        return torch.zeros_like(sample)

    policy = SimpleNamespace(
        normalizer=SimpleNamespace(normalize=lambda batch: {name: value / 2 for name, value in batch.items()}),
        noise_scheduler=DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"),
        model=network,
        coupling=KNN(2, "inner"),
    )
    batch = {"action": torch.randn(16, 16, 2), "obs": torch.randn(16, 2, 5)}
    loss = names["compute_loss"](policy, batch)
    assert float(loss) == pytest.approx(1.0, abs=0.2)  # a network that predicts nothing sees the noise's variance
    assert torch.equal(seen[0], batch["obs"].flatten(1) / 2)


def test_accelerate_loop() -> None:
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.randn(36, 4), batch_size=8)  # an uneven last batch
    model = Velocity()
    names = namespace(model, loader)
    before = weights(model)
    exec(ACCELERATE, names)
    assert torch.isfinite(names["loss"])
    assert not torch.equal(weights(model), before)


def coupling_modules() -> list[str]:
    package = immiscible_policy.coupling
    return [package.__name__, *(f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__))]


@pytest.mark.parametrize("name", coupling_modules())
def test_docstring_examples(name: str) -> None:
    torch.manual_seed(0)
    if name.endswith("_triton"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


def test_every_coupling_shows_how_it_is_used() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for name in immiscible_policy.coupling.__all__:
        thing = getattr(immiscible_policy.coupling, name)
        if isinstance(thing, type) and issubclass(thing, immiscible_policy.coupling.Coupling):
            examples = [e for test in finder.find(thing, name) for e in test.examples]
            assert examples or name == "Coupling", f"{name} has no example in its docstring"


def test_the_core_needs_neither_diffusers_nor_accelerate() -> None:
    """With every package but torch, numpy and scipy missing, all couplings import and pair."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "accelerate", "transformers", "hydra", "gymnasium", "sklearn",
                                  "matplotlib", "safetensors", "huggingface_hub", "omegaconf", "pandas"}:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Missing())
import torch
from immiscible_policy import coupling
x = torch.randn(8, 3)
for made in (coupling.KNN(2), coupling.LinearAssignment(), coupling.Mixture(coupling.KNN(2)), coupling.Independent()):
    assert made(x).shape == x.shape
print(coupling.diagnose(x, coupling.KNN(2)(x)).alignment)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
