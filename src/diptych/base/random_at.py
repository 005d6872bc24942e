"""Random numbers from an address, not a state: `random_at(seed, "views", step, view)` always draws the same."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

Draw = Mapping[str, Tensor]  # random numbers drawn for some images: named tensors, one row per image


def seed_at(*address: int | str) -> int:
    """A 64-bit seed for an address: integers and strings, such as `(seed, "order", epoch)`.

    Raises TypeError for any other part: the 3 of numpy and of torch have other texts, and would be other addresses.
    """
    for part in address:
        if type(part) not in (int, str):
            raise TypeError(f"an address consists of int and str; {part!r} is {type(part).__name__}")
    return int.from_bytes(hashlib.blake2b(repr(address).encode(), digest_size=8).digest(), "little")


def random_at(*address: int | str) -> torch.Generator:
    """A CPU generator for this address. No global state is read or changed.

    torch's CPU generator keeps 32 bits of its seed, so two addresses agree by chance once in 4 billion pairs:
    harmless for augmentations and orders, which then apply to other images.
    """
    return torch.Generator().manual_seed(seed_at(*address))
