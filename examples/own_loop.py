"""Views, a method and its loss in a training loop built on Hugging Face Accelerate (pip install accelerate).

`accelerate launch examples/own_loop.py` runs it in several processes. The loss is still that of the global batch.
"""

import sys

import torch
from accelerate import Accelerator

import diptych

STEPS, BATCH = 20, 128


def main(out: str = "") -> None:
    accelerator = Accelerator()
    photos = diptych.images("demo", size=32)
    views = diptych.views.barlow_twins(size=32)
    encoder = diptych.encoder("resnet18", stem="small-stride2", size=32, channels=(16, 16, 32, 64))
    method = diptych.methods.BarlowTwins(encoder, projector=(128, 128))
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    model, optimizer = accelerator.prepare(method, optimizer)

    rng = torch.Generator().manual_seed(accelerator.process_index)
    order = torch.randperm(len(photos), generator=rng)[: STEPS * BATCH]
    for step, (_, pixels) in enumerate(photos.read(order, BATCH, device=accelerator.device)):
        compared = model([view(pixels, rng) for view in views])  # loss, parts, and what `after_step` needs
        accelerator.backward(compared.loss)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(compared.kept, (step + 1) / STEPS)
        if step % 5 == 0:
            accelerator.print(f"step {step}: loss {compared.loss.item():.1f}")

    accelerator.print(f"{tuple(encoder(torch.zeros(2, 3, 32, 32, device=accelerator.device)).shape)} embeddings")


if __name__ == "__main__":
    main(*sys.argv[1:])
