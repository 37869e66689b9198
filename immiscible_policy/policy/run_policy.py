"""Run an exported policy: python run_policy.py

Beside it lie policy.json (what goes in and out), example.npz, and policy.pt2 (needs torch) or policy.onnx (needs
onnxruntime). Nothing else is needed but numpy.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load(folder: Path, threads: int | None = None) -> Callable[..., list[np.ndarray]]:
    """The policy as a function of arrays: ``actions, sequence = policy(observation, noise)``; see policy.json."""
    about = json.loads((folder / "policy.json").read_text())
    if about["format"] == "onnx":
        import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(str(folder / about["file"]), options, ["CPUExecutionProvider"])
        names = [entry["name"] for entry in about["inputs"]]
        return lambda *arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))
    import torch

    module = torch.export.load(folder / about["file"]).module()

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [
                output.cpu().numpy() for output in module(*(torch.from_numpy(a).to(about["device"]) for a in arrays))
            ]

    return run


def main() -> None:
    folder = Path(__file__).resolve().parent
    about: dict[str, Any] = json.loads((folder / "policy.json").read_text())
    policy = load(folder)
    example = np.load(folder / "example.npz")
    inputs = [example[entry["name"]] for entry in about["inputs"]]  # observation history, then noise
    actions, _ = policy(*inputs)
    difference = float(np.abs(actions - example["actions"]).max())
    print(
        f"the example's actions differ from those at the export by at most {difference:.2g} {about['units']['action']}"
    )
    # In a control loop: the last n_obs_steps observations and fresh noise go in, and n_action_steps actions come out.
    generator = np.random.default_rng()
    for _ in range(3):
        start = time.perf_counter()
        inputs[-1] = np.float32(about["noise_scale"]) * generator.standard_normal(inputs[-1].shape, dtype=np.float32)
        actions, _ = policy(*inputs)
        print(f"{1e3 * (time.perf_counter() - start):.1f} ms, first actions: {actions[0, :2].round(1).tolist()}")


if __name__ == "__main__":
    main()
