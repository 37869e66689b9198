"""The training loop: exact resume, averaged weights, data order, couplings, failures."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from immiscible_policy.coupling import KNN, Coupling, Independent
from immiscible_policy.policy import DiffusionPolicy
from immiscible_policy.training import CheckpointError, DivergedError, Trainer, TrainerConfig
from immiscible_policy.training.checkpoint import load_state, save_state
from immiscible_policy.training.metrics import read_metrics

CONFIG = TrainerConfig(
    steps=30,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=5,
    device="cpu",
    mixed_precision="fp32",
    log_every=5,
    validate_every=10,
    evaluate_every=10,
    checkpoint_every=10,
    tensorboard=False,
)


class Points:
    """A data set of points, and which of them have been asked for."""

    def __init__(self, n: int = 40) -> None:
        self.data = torch.randn(n, 4, generator=torch.Generator().manual_seed(7))
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        self.asked.append(indices.tolist())
        return {"data": self.data[indices]}


class Denoiser(nn.Module):
    """A model with dropout, so that torch's own random state matters too."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.weight = weight

    def forward(
        self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = coupling(batch["data"], generator=generator)
        return self.weight * (self.net(batch["data"] + noise) - noise).square().mean()

    def save_pretrained(self, folder: Path) -> None:
        save_file(self.state_dict(), Path(folder) / "model.safetensors")


class CompilableDenoiser(Denoiser):
    """A denoiser whose ``network`` can be compiled, dropout and all."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.net = self.net, nn.Identity()

    def forward(
        self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = coupling(batch["data"], generator=generator)
        return (self.network(batch["data"] + noise) - noise).square().mean()


def trainer(folder: Path, config: TrainerConfig = CONFIG, **options: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    parts = [
        options.pop(name, None) or default
        for name, default in (("model", Denoiser()), ("dataset", Points()), ("coupling", KNN(k=2)))
    ]
    return Trainer(*parts, config, folder, **options)


def final_state(run: Trainer) -> list[Tensor]:
    return [*run.accelerator.unwrap_model(run.model).state_dict().values(), *run.ema.shadow_params]


def evaluate(model: nn.Module, step: int) -> dict[str, float]:
    return {"rollout/max_coverage": 0.5 if step == 20 else 0.1}


class _KilledError(Exception):
    """Stands for whatever ends a process without warning."""


@pytest.mark.parametrize("log_every", [5, 7, 100])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(tmp_path: Path, log_every: int) -> None:
    """And the same numbers, also where it is killed between two logs."""
    config = replace(CONFIG, log_every=log_every)
    whole = trainer(tmp_path / "whole", config, evaluate=evaluate)
    whole.fit()

    def kill(model: nn.Module, step: int) -> dict[str, float]:
        if step == 20:
            raise _KilledError
        return evaluate(model, step)

    first = trainer(tmp_path / "killed", config, evaluate=kill)
    with pytest.raises(_KilledError):
        first.fit()
    second = trainer(tmp_path / "killed", config, evaluate=evaluate)
    torch.manual_seed(99)  # whatever happened to the process' random state in between
    second.resume()
    assert second.step == 10
    second.fit()
    assert all(torch.equal(a, b) for a, b in zip(final_state(whole), final_state(second), strict=True))
    lines = [
        [{k: v for k, v in line.items() if "seconds" not in k} for line in read_metrics(path / "metrics.jsonl")]
        for path in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert lines[0] == lines[1]
    assert all("train/loss" in line for line in lines[0])  # beside every rollout, by which the published rules choose


@pytest.mark.parametrize("checkpoint_every", [8, 10])
def test_losses_since_the_last_log_outlive_a_kill(tmp_path: Path, checkpoint_every: int) -> None:
    config = replace(CONFIG, log_every=15, evaluate_every=30, checkpoint_every=checkpoint_every)
    trainer(tmp_path / "whole", config).fit()

    def kill(model: nn.Module) -> dict[str, float]:
        raise _KilledError

    with pytest.raises(_KilledError):
        trainer(tmp_path / "killed", replace(config, validate_every=20), validate=kill).fit()
    resumed = trainer(tmp_path / "killed", replace(config, validate_every=20))
    resumed.resume()
    assert resumed.step % 15 != 0
    resumed.fit()
    whole, killed = (
        [line["train/loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "train/loss" in line]
        for name in ("whole", "killed")
    )
    assert whole == killed


def test_a_run_killed_by_the_system_resumes_exactly(tmp_path: Path) -> None:
    """SIGKILL at an arbitrary moment of a real process, then resume in another one."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from dataclasses import replace; import test_trainer as t\n"
        "run = t.trainer(Path(sys.argv[1]), replace(t.CONFIG, steps=800, checkpoint_every=20, evaluate_every=800,"
        " validate_every=800))\n"
        "print('ready', flush=True)\n"
        "if run.latest.exists() or run.latest.with_name('.latest.old').exists():\n"
        "    run.resume(); print('resumed', run.step)\n"
        "run.fit()\n"
        "torch.save([w for w in t.final_state(run)], Path(sys.argv[1]) / 'final.pt')\n"
    )
    here = str(Path(__file__).parent)

    def start(folder: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / folder), here],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    process = start("killed")
    while not (tmp_path / "killed" / "checkpoints" / "latest").exists():
        assert process.poll() is None, "the run ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "final.pt").exists()
    resumed = start("killed")
    assert "resumed" in resumed.communicate()[0]
    start("whole").communicate()
    results = [torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("killed", "whole")]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_every_epoch_visits_every_datum_once_in_a_new_order(tmp_path: Path) -> None:
    points = Points()
    trainer(tmp_path, replace(CONFIG, steps=10), dataset=points).fit()
    epochs = [[datum for batch in points.asked[i : i + 5] for datum in batch] for i in (0, 5)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 2
    assert epochs[0] != epochs[1]


def test_runs_of_one_seed_see_the_same_data_under_any_coupling(tmp_path: Path) -> None:
    asked = []
    for name, coupling, seed in (("a", Independent(), 0), ("b", KNN(k=3), 0), ("c", Independent(), 1)):
        points = Points()
        trainer(tmp_path / name, replace(CONFIG, steps=10, seed=seed), dataset=points, coupling=coupling).fit()
        asked.append(points.asked)
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_averaged_weights_follow_the_published_decay(tmp_path: Path) -> None:
    """Decay 1 - (1 + step)^-0.75, evaluated weights are the averaged ones."""
    run = trainer(tmp_path, replace(CONFIG, steps=6))
    average = [p.detach().clone() for p in run.parameters]
    for step in range(1, 7):
        run.step = step
        run._train_step(run._indices(step))
        decay = 0.0 if step == 1 else 1 - step**-0.75
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, run.parameters, strict=True)]
    for expected, found in zip(average, run.averaged_model().parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_averaged_weights_are_those_of_the_library(tmp_path: Path) -> None:
    """Past the maximum decay too, and its count of steps, which checkpoints hold."""
    run = trainer(tmp_path, replace(CONFIG, ema_max_decay=0.8))
    library = EMAModel(run.parameters, decay=0.8, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for step in range(1, 21):
        run.step = step
        run._train_step(run._indices(step))
        library.step(run.parameters)
    assert run.ema.optimization_step == library.optimization_step == 20
    for expected, found in zip(library.shadow_params, run.ema.shadow_params, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


class Scaled(nn.Module):
    """A layer before the trained one and a buffer, neither of which is trained."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator) -> Tensor:
        return (self.head(self.encoder(batch["data"])) * self.scale - 1).square().mean()

    def save_pretrained(self, folder: Path) -> None:
        save_file(self.state_dict(), Path(folder) / "model.safetensors")


def test_the_average_of_a_partly_frozen_model_is_of_the_layers_that_are_trained(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=Scaled())
    run.fit()
    averaged = run.averaged_model()
    assert torch.equal(averaged.encoder.weight, Scaled().encoder.weight)
    for found, average in zip(averaged.head.parameters(), run.ema.shadow_params, strict=True):
        assert torch.equal(found, average)
    assert not torch.equal(averaged.head.weight, Scaled().head.weight)


def test_weights_that_layers_share_are_averaged_under_every_name(tmp_path: Path) -> None:
    model = Scaled()
    model.last = model.head
    run = trainer(tmp_path, model=model)
    run.fit()
    assert torch.equal(run.averaged_model().last.weight, run.ema.shadow_params[0])


def test_a_resumed_average_has_the_buffers_and_frozen_weights_of_the_checkpoint(tmp_path: Path) -> None:
    """Actions are mapped by buffers: with others the averaged weights would be another policy's."""
    first = trainer(tmp_path, model=Scaled())
    first.step = 10
    first.save()
    other = Scaled(scale=5.0)
    nn.init.zeros_(other.encoder.weight)
    second = trainer(tmp_path, model=other)
    second.resume()
    averaged = second.averaged_model()
    assert float(averaged.scale) == 1.0
    assert torch.equal(averaged.encoder.weight, first.bare_model.encoder.weight)


class Mean(nn.Module):
    """Fits a point to the data without drawing anything; the loss of a batch is a mean over it."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(4))
        self.seen: list[int] = []

    def forward(self, batch: Mapping[str, Tensor], coupling: Coupling, generator: torch.Generator) -> Tensor:
        self.seen.append(len(batch["data"]))
        return (batch["data"] - self.point).square().mean()

    def save_pretrained(self, folder: Path) -> None:
        save_file(self.state_dict(), Path(folder) / "model.safetensors")


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=7, log_every=1)
    whole = trainer(tmp_path / "whole", replace(config, batch_size=16), model=Mean())
    whole.fit()
    parts = trainer(tmp_path / "parts", replace(config, batch_size=4, gradient_accumulation=4), model=Mean())
    parts.fit()
    assert parts.bare_model.seen == 7 * 4 * [4]
    order = [[i for asked in run.dataset.asked for i in asked] for run in (whole, parts)]
    assert order[0] == order[1]
    torch.testing.assert_close(parts.bare_model.point, whole.bare_model.point, rtol=1e-5, atol=1e-6)
    losses = [[line["train/loss"] for line in read_metrics(run.run_dir / "metrics.jsonl")] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match="batch_size=16 x 3 accumulated on 1 processes needs at least 48 data"):
        trainer(tmp_path / "small", replace(config, batch_size=16, gradient_accumulation=3), model=Mean())


class Windows:
    """A data set of random windows for a policy."""

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {
            "observation": torch.rand(len(indices), 2, 3),
            "action": torch.rand(len(indices), 8, 2),
            "action_is_pad": torch.zeros(len(indices), 8, dtype=torch.bool),
        }


def small_policy() -> DiffusionPolicy:
    network = {"name": "unet1d", "down_dims": [8, 16], "step_embed_dim": 8}
    policy = DiffusionPolicy(3, 2, horizon=8, n_action_steps=4, network=network)
    policy.fit_normalizers(torch.rand(50, 3), torch.rand(50, 2))
    return policy


@pytest.mark.parametrize("gradient_clip", [1.0, None])
def test_a_step_reads_no_number_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient_clip: float | None
) -> None:
    """Each such reading would make the host wait until a GPU has done all that it was given."""
    config = replace(CONFIG, gradient_clip=gradient_clip)
    run = trainer(tmp_path, config, model=small_policy(), dataset=Windows(), coupling=Independent())
    run._may_read_norm = False  # as on a GPU

    def refuse(self: Tensor, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a number was read")

    with monkeypatch.context() as patch:
        # On a GPU this check looks at an earlier batch, whose answer is there already; see its own tests.
        patch.setattr("immiscible_policy.coupling._checks._check_finite", lambda *arguments: None)
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(Tensor, name, refuse)
        for step in (1, 2):
            run.step = step
            loss, norm = run._train_step(run._indices(step))
        with pytest.raises(AssertionError, match="a number was read"):
            float(loss)
    assert isinstance(norm, Tensor)
    assert loss.isfinite()


@pytest.mark.parametrize("limit", [0.01, 1e6, float("inf")])
def test_gradients_are_clipped_as_by_the_library(tmp_path: Path, limit: float) -> None:
    run = trainer(tmp_path)
    clipped = []
    for run._may_read_norm in (True, False):
        for number, parameter in enumerate(run.parameters):
            parameter.grad = torch.full_like(parameter, 0.3 + number)
        norm = run._clip_gradients(limit)
        clipped.append([norm, *(parameter.grad for parameter in run.parameters)])
    for mine, expected in zip(*clipped, strict=True):
        assert torch.equal(mine, expected)
    changed = not torch.equal(clipped[0][1], torch.full_like(run.parameters[0], 0.3))
    assert changed == (limit == 0.01)


def test_data_on_another_device_are_asked_for_by_indices_there(tmp_path: Path) -> None:
    points = Points()
    points.device = "meta"  # type: ignore[attr-defined]
    run = trainer(tmp_path, dataset=points)
    assert run._indices(1).device.type == run._indices(2).device.type == "meta"
    assert trainer(tmp_path)._indices(1).device.type == "cpu"


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler on a CPU"
)


@needs_compiler
def test_a_compiled_run_resumes_exactly_and_keeps_its_names(tmp_path: Path) -> None:
    config = replace(CONFIG, compile=True, evaluate_every=15)
    plain = trainer(tmp_path / "plain", model=CompilableDenoiser())
    whole = trainer(tmp_path / "whole", config, model=CompilableDenoiser())
    assert list(whole.bare_model.state_dict()) == list(plain.bare_model.state_dict())
    whole.fit()

    def kill(model: nn.Module, step: int) -> dict[str, float]:
        raise _KilledError

    with pytest.raises(_KilledError):
        trainer(tmp_path / "killed", config, model=CompilableDenoiser(), evaluate=kill).fit()
    second = trainer(tmp_path / "killed", config, model=CompilableDenoiser())
    second.resume()
    assert second.step == 10
    second.fit()
    assert all(torch.equal(a, b) for a, b in zip(final_state(whole), final_state(second), strict=True))


@needs_compiler
def test_a_compiled_network_computes_the_same(tmp_path: Path) -> None:
    """Without dropout, whose draws a compiler may order as it likes; weights after 5 steps."""
    states = []
    for mode in (False, True):
        model = CompilableDenoiser()
        model.network[2].p = 0.0
        run = trainer(tmp_path / str(mode), replace(CONFIG, steps=5, compile=mode), model=model)
        run.fit()
        states.append(final_state(run))
    for eager, compiled in zip(*states, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


def test_only_a_network_can_be_compiled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compile=True compiles model\.network, which Denoiser does not have"):
        trainer(tmp_path, replace(CONFIG, compile=True))


@pytest.mark.parametrize("mode", [True, "reduce-overhead", "max-autotune"])
def test_the_mode_reaches_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: bool | str) -> None:
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append((self, options)))
    model = CompilableDenoiser()
    trainer(tmp_path, replace(CONFIG, compile=mode), model=model)
    assert asked == [(model.network, {"mode": "default" if mode is True else mode})]


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_do_not_accumulate(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"compile='{mode}'.*choose compile=true with gradient_accumulation=4, or"):
        replace(CONFIG, compile=mode, gradient_accumulation=4)
    replace(CONFIG, compile=True, gradient_accumulation=4)


def test_a_checkpoint_of_before_a_setting_had_its_default(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=CompilableDenoiser())
    run.step = 10
    run.save()
    state = load_state(run.latest)
    del state["config"]["compile"]
    save_state(run.latest, state)
    with pytest.raises(CheckpointError, match=r"compile=True \(saved with False\)"):
        trainer(tmp_path, replace(CONFIG, compile=True), model=CompilableDenoiser()).resume()
    again = trainer(tmp_path, model=CompilableDenoiser())
    again.resume()
    assert again.step == 10


def test_the_learning_rate_warms_up_and_ends_at_zero(tmp_path: Path) -> None:
    trainer(tmp_path, replace(CONFIG, log_every=1)).fit()
    rates = [line["train/learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates[4] == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_checkpoints_hold_averaged_weights_and_the_best_is_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path, evaluate=evaluate)
    run.fit()
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == ["best", "latest", "step=0000010", "step=0000020", "step=0000030"]

    def weights(name: str) -> dict[str, Tensor]:
        return load_file(tmp_path / "checkpoints" / name / "model.safetensors")

    assert all(torch.equal(weights("best")[k], v) for k, v in weights("step=0000020").items())
    for (_, saved), average in zip(sorted(weights("step=0000030").items()), _sorted(run.ema_model), strict=True):
        assert torch.equal(saved, average)


def test_the_best_can_be_the_lowest(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        evaluate=lambda model, step: {"fd": {10: 3.0, 20: 1.0, 30: 2.0}[step]},
        headline="fd",
        lower_is_better=True,
    )
    run.fit()
    assert run.best == 1.0
    best = load_file(tmp_path / "checkpoints" / "best" / "model.safetensors")
    for name, value in load_file(tmp_path / "checkpoints" / "step=0000020" / "model.safetensors").items():
        assert torch.equal(best[name], value)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path, replace(CONFIG, keep_checkpoints=2, evaluate_every=5), evaluate=evaluate).fit()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step=*"))
    assert kept == ["step=0000025", "step=0000030"]
    assert (tmp_path / "checkpoints" / "best" / "model.safetensors").exists()


def _sorted(model: nn.Module) -> list[Tensor]:
    return [value for _, value in sorted(model.state_dict().items())]


def test_validation_and_evaluation_run_when_due(tmp_path: Path) -> None:
    trainer(tmp_path, evaluate=evaluate, validate=lambda model: {"validation/loss": 1.0}).fit()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "rollout/max_coverage" in line] == [10, 20, 30]
    assert [line["step"] for line in lines if "validation/loss" in line] == [10, 20, 30]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]


def test_a_run_goes_on_in_the_precision_that_auto_was_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = replace(CONFIG, mixed_precision="auto")
    for supported, resumes in ((True, False), (False, True), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda supported=supported: supported, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        run = trainer(tmp_path, auto)
        assert run.precision == "bf16"
        if resumes:
            run.resume()
        run.save()
    assert trainer(tmp_path / "new", auto).precision == "fp32"
    (run.latest / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        trainer(tmp_path, auto).resume()


def test_another_configuration_or_network_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.step = 10
    run.save()
    with pytest.raises(CheckpointError, match=r"another configuration: learning_rate=0.5 \(saved with 0.01\)"):
        trainer(tmp_path, replace(CONFIG, learning_rate=0.5)).resume()
    with pytest.raises(CheckpointError, match="mixed_precision=bf16"):
        trainer(tmp_path, replace(CONFIG, mixed_precision="bf16")).resume()
    state = load_state(run.latest)
    save_state(run.latest, {**state, "device": "cuda"})
    with pytest.raises(CheckpointError, match="was written on cuda, this run is on cpu"):
        trainer(tmp_path).resume()
    save_state(run.latest, state)
    other = trainer(tmp_path)
    other.model.net[0] = nn.Linear(4, 17)
    with pytest.raises(CheckpointError, match="another network"):
        other.resume()
    with pytest.raises(CheckpointError, match="nothing complete to resume from"):
        trainer(tmp_path / "empty").resume()


def test_divergence_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, replace(CONFIG, gradient_clip=None))
    run.step = 1
    run.save()
    run.accelerator.unwrap_model(run.model).weight = float("nan")
    with pytest.raises(DivergedError, match="training has diverged"):
        run.fit()
    trainer(tmp_path, replace(CONFIG, gradient_clip=None)).resume()


def test_too_small_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=8 on 1 processes needs at least 8 data, the dataset has 5"):
        trainer(tmp_path, dataset=Points(5))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps=0: must be an integer of at least 1"),
        ("batch_size", -1, "batch_size=-1"),
        ("learning_rate", 0.0, "learning_rate=0.0: must be positive"),
        ("gradient_clip", 0, "gradient_clip=0: must be positive, or null to clip nothing"),
        ("gradient_clip", -1.0, "gradient_clip=-1.0: must be positive"),
        ("gradient_clip", float("nan"), "gradient_clip=nan: must be positive"),
        ("lr_schedule", "cos", "lr_schedule='cos': choose one of"),
        ("optimizer", "sgd", "optimizer='sgd': choose one of adamw, adam, radam"),
        ("ema_warmup", "ramp", "ema_warmup='ramp': choose one of power, ratio, none"),
        ("ema_max_decay", 1.0, "ema_max_decay=1.0: must be at least 0 and below 1"),
        ("gradient_accumulation", 0, "gradient_accumulation=0: must be an integer of at least 1"),
        ("keep_checkpoints", 0, "keep_checkpoints=0: must be an integer of at least 1"),
        ("compile", "fast", "compile='fast': choose one of false, true, reduce-overhead, max-autotune"),
        ("warmup_steps", 31, "warmup_steps=31: must be between 0 and steps=30"),
    ],
)
def test_wrong_settings_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**{**asdict(CONFIG), name: value})
