"""Which packages stand on which: what importing one of them must not bring in."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("package", "above"),
    [
        ("immiscible_policy.coupling", ("immiscible_policy.diffusion", "diffusers", "transformers", "accelerate")),
        ("immiscible_policy.diffusion", ("immiscible_policy.training", "immiscible_policy.policy", "envs")),
        ("immiscible_policy.training", ("immiscible_policy.policy", "immiscible_policy.data", "envs")),
        ("envs.pusht", ("torch", "immiscible_policy", "image_diffusion")),
        ("image_diffusion.model", ("envs", "immiscible_policy.policy")),
        ("image_diffusion.metrics", ("envs", "immiscible_policy.policy")),
        ("image_diffusion.data", ("envs", "immiscible_policy.policy")),
    ],
)
def test_packages_do_not_import_what_stands_on_them(package: str, above: tuple[str, ...]) -> None:
    code = f"import sys, {package}; print(*[name for name in {above!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
