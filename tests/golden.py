"""Readers of the golden numbers of `siblings.json`: arrays or digests of them, and weights that a formula fills."""

import json
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from shared import shared, wave
from torch import Tensor, nn

LOSS, ARRAY = 1e-9, 1e-9  # float64, relative to the largest number of an array, or to a digest's norm


@cache
def siblings() -> dict:
    return json.loads(shared("golden/siblings.json").read_text())


def filled(shape: tuple[int, ...], k: int, amp: float = 1.0, bias: float = 0.0) -> Tensor:
    """A tensor of the golden inputs; the file says by how much all k are moved."""
    return torch.from_numpy(wave(tuple(shape), k + siblings()["k_offset"], amp, bias))


def leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()


def agree(array: Tensor | float, golden: dict | float | list, tolerance: float = ARRAY) -> None:
    """The array is the golden one, given whole or as a digest."""
    array = torch.as_tensor(array, dtype=torch.float64).detach()
    if not isinstance(golden, Mapping):
        expected = torch.tensor(golden, dtype=torch.float64)
        assert (array - expected).abs().max() <= tolerance * expected.abs().max(), (array, golden)
        return
    assert golden.get("shape", list(array.shape)) == list(array.shape)
    if "values" in golden:
        expected = torch.tensor(golden["values"], dtype=torch.float64).reshape(array.shape)
        assert (array - expected).abs().max() <= tolerance * expected.abs().max()
        return
    norm = golden["norm"]
    first = array.flatten()[: len(golden["first"])]
    probe = torch.from_numpy(wave(tuple(array.shape), siblings()["probe_k"]))
    readings = {"norm": array.norm(), "dot": (array * probe).sum(), "sum": array.sum()}
    for name in readings.keys() & golden.keys():
        assert abs(float(readings[name]) - golden[name]) <= tolerance * max(norm, abs(golden[name])), name
    assert np.allclose(first, golden["first"], rtol=0, atol=tolerance * norm)


def fill(networks: Mapping[str, nn.Module], order: list) -> None:
    """Fill parameters by the formula: rows [k, name, shape], the first part of a name being the network's, "" if alone."""
    for k, name, shape in order:
        parameter = parameter_of(networks, name)
        kind = name.split(".")[-2]
        if name.endswith("bias"):
            values = filled(shape, k, 0.1)
        elif kind.startswith("bn"):
            values = filled(shape, k, 0.2, 1.0)
        else:
            values = filled(shape, k, (6 / shape[1]) ** 0.5)
        with torch.no_grad():
            parameter.copy_(values)


def parameter_of(networks: Mapping[str, nn.Module], name: str) -> Tensor:
    network, _, rest = name.partition(".")
    if network in networks:
        return networks[network].state_dict(keep_vars=True)[rest]
    return networks[""].state_dict(keep_vars=True)[name]


class TwoLayers(nn.Sequential):
    """lin1, bn1, ReLU, lin2, as the golden networks name their layers."""

    def __init__(self, width: int, hidden: int, out: int, last_bias: bool = True):
        super().__init__()
        self.add_module("lin1", nn.Linear(width, hidden))
        self.add_module("bn1", nn.BatchNorm1d(hidden))
        self.add_module("relu", nn.ReLU())
        self.add_module("lin2", nn.Linear(hidden, out, bias=last_bias))
