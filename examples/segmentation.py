"""Segmentation on an exported encoder: a U-Net of segmentation-models-pytorch (pip install segmentation-models-pytorch).

The encoder is trained without labels on synthetic scenes, exported for timm, and opened from its folder. A program only
needs the line with `tu-local-dir:`, and no Diptych.
"""

import sys
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch

import diptych

SIZE, SCENES, STEPS, BATCH = 64, 64, 12, 8
MEAN, STD = torch.tensor((0.5, 0.5, 0.5)).view(3, 1, 1), torch.tensor((0.25, 0.25, 0.25)).view(3, 1, 1)


def scenes(count: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """A bright disc on a noisy ground: (count, SIZE, SIZE, 3) uint8, and its mask (count, 1, SIZE, SIZE) float."""
    rng, (row, column) = np.random.default_rng(seed), np.mgrid[:SIZE, :SIZE]
    pixels, masks = rng.normal(90, 30, (count, SIZE, SIZE, 3)), []
    for scene in pixels:
        y, x, radius = rng.uniform(16, SIZE - 16), rng.uniform(16, SIZE - 16), rng.uniform(8, 16)
        mask = np.hypot(row - y, column - x) < radius
        scene[mask] += rng.uniform(60, 120, 3)
        masks.append(torch.from_numpy(mask).float()[None])
    return pixels.clip(0, 255).astype(np.uint8), torch.stack(masks)


def exported_encoder(pixels: np.ndarray, out: Path) -> Path:
    """The folder of a narrow ResNet-18 for timm, after a few steps without labels."""
    encoder = diptych.encoder("resnet18", stem="standard", size=SIZE, channels=(16, 16, 32, 64))
    method = diptych.methods.SimSiam(encoder, projector=(64, 64), predictor=16)
    optimizer = diptych.optimizers.sgd(method, lr=0.05, weight_decay=1e-4)
    views = diptych.views.simsiam(size=SIZE)
    run = diptych.pretrain(
        method, diptych.images(pixels), views, optimizer, out=out / "run", epochs=1, batch_size=16, show=False
    )
    return diptych.export(run, "timm", out=out / "encoder", show=False).folder


def overlap(masks: torch.Tensor, scores: torch.Tensor) -> float:
    """Intersection over union of the masks and of the pixels whose score is above 0."""
    proposed, wanted = scores > 0, masks > 0.5
    return float((proposed & wanted).sum() / (proposed | wanted).sum().clamp_min(1))


def main(out: str = "runs/segmentation") -> None:
    torch.manual_seed(0)
    pixels, masks = scenes(SCENES, seed=0)
    folder = exported_encoder(pixels, Path(out))

    network = smp.Unet(f"tu-local-dir:{folder}", encoder_weights=True, decoder_channels=(64, 32, 16, 16, 16), classes=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - MEAN) / STD  # as the card says
    for step in range(STEPS):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % SCENES
        scores = network(images[rows])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, masks[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, STEPS - 1):
            shown = overlap(masks[rows], scores)
            print(f"step {step}: loss {loss.item():.3f}, overlap {shown:.2f} of masks {tuple(scores.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
