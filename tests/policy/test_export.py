"""Exported policies: the same actions without the package, and refusals that leave nothing behind."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.policy import export as export_module
from immiscible_policy.policy.export import Export, ExportError, check_export, export_policy
from immiscible_policy.policy.export_onnx import missing_packages
from immiscible_policy.policy.exportable import ExportablePolicy, example_inputs, predict
from immiscible_policy.policy.recorded_sampler import SamplerNotRecordable

NETWORKS = {
    "mlp": {"name": "mlp", "width": 16, "n_blocks": 1, "step_embed_dim": 4},
    "unet1d": {"name": "unet1d", "down_dims": [4, 4], "n_groups": 2, "kernel_size": 3, "step_embed_dim": 4},
    "wide": {"name": "unet1d", "down_dims": [32, 32], "n_groups": 8, "step_embed_dim": 8},
    "transformer": {"name": "transformer", "n_layers": 1, "n_heads": 2, "embed_dim": 8},
}
TASK = {"env_id": "envs:immiscible/PushT-v0", "obs_type": "state", "legacy": True, "max_steps": 300}
BLOCKED = ("immiscible_policy", "envs", "diffusers", "hydra", "accelerate", "scipy", "safetensors", "gymnasium")


needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason="needs the extra 'export'")


def small_policy(network: str = "mlp", **options: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    settings: dict[str, object] = {"task": TASK, "coupling": "KNN(k=2)", **options}
    policy = DiffusionPolicy(5, 2, network=NETWORKS[network], **settings)  # type: ignore[arg-type]
    policy.fit_normalizers(torch.tensor([500.0] * 4 + [6.0]) * torch.rand(100, 5), 512 * torch.rand(100, 2))
    return policy.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionPolicy, Export]:
    """A policy whose weights are in a folder, and its export of 4 steps for any batch size."""
    folder = tmp_path_factory.mktemp("run") / "baseline" / "checkpoints" / "step=0000010"
    policy = small_policy()
    policy.save_pretrained(folder)
    return policy, export_policy(policy, folder.parents[2] / "exported", 4, source=folder)


def about(export: Export) -> dict:
    return json.loads((export.folder / "policy.json").read_text())


def test_the_file_alone_gives_the_policys_actions_and_plan_for_any_batch(exported) -> None:
    policy, export = exported
    module = torch.export.load(export.folder / "policy.pt2").module()
    for batch in (1, 3, 8):
        inputs = example_inputs(policy, batch, seed=10 + batch)
        with torch.no_grad():
            actions, sequence = module(inputs["observation"], inputs["noise"])
        expected = policy.predict_action(inputs["observation"], noise=inputs["noise"], num_inference_steps=4)
        torch.testing.assert_close(actions, expected, rtol=0, atol=1e-3)
        assert sequence.shape == (batch, 16, 2)
        torch.testing.assert_close(policy.action_normalizer.denormalize(sequence[:, 1:9]), actions)
    with pytest.raises((AssertionError, RuntimeError), match="16"):
        module(inputs["observation"], inputs["noise"][:, :15])


def test_a_network_that_batches_compute_otherwise_is_exported_for_any_batch(tmp_path: Path) -> None:
    """Wide convolutions take half the products from 32 rows on, here a batch of 8, and an export is one program."""
    # By flow matching, for DDIM's first step multiplies what batches differ by in rounding.
    policy = small_policy("wide", objective={"name": "flow_matching"})
    export = export_policy(policy, tmp_path / "exported", 2)
    module = torch.export.load(export.folder / "policy.pt2").module()
    for batch in (1, 7, 8, 40):
        inputs = example_inputs(policy, batch, seed=batch)
        with torch.no_grad():
            actions, _ = module(inputs["observation"], inputs["noise"])
        expected = policy.predict_action(inputs["observation"], noise=inputs["noise"], num_inference_steps=2)
        torch.testing.assert_close(actions, expected, rtol=0, atol=1e-3)


def test_the_check_says_what_it_found(exported) -> None:
    _, export = exported
    assert set(export.check.differences) == {1, 2, 5}
    assert max(export.check.differences.values()) < 1e-3
    assert export.check.passed
    assert export.check.unit == "px"


def test_files_are_complete_and_described(exported) -> None:
    policy, export = exported
    names = {"policy.pt2", "policy.json", "example.npz", "run_policy.py"}
    assert {path.name for path in export.folder.iterdir()} == set(export.files) == names
    said = about(export)
    assert said["inputs"] == [
        {"name": "observation", "shape": ["batch", 2, 5], "dtype": "float32"},
        {"name": "noise", "shape": ["batch", 16, 2], "dtype": "float32"},
    ]
    assert [output["shape"] for output in said["outputs"]] == [["batch", 8, 2], ["batch", 16, 2]]
    expected = {
        "format": "torch",
        "horizon": 16,
        "n_obs_steps": 2,
        "n_action_steps": 8,
        "obs_type": "state",
        "num_inference_steps": 4,
        "sampler": "ddim",
        "coupling": "KNN(k=2)",
        "source": "baseline/checkpoints/step=0000010",
        "task": TASK,
    }
    assert {key: said[key] for key in expected} == expected
    assert said["observation_entries"].startswith("x, y of the agent; x, y of the block")
    assert "pixels" in said["units"]["observation"]
    assert said["action_range"]["low"] == policy.action_normalizer.low.tolist()
    assert said["versions"]["torch"] == torch.__version__
    weights = export.folder.parent / "baseline" / "checkpoints" / "step=0000010" / "model.safetensors"
    assert said["sha256"]["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    exported_file = (export.folder / "policy.pt2").read_bytes()
    assert said["sha256"]["policy.pt2"] == hashlib.sha256(exported_file).hexdigest()


def test_the_program_beside_it_runs_without_the_package(exported) -> None:
    _, export = exported
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in BLOCKED)
    program = (
        f"import sys, runpy; {blocked}runpy.run_path({str(export.folder / 'run_policy.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *timed = done.stdout.splitlines()
    assert float(first.split("at most ")[1].removesuffix(" px")) < 1e-3
    assert len(timed) == 3
    assert all("ms, first actions: [[" in line for line in timed)


@pytest.mark.parametrize(("network", "steps"), [("transformer", 1), ("unet1d", 1)])
def test_other_networks_at_one_batch_size(network: str, steps: int, tmp_path: Path) -> None:
    policy = small_policy(network)
    export = export_policy(policy, tmp_path / "exported", steps, batch=2)
    assert set(export.check.differences) == {2}
    assert about(export)["batch"] == 2
    assert about(export)["inputs"][0]["shape"] == [2, 2, 5]
    module = torch.export.load(export.folder / "policy.pt2").module()
    with pytest.raises((AssertionError, RuntimeError), match="2"):
        module(*example_inputs(policy, 3).values())


@pytest.mark.parametrize("network", ["mlp", "unet1d", "transformer"])
def test_what_is_exported_is_predict_action(network: str) -> None:
    policy = small_policy(network)
    for steps in (1, 4):
        module, inputs = ExportablePolicy(policy, steps), example_inputs(policy, 5, "random")
        atol = (
            0.5 if network == "transformer" and steps == 1 else 1e-3
        )  # sums in another order, seen through a division by almost no signal
        torch.testing.assert_close(module(*inputs.values())[0], predict(policy, inputs, steps), rtol=0, atol=atol)


def test_the_policy_itself_is_left_as_it_was() -> None:
    policy = small_policy().train()
    objective, names = policy.objective, list(policy.state_dict())
    ExportablePolicy(policy, 2)
    assert policy.objective is objective
    assert list(policy.state_dict()) == names
    assert policy.training


def test_flow_matching_needs_no_code_of_its_own(tmp_path: Path) -> None:
    policy = small_policy(objective={"name": "flow_matching"})
    export = export_policy(policy, tmp_path / "exported", 2, batch=1)
    assert about(export)["objective"] == "FlowMatching"


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_pictures_go_in_as_they_are(format: str, tmp_path: Path) -> None:
    encoder = {"name": "convnet", "channels": [4, 4], "n_groups": 2, "crop": 20, "n_keypoints": 2, "feature_dim": 4}
    task = TASK | {"obs_type": "pixels_agent_pos", "observation_height": 24, "observation_width": 24}
    torch.manual_seed(0)
    policy = DiffusionPolicy(2, 2, network=NETWORKS["mlp"], encoder=encoder, task=task).eval()
    policy.fit_normalizers(512 * torch.rand(50, 2), 512 * torch.rand(50, 2))
    export = export_policy(policy, tmp_path / "exported", 1, format)
    assert [(i["name"], i["dtype"]) for i in about(export)["inputs"]] == [
        ("pixels", "uint8"),
        ("agent_pos", "float32"),
        ("noise", "float32"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, r"format='tflite': choose one of torch, onnx"),
        ({"batch": 0}, "batch=0: choose dynamic or a number"),
        ({"batch": "any"}, "batch='any'"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: choose 1 to 100"),
        ({"num_inference_steps": 101}, "num_inference_steps=101: choose 1 to 100"),
    ],
)
def test_wrong_arguments_are_named(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_policy(small_policy(), tmp_path / "exported", **options)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplerNotRecordable, match="draws noise at its steps"):
        export_policy(small_policy(objective={"name": "ddpm", "sampler": "ddpm"}), tmp_path / "exported", 2)
    with pytest.raises(ValueError, match="never fitted"):
        export_policy(DiffusionPolicy(5, 2, network=NETWORKS["mlp"]), tmp_path / "exported", 2)
    with pytest.raises(ValueError, match="float64; fp32 is what is exported"):
        export_policy(small_policy().double(), tmp_path / "exported", 2)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no exported policy"):
        export_policy(small_policy(), tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_an_export_that_computes_something_else_is_deleted(
    exported, wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, export = exported
    load = export_module.run_policy.load

    def spoilt(folder: Path, threads: int | None = None):
        run = load(export.folder)
        return lambda *arrays: [output + np.float32(wrong) for output in run(*arrays)]

    monkeypatch.setattr(export_module.run_policy, "load", spoilt)
    monkeypatch.setattr(export_module, "trace", lambda *arguments: None)
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.touch())
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "policy.json").write_text("older")
    with pytest.raises(ExportError, match="more than rounding; the export was deleted"):
        export_policy(policy, tmp_path / "exported", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert (tmp_path / "exported" / "policy.json").read_text() == "older"


def test_another_policys_export_fails_the_check(exported) -> None:
    policy, export = exported
    assert check_export(policy, export.folder, 4, "dynamic").passed
    assert not check_export(policy, export.folder, 5, "dynamic").passed


@needs_onnx
@pytest.mark.parametrize(
    ("network", "objective", "batch"),
    [
        ("mlp", {"name": "ddpm"}, "dynamic"),
        ("unet1d", {"name": "flow_matching"}, 3),
        ("wide", {"name": "flow_matching"}, "dynamic"),
        ("transformer", {"name": "ddpm"}, 1),
    ],
)
def test_onnx_gives_the_policys_actions(tmp_path: Path, network: str, objective: dict, batch: int | str) -> None:
    onnx = importlib.import_module("onnx")
    policy = small_policy(network, objective=objective)
    export = export_policy(policy, tmp_path / "exported", 3, format="onnx", batch=batch)
    assert export.check.passed
    assert about(export)["versions"]["onnxruntime"]
    assert set(export.files) == {"policy.onnx", "policy.json", "example.npz", "run_policy.py"}
    model = onnx.load(export.folder / "policy.onnx")
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    # The network is there three times, its weights once.
    weights = sum(np.prod(tensor.dims, dtype=int) for tensor in model.graph.initializer)
    assert weights < 1.2 * sum(parameter.numel() for parameter in policy.parameters()) + 100


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install onnx onnxscript onnxruntime"):
        export_policy(small_policy(), tmp_path / "exported", 2, format="onnx")


def test_a_policy_in_training_mode_is_exported_as_it_acts(tmp_path: Path) -> None:
    network = {**NETWORKS["transformer"], "dropout": 0.3}
    policy = DiffusionPolicy(5, 2, network=network, task=TASK, objective={"name": "flow_matching"})
    policy.fit_normalizers(512 * torch.rand(100, 5), 512 * torch.rand(100, 2))
    export = export_policy(policy.train(), tmp_path / "exported", 2)
    assert policy.training
    assert export.check.allowance < 1.0  # pixels; dropout's differences would be hundreds
    inputs = example_inputs(policy, 3)
    module = torch.export.load(export.folder / "policy.pt2").module()
    with torch.no_grad():
        actions, _ = module(*inputs.values())
    torch.testing.assert_close(actions, predict(policy.eval(), inputs, 2), atol=0.1, rtol=0)
