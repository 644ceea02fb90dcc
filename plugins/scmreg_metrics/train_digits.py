"""Train the digit classifier whose features measure generated digits: ``python -m scmreg_metrics.train_digits [FILE]``.

It is fitted to scikit-learn's ``load_digits`` with a seeded, stratified fifth held out, in seconds and
deterministically for one build of torch, and written as safetensors with the facts that make it again as string
metadata. The features are centred and divided by one number, so that the real digits have mean 0 and unit variance:
the Fréchet distance in them has a defined scale.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import sklearn
import torch
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from scmreg_metrics.digits import WEIGHTS, DigitFeatures, load_images

SEED = 0
EPOCHS = 40
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
HELD_OUT_FRACTION = 0.2


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image moved by -1, 0 or 1 pixel along each axis (zero filled) and given a little pixel noise."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    dy, dx = (torch.randint(0, 3, (len(images),), generator=generator) for _ in range(2))
    rows = (dy[:, None] + torch.arange(8))[:, :, None]
    columns = (dx[:, None] + torch.arange(8))[:, None, :]
    moved = padded[torch.arange(len(images))[:, None, None], 0, rows, columns].unsqueeze(1)
    return moved + 0.05 * torch.randn(moved.shape, generator=generator)


def train(seed: int = SEED) -> tuple[DigitFeatures, float]:
    """Return the trained network and its accuracy on the held-out fifth."""
    images, classes = load_images()
    train_index, test_index = train_test_split(
        np.arange(len(images)), test_size=HELD_OUT_FRACTION, random_state=seed, stratify=classes.numpy()
    )
    train_images, train_classes = images[train_index], classes[train_index]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = DigitFeatures()
    steps = EPOCHS * (len(train_images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(train_images), generator=generator)
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            loss = nn.functional.cross_entropy(
                network.logits(shifted(train_images[batch], generator)),
                train_classes[batch],
                label_smoothing=0.05,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().requires_grad_(False)
    activations = network.activations(images)
    network.feature_mean.copy_(activations.mean(0))
    network.feature_scale.copy_(activations.var(0, unbiased=False).mean().sqrt())
    predictions = network.logits(images[test_index]).argmax(1)
    accuracy = (predictions == classes[test_index]).float().mean().item()
    return network, accuracy


def save(network: DigitFeatures, path: Path, accuracy: float, seed: int = SEED) -> None:
    """Write the weights with their provenance as string metadata."""
    metadata = {
        "kind": "digit-features",
        "data": "sklearn.datasets.load_digits",
        "sklearn": sklearn.__version__,
        "torch": torch.__version__,
        "seed": str(seed),
        "held_out_fraction": str(HELD_OUT_FRACTION),
        "held_out_accuracy": f"{accuracy:.6f}",
        "input": "(B, 1, 8, 8), pixels/16 in [0, 1]",
        "features": "64, after SiLU, real digits standardised to zero mean and unit mean variance",
    }
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(path), metadata=metadata)


def main() -> None:
    """Train, save and report the held-out accuracy."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS
    torch.set_num_threads(1)
    network, accuracy = train()
    save(network, path, accuracy)
    print(f"{path}: held-out accuracy {accuracy:.4f}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
