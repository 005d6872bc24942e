"""An address always gives the same numbers, other addresses give others, and nothing global is touched."""

import pytest
import torch

from diptych.base.random_at import random_at, seed_at


def test_the_numbers_of_an_address_never_change():
    """Runs can be resumed by a later version only while these stay."""
    assert seed_at(0, "views", 7, 1) == 2100636058346082258
    assert torch.randperm(6, generator=random_at(0, "order", 3)).tolist() == [5, 3, 4, 2, 1, 0]


def test_an_address_is_not_a_state():
    first = torch.rand(5, generator=random_at(1, "views", 2, 0))
    torch.rand(9, generator=random_at(1, "views", 1, 0))
    assert torch.equal(first, torch.rand(5, generator=random_at(1, "views", 2, 0)))


def test_every_part_of_an_address_counts():
    addresses = [
        (seed, word, step, view)
        for seed in (0, 1, "0")
        for word in ("views", "order")
        for step in range(200)
        for view in (0, 1)
    ] + [(0,), ("0",), (0, 0), (12, 3), (1, 23), ("12", "3"), ("1", "23"), ()]
    assert len({seed_at(*address) for address in addresses}) == len(addresses)
    assert not torch.equal(torch.rand(4, generator=random_at(0, "a")), torch.rand(4, generator=random_at(0, "b")))


def test_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=random_at(0, "init"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("part", [1.0, True, None, torch.tensor(1), (0, 1)])
def test_parts_that_may_be_spelt_in_two_ways_are_refused(part):
    with pytest.raises(TypeError, match="int and str"):
        random_at(0, part)
