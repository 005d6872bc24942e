"""Any nn.Module can be the encoder: it takes images (N, 3, S, S) and gives embeddings (N, E)."""

import sys

from torch import nn

import diptych


def network() -> nn.Module:
    """Four convolutions and a mean; 64 numbers per image."""
    layers, width = [], 3
    for wider in (16, 32, 64, 64):
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def main(out: str = "runs/own-network") -> None:
    photos = diptych.images("demo", size=32)
    method = diptych.methods.SimSiam(network(), projector=(128, 128), predictor=32, width=64)
    optimizer = diptych.optimizers.sgd(method, lr=0.1, weight_decay=1e-4)
    run = diptych.pretrain(
        method, photos, diptych.views.simsiam(32), optimizer, out=out, epochs=1, batch_size=128, resume=True
    )
    trained = diptych.load(run, encoder=network())  # a module of the same shape takes the trained weights
    vectors = diptych.embed(trained, photos)
    print(f"{type(trained.encoder).__name__}: {tuple(vectors.shape)} embeddings")
    print(
        f"the same from a shell: diptych embed {run.folder} SOURCE --out FOLDER --encoder examples.own_network:network"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
