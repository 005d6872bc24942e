"""Randomness is an address, not a state: `random_at(seed, "views", step, view)` never changes."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

Draw = Mapping[str, Tensor]  # random numbers drawn for some images: named tensors, one row per image


def seed_at(*address: int | str) -> int:
    """A 64-bit seed for this address: whole numbers and words, such as `(seed, "order", epoch)`.

    Raises TypeError for any other part: numpy's 3 and torch's 3 are spelt differently, and would be other
    addresses.
    """
    for part in address:
        if type(part) not in (int, str):
            raise TypeError(f"an address is made of int and str; {part!r} is {type(part).__name__}")
    return int.from_bytes(hashlib.blake2b(repr(address).encode(), digest_size=8).digest(), "little")


def random_at(*address: int | str) -> torch.Generator:
    """A CPU generator for this address. No global state is read or changed.

    torch's CPU generator keeps 32 bits of its seed, so two addresses agree by chance once in 4 billion pairs:
    harmless for augmentations and orders, which then meet other images.
    """
    return torch.Generator().manual_seed(seed_at(*address))
