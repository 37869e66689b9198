"""Image training runs: every method from configuration to summary, exact resume, settings that do not fit."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from composing import composed
from hydra.utils import instantiate
from killing import killed_at_the_first_checkpoint
from PIL import Image

from image_diffusion import evaluation, image_run
from image_diffusion.data import ImageDataset, ImageSource, load_images
from image_diffusion.evaluation import ImageEvaluation
from image_diffusion.image_run import build_image_model, train_images
from image_diffusion.metrics import FeatureExtractor
from image_diffusion.model import PixelModel, load_image_model
from immiscible_policy.cli import CONFIG_DIR
from immiscible_policy.coupling import Independent, Mixture
from immiscible_policy.run_setup import plain_settings, trainer_config
from immiscible_policy.training.checkpoint import load_state
from immiscible_policy.training.metrics import read_metrics

TINY = (
    "dataset.max_items=40",
    "steps=4",
    "batch_size=8",
    "network.block_out_channels=[8,16]",
    "network.norm_num_groups=4",
    "network.attention_head_dim=8",
    "model.num_inference_steps=2",
    "samples.n=3",
    "monitor.n_samples=8",
    "monitor.extractor=pixels",
    "evaluation.n_samples=8",
    "trainer.warmup_steps=1",
    "trainer.evaluate_every=4",
    "trainer.validate_every=4",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.tensorboard=false",
    "trainer.mixed_precision=fp32",
    "num_threads=1",
    "device=cpu",
)


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize("coupling", ["none", "knn", "assignment"])
@pytest.mark.parametrize("method", ["ddim", "fm", "cm"])
def test_every_method_trains_samples_and_summarises_under_any_coupling(
    method: str, coupling: str, tmp_path: Path
) -> None:
    small = ("objective.s0=2", "objective.s1=4") if method == "cm" else ()
    summary = train_images(composed("train_image", f"method={method}", f"coupling={coupling}", *TINY, *small), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["coupling"] == summary["coupling"]
    assert summary["data"]["name"] == "digits"
    with Image.open(tmp_path / "media" / "samples_step=0000004.png") as picture:
        assert picture.size == (128, 128)
    model = load_image_model(tmp_path / "checkpoints" / "step=0000004")
    assert model.coupling == summary["coupling"]
    assert model.sample([0]).shape == (1, 1, 8, 8)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["train/loss"] > 0
    assert last["validation/loss_independent"] > 0
    assert ("validation/loss_coupled" in last) == (coupling != "none")


@pytest.mark.parametrize("method", ["ddim", "cm"])
def test_a_killed_run_ends_with_the_same_weights(method: str, tmp_path: Path) -> None:
    small = ("objective.schedule=cm", "objective.s0=2", "objective.s1=4") if method == "cm" else ()
    cfg = composed("train_image", f"method={method}", "coupling=knn", "network.dropout=0.1", *TINY, *small)
    train_images(cfg, tmp_path / "whole")
    with killed_at_the_first_checkpoint():
        train_images(cfg, tmp_path / "broken")
    with pytest.raises(ValueError, match="already holds a run"):
        train_images(cfg, tmp_path / "broken")
    train_images(cfg, tmp_path / "broken", resume=True)
    weights = [
        load_image_model(tmp_path / name / "checkpoints" / "step=0000004").state_dict() for name in ("whole", "broken")
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_run_does_not_go_on_with_images_that_have_grown(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for shade in range(10):
        Image.new("L", (8, 8), 20 * shade).save(pictures / f"{shade}.png")
    data = ("dataset=folder", f"dataset.path={pictures}", "dataset.image_size=8", "dataset.test_split=null")
    cfg = composed("train_image", *data, *TINY)
    with killed_at_the_first_checkpoint():
        train_images(cfg, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "images.json").read_text())
    Image.new("L", (8, 8), 255).save(pictures / "more.png")
    with pytest.raises(
        ValueError, match=r"pictures are no longer those that the run began with: n=11 \(began with 10\)"
    ):
        train_images(cfg, tmp_path / "run", resume=True)
    (pictures / "more.png").unlink()
    assert train_images(cfg, tmp_path / "run", resume=True)["data"] == record
    assert json.loads((tmp_path / "run" / "images.json").read_text()) == record


def test_labels_are_used_where_asked_for(tmp_path: Path) -> None:
    train_images(composed("train_image", "model.class_conditional=true", *TINY), tmp_path)
    model = load_image_model(tmp_path / "checkpoints" / "step=0000004")
    assert model.n_classes == 10
    assert model.label_dropout == 0.1
    assert model.class_counts is not None
    assert sum(model.class_counts) == 40
    measured = json.loads((tmp_path / "evaluation.json").read_text())
    assert {one["record"]["run"]["labels"] for one in measured.values()} == {"as frequent as in the training data"}
    assert model.sample([0, 1], labels=[3, 9], guidance_scale=2.0).shape == (2, 1, 8, 8)


def encoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that ``encode`` is called with from here on."""
    sizes: list[int] = []
    encode = PixelModel.encode

    def spy(model: PixelModel, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(PixelModel, "encode", spy)
    return sizes


@pytest.mark.parametrize(
    "coupling",
    [
        ("coupling=seed_cache",),
        ("coupling=mixture", "coupling@coupling.coupling=seed_cache"),
        ("coupling=warmup", "coupling@coupling.coupling=assignment"),
        ("coupling=assignment",),
    ],
)
def test_couplings_that_ask_for_nothing_but_the_size_encode_nothing(
    coupling: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = encoding(monkeypatch)
    cfg = composed("train_image", *coupling, *TINY)
    data = load_images(ImageSource.from_config(plain_settings(cfg.dataset)))
    image_run._fit_coupling(instantiate(cfg.coupling, _convert_="all"), build_image_model(cfg, data), data, "cpu")
    assert sizes == []


def test_a_seed_cache_has_seeds_for_all_data_however_few_a_fit_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_run, "FIT_IMAGES", 8)
    assert train_images(composed("train_image", "coupling=seed_cache", *TINY), tmp_path)["final"]
    assert len(load_state(tmp_path / "checkpoints" / "latest")["coupling"]["seeds"]) == 40


@dataclass(frozen=True, repr=False)
class Watching(Independent):
    """Keeps what it is fitted with."""

    wants: frozenset[str] = frozenset({"data", "condition"})
    seen: dict = field(default_factory=dict, compare=False)

    @property
    def fit_uses(self) -> frozenset[str]:
        return self.wants

    def fit(self, data: torch.Tensor, condition: torch.Tensor | None = None) -> None:
        self.seen.update(data=data, condition=condition)

    def fit_size(self, n_data: int) -> None:
        self.seen["n"] = n_data


@pytest.mark.parametrize(
    ("wants", "conditional"), [({"data", "condition"}, True), ({"condition"}, True), ({"data", "condition"}, False)]
)
def test_a_coupling_is_shown_what_it_asks_for(
    wants: set[str], conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = encoding(monkeypatch)
    monkeypatch.setattr(image_run, "FIT_IMAGES", 10)
    cfg = composed("train_image", *TINY, "objective.data_scale=2", f"model.class_conditional={conditional}")
    data = load_images(ImageSource.from_config(plain_settings(cfg.dataset)))
    coupling = Watching(wants=frozenset(wants))
    image_run._fit_coupling(Mixture(coupling), build_image_model(cfg, data), data, "cpu")
    chosen = torch.linspace(0, 39, 10).long()
    assert coupling.seen["n"] == 40
    if conditional:
        assert torch.equal(coupling.seen["condition"], data.labels[chosen])  # type: ignore[index]
    else:
        assert coupling.seen["condition"] is None  # as calls while training
    if "data" in wants:
        torch.testing.assert_close(coupling.seen["data"], 2 * (data.batch(chosen)["image"] / 127.5 - 1))
    else:
        assert len(coupling.seen["data"]) == 10
        assert sizes == []


def test_the_extractor_computes_where_the_run_does_even_if_images_are_decoded_on_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []
    build = evaluation.build_extractor

    def spy(config: ImageEvaluation, image_size: int, channels: int, device: str = "cpu") -> FeatureExtractor:
        devices.append(device)
        return build(config, image_size, channels, "cpu")

    monkeypatch.setattr(evaluation, "build_extractor", spy)
    monkeypatch.setattr(image_run, "build_extractor", spy)
    monkeypatch.setattr(image_run, "process_device", lambda device: "cuda:3")
    monkeypatch.setattr(image_run, "_fit_coupling", lambda *_: None)
    monkeypatch.setattr(image_run.ImageDataset, "to", lambda data, device: data)
    train_images(composed("train_image", *TINY, "evaluation.extractor=random-conv"), tmp_path)
    assert devices == ["cuda:3"] * 3  # while training; tried beforehand; at the end


def test_processes_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [image_run.process_device(name) for name in ("auto", "cpu", "cuda:1")] == ["cuda", "cpu", "cuda:1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [image_run.process_device(name) for name in ("auto", "cpu")] == ["cuda:1", "cpu"]


@pytest.mark.parametrize(
    ("max_items", "validate_on", "expected"), [(40, 16, 16), (40, 2048, 40), (None, None, 297), (None, 100, 100)]
)
def test_validation_looks_at_some_of_the_test_images(
    max_items: int | None, validate_on: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def losses(model: torch.nn.Module, dataset: ImageDataset, batch_size: int, **options: object) -> dict[str, float]:
        found.append((len(dataset), dataset.source["split"], batch_size))
        return {}

    monkeypatch.setattr(image_run, "validation_losses", losses)
    limits = (f"dataset.max_items={max_items or 'null'}", f"validate_on={validate_on or 'null'}")
    train_images(composed("train_image", *TINY, *limits, "trainer.batch_size=6"), tmp_path)
    assert found == [(expected, "test", 6)]  # in the batches that are trained on


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_is_complete(method: str) -> None:
    cfg = composed("train_image", f"method={method}")
    trainer_config(cfg, 50_000)
    if method.endswith("_paper"):
        assert cfg.trainer.ema_max_decay == 0.9999
        assert cfg.batch_size * cfg.trainer.gradient_accumulation in (256, 512)


@pytest.mark.parametrize(
    ("method", "size"), [("ddim_paper", 35_746_307), ("fm_paper", 35_746_307), ("ddim", 700_000), ("cm", 700_000)]
)
def test_networks_have_their_sizes(method: str, size: int) -> None:
    data = load_images(ImageSource.from_config(plain_settings(composed("train_image").dataset)))
    if method.endswith("_paper"):
        data.image_size, data.channels = 32, 3
    model = build_image_model(composed("train_image", f"method={method}"), data)
    found = sum(p.numel() for p in model.parameters())
    assert found == size if method.endswith("_paper") else abs(found - size) < 50_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("batch_size=41",), "batch_size=41 on 1 processes needs at least 41 data, the dataset has 40"),
        (("dataset.split=training",), "split"),
        (("network.block_out_channels=[8,8,8,8,8]",), "image_size=8 must be a multiple of 16"),
        (("model.num_inference_steps=0",), "num_inference_steps=0: choose 1"),
        (("model.class_conditional=true", "dataset.label_column=null"), "digits has no classes"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_images(composed("train_image", *TINY, *overrides), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("samples.n=0",), r"samples\.n=0: must be at least 1"),
        (("samples.seed=-2",), r"samples\.seed=-2: must be an integer of at least 0, and with the 2 that"),
        (("monitor.seed=-1",), r"seed=-1: must be an integer of at least 0, and with the 7 that follow it below"),
        (("evaluation.seed=4294967290",), r"seed=4294967290: must be an integer of at least 0, and with the 7 that"),
        (("validate_on=0",), r"validate_on=0: must be at least 1, or null for all"),
        (
            ("evaluation.num_inference_steps=1001",),
            r"evaluation\.num_inference_steps=1001: .* takes 1 to 1000, or null",
        ),
        (("monitor.num_inference_steps=0",), r"num_inference_steps=0: must be at least 1, or null"),
        (("evaluation.n_samples=5",), r"evaluation: n_samples must be at least 6 for precision_recall, got 5"),
        (("monitor.n_samples=2", "monitor.metrics=[fd,kid]"), r"monitor: n_samples must be at least 3 for kid, got 2"),
        (
            ("dataset.max_items=3", "batch_size=3", "evaluation.metrics=[fd,fd_floor]"),
            r"evaluation: the number of reference images must be at least 4 for fd_floor, got 3",
        ),
        (("+evaluation.max_features=4",), r"evaluation: max_features must be at least 6 for precision_recall, got 4"),
        (("evaluation.metrics=[cmmd]",), r"evaluation: cmmd is defined by CLIP embeddings: .* got pixels"),
        (("evaluation.extractor=clip",), r"evaluation: extractor=clip needs weights"),
        (("evaluation.extractor=inception", "evaluation.weights=no.pt"), r"evaluation: .*there is no file at no\.pt"),
        (("dataset.image_size=16", "evaluation.extractor=digits-cnn"), r"evaluation: digits-cnn takes images of 8x8"),
        (("dataset.image_size=128",), r"monitor: extractor=pixels is for images of at most 4,096 values, .* 16,384"),
        (
            ("method=ddim", "objective=flow_matching"),
            r"objective\.beta_schedule=linear: objective\.name=flow_matching has no such setting\. .*fm \(flow",
        ),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_written(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train_images(composed("train_image", *TINY, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.class_conditional=true",), r"test_split=test: its images have no classes, those of the training 2"),
        (("dataset.image_size=null",), r"test_split=test: its images are 1 x 16 x 16, those of the training 1 x 8 x 8"),
        ((), None),
    ],
)
def test_test_images_that_a_model_cannot_be_validated_on_are_refused_before_anything_is_written(
    overrides: tuple[str, ...], message: str | None, tmp_path: Path
) -> None:
    for name, size in (("train/a", 8), ("train/b", 8), ("test", 16)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for shade in range(5):
            Image.new("L", (size, size), 40 * shade).save(folder / f"{shade}.png")
    data = ("dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "dataset.image_size=8")
    cfg = composed("train_image", *data, "dataset.test_split=test", *TINY, *overrides)
    if message is None:
        assert train_images(cfg, tmp_path / "run")["steps"] == 4
        return
    with pytest.raises(ValueError, match=rf"dataset\.{message}"):
        train_images(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_demonstrations_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset: these settings are not of a set of images; choose one of .*cifar10.*digits"
    ):
        train_images(composed("train_image", "dataset=human"), tmp_path / "run")
