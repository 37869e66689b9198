"""A small network that knows digits, for 8x8 images: trained here in seconds on scikit-learn's, then kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from image_diffusion.metrics.extractor import check_images, tensors_sha256, weights_folder
from immiscible_policy.files import complete_or_absent

_VERSION = 1  # of network and training: another one gets a file of its own
_EPOCHS = 20
_BATCH = 128


class DigitsCnn:
    """Features of the last hidden layer of a classifier of all 1,797 digits of ``sklearn.datasets.load_digits``.

    Training is deterministic on one machine and version of torch; elsewhere the last bits may differ. The hash in every
    record tells networks apart, and reference statistics of another one are refused: keep the file to compare results.

    Args:
        path: of the trained weights, made if absent; by default in :func:`weights_folder`.
        device: to compute on.

    Raises:
        ValueError: the file holds something else.
    """

    name = "digits-cnn"
    canonical = False
    dim = 64
    resize = "none: 8x8 greyscale only"

    def __init__(self, path: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        from safetensors.torch import load_file

        file = Path(path).expanduser() if path is not None else weights_folder() / f"digits-cnn-v{_VERSION}.safetensors"
        if not file.exists():
            _save(train_digits_classifier(), file)
        self._network = _classifier()
        try:
            self._network.load_state_dict(load_file(file))
        # Whatever is wrong with a file, the reader's own exception type says too little.
        except Exception as error:
            raise ValueError(f"{file} does not hold the digits network ({error}): delete it to train anew") from error
        self._network.to(device).eval().requires_grad_(False)
        self.weights_sha256 = tensors_sha256(self._network.state_dict().values())
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        _check_size(images)
        return self._network[:-1](_scaled(images.to(self.device)))

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """Digit (N,) int64 that each image (N, 1, 8, 8) uint8 shows most likely."""
        _check_size(images)
        return self._network(_scaled(images.to(self.device))).argmax(1)


def train_digits_classifier(seed: int = 0) -> nn.Sequential:
    """The trained classifier, on the CPU and in one thread, whose number would change sums."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(data.target).long()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the generators of all GPUs, too, which are not put back.
            torch.default_generator.manual_seed(seed)
            network = _classifier()
            _fit(network, _scaled(images), labels)
            _balance(network, _scaled(images))
    finally:
        torch.set_num_threads(threads)
    return network


def _fit(network: nn.Sequential, inputs: Tensor, labels: Tensor) -> None:
    steps = _EPOCHS * -(-len(inputs) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(inputs)).split(_BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _balance(network: nn.Sequential, inputs: Tensor) -> None:
    """Give features a mean square of 1, where the kernel distance's cubic kernel is well scaled; logits stay."""
    size = network[:-1](inputs).square().mean().sqrt()
    # A ReLU passes a positive factor on.
    for parameter in network[-3].parameters():
        parameter.div_(size)
    cast(nn.Linear, network[-1]).weight.mul_(size)


def _classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, DigitsCnn.dim),
        nn.ReLU(),
        nn.Linear(DigitsCnn.dim, 10),
    )


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0


def _check_size(images: Tensor) -> None:
    check_images(images, (1,), DigitsCnn.name)
    if images.shape[2:] != (8, 8):
        raise ValueError(f"digits-cnn takes images of 8x8, got {images.shape[2]}x{images.shape[3]}")


def _save(network: nn.Module, file: Path) -> None:
    from safetensors.torch import save_file

    with complete_or_absent(file) as partial:
        save_file(network.state_dict(), partial)
