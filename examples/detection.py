"""Object detection on an exported encoder: torchvision's RetinaNet with a feature pyramid (pip install torchvision).

The encoder is trained without labels on synthetic scenes, exported, and loaded by torchvision, which needs no Diptych. Its
batch normalisation stays trainable: torchvision freezes it by default, which is meant for ImageNet's statistics.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou

import diptych

SIZE, SCENES, STEPS, BATCH = 64, 32, 20, 4
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def scenes(count: int, seed: int) -> tuple[np.ndarray, list[dict[str, Tensor]]]:
    """Two discs or squares on a noisy ground: (count, SIZE, SIZE, 3) uint8, and their boxes and labels (1: disc, 2: square)."""
    rng, (row, column) = np.random.default_rng(seed), np.mgrid[:SIZE, :SIZE]
    pixels = rng.normal(110, 20, (count, SIZE, SIZE, 3))
    targets = []
    for scene in pixels:
        boxes, labels = [], []
        for half in (0, SIZE // 2):  # one on the left, one on the right
            radius, label = int(rng.integers(7, 13)), int(rng.integers(1, 3))
            y, x = int(rng.integers(radius, SIZE - radius)), half + int(rng.integers(radius, SIZE // 2 - radius + 1))
            far = np.hypot(row - y, column - x) if label == 1 else np.maximum(abs(row - y), abs(column - x))
            scene[far < radius] = rng.uniform(0, 255, 3)
            boxes.append([x - radius, y - radius, x + radius, y + radius])
            labels.append(label)
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)})
    return pixels.clip(0, 255).astype(np.uint8), targets


def exported_encoder(pixels: np.ndarray, out: Path) -> Path:
    """model.safetensors of a ResNet-18, after a few steps without labels."""
    encoder = diptych.encoder("resnet18", stem="standard", size=SIZE)
    method = diptych.methods.BarlowTwins(encoder, projector=(128, 128))
    optimizer = diptych.optimizers.adamw(method, lr=1e-3)
    views = diptych.views.barlow_twins(size=SIZE)
    run = diptych.pretrain(
        method, diptych.images(pixels), views, optimizer, out=out / "run", epochs=1, batch_size=16, show=False
    )
    exported = diptych.export(run, "torchvision", out=out / "encoder", show=False)
    return exported.folder / "model.safetensors"


def main(out: str = "runs/detection") -> None:
    torch.manual_seed(0)
    pixels, targets = scenes(SCENES, seed=0)
    weights = exported_encoder(pixels, Path(out))

    pyramid = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, returned_layers=[2, 3, 4]
    )
    pyramid.body.load_state_dict(load_file(weights))  # every weight of the encoder, and no other
    anchors = AnchorGenerator(((16, 24), (16, 24), (32, 48), (48, 64)), ((1.0,),) * 4)  # pixels, for each of four maps
    detector = RetinaNet(pyramid, 3, SIZE, SIZE, MEAN, STD, anchors)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255  # it normalises them itself
    for step in range(STEPS):
        rows = [(step * BATCH + k) % SCENES for k in range(BATCH)]
        losses = detector([images[row] for row in rows], [targets[row] for row in rows])
        loss = losses["classification"] + losses["bbox_regression"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, STEPS - 1):
            print(f"step {step}: loss {loss.item():.2f}")
    detector.eval()
    detector.score_thresh, detector.detections_per_img = 0.0, 10
    with torch.no_grad():
        (proposed,) = detector([images[0]])
    covered = box_iou(targets[0]["boxes"], proposed["boxes"]).max(1).values
    overlaps = ", ".join(f"{value:.2f}" for value in covered.tolist())
    print(f"boxes {tuple(proposed['boxes'].shape)} in the first scene, best overlap with each object {overlaps}")


if __name__ == "__main__":
    main(*sys.argv[1:])
