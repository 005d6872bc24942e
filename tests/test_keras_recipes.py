"""The Keras examples' recipes beside their views: batch statistics, weight decay, rates."""

import pytest
import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.commands import recipe
from diptych.commands.build import Built, build
from diptych.methods.keras import keras_barlow_twins, keras_simsiam
from diptych.networks.keras import KerasBatchNorm1d, KerasBatchNorm2d, freeze_statistics
from diptych.training.optimizers import describe


def built(name: str) -> Built:
    return build(
        recipe.read_recipe(name, ["method.projector=[32, 32]", "method.predictor=8"] if "simsiam" in name else [])
    )


def pair(n: int = 6) -> list[Tensor]:
    return [torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


@pytest.mark.parametrize(("name", "frozen"), [("simsiam-keras-published", True), ("simsiam-keras-intended", False)])
def test_simsiam_trains_with_frozen_statistics_as_published(name, frozen):
    method = built(name).method.train()
    before = {key: buffer.clone() for key, buffer in method.named_buffers()}
    method(pair())[0].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in method.parameters())
    assert sum(bool(parameter.grad.any()) for parameter in method.parameters()) == len([*method.parameters()])
    unchanged = [torch.equal(before[key], buffer) for key, buffer in method.named_buffers()]
    assert unchanged and (all(unchanged) if frozen else not any(unchanged))


def small_encoder() -> nn.Sequential:
    norm = KerasBatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Dropout(0.0), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_normalise_each_image_alone(frozen):
    """After a step of training, too: `train` is called again before each."""
    method = keras_simsiam(small_encoder(), projector=(8, 8), predictor=4, frozen_statistics=frozen, width=8)
    for _ in range(2):
        method.train()
        whole, part = method.project(pair(), {}), method.project([view[:3] for view in pair()], {})
        assert torch.allclose(whole["p1"][:3], part["p1"], atol=1e-6) == frozen
    assert method.encoder[1].training != frozen and method.encoder[2].training, "only batch normalisation is frozen"


def test_frozen_statistics_are_those_that_were_learned():
    method = keras_simsiam(small_encoder(), (8, 8), 4, width=8)
    for _ in range(3):
        method(pair())
    learned = method.eval().project(pair(), {})
    freeze_statistics(method)
    frozen = method.train().project(pair(), {})
    assert all(torch.equal(frozen[key], learned[key]) for key in learned)


def test_frozen_statistics_of_another_batch_normalisation_are_refused():
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(
        RecipeError, match="1 is a BatchNorm2d, whose statistics cannot be frozen: use the encoder keras_"
    ):
        keras_simsiam(encoder, frozen_statistics=True, width=8)


@pytest.mark.parametrize(
    "method", [keras_barlow_twins(nn.Identity(), (8, 8), width=4), keras_simsiam(nn.Identity(), (8, 8), 4, width=4)]
)
def test_every_batch_normalisation_is_that_of_keras(method):
    norms = [layer for layer in method.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert norms and all(type(layer) is KerasBatchNorm1d for layer in norms)


def test_published_networks_are_the_defaults():
    with torch.device("meta"):  # shapes without memory
        twins, siamese = keras_barlow_twins(nn.Identity(), width=1), keras_simsiam(nn.Identity(), width=1)
    assert [layer.out_features for layer in twins.projector if isinstance(layer, nn.Linear)] == [5000] * 3
    assert all(layer.bias is not None for layer in twins.projector if isinstance(layer, nn.Linear))
    assert (twins.off_diagonal_weight, twins.eps, twins.scale) == (0.005, 0.0, 1.0)
    assert [layer.out_features for layer in siamese.projector if isinstance(layer, nn.Linear)] == [2048, 2048]
    assert siamese.projector[-1].affine and siamese.predictor[0].out_features == 512 and siamese.stop_gradient


def test_weight_decay_is_what_the_text_declares():
    """l2(0.0005) adds 0.0005 |w|^2 to the loss of three layers: its gradient is 0.001 w. The program leaves it out."""
    assert {row["weight_decay"] for row in describe(built("simsiam-keras-published").optimizer)} == {0.0}
    intended = built("simsiam-keras-intended")
    decayed = [group for group in intended.optimizer.param_groups if group["weight_decay"]]
    assert {group["weight_decay"] for group in decayed} == {0.001}
    names = sorted(name for group in decayed for name in group["parameters"])
    assert names == ["predictor.0.weight", "projector.0.weight", "projector.3.weight"]


@pytest.mark.parametrize("name", ["simsiam-keras-published", "simsiam-keras-intended"])
def test_simsiam_rates_fall_from_003_to_0(name):
    made = built(name)
    assert made.optimizer.param_groups[0]["peak_lr"] == 0.03 and made.optimizer.param_groups[0]["momentum"] == 0.6
    assert [round(made.schedule(progress), 6) for progress in (0, 0.5, 1)] == [1, 0.5, 0]


def test_the_two_recipes_of_a_document_differ_where_the_table_says():
    for document, sections in {"barlow-twins": {"views"}, "simsiam": {"views", "method", "optimizer"}}.items():
        published, intended = (recipe.read_recipe(f"{document}-keras-{kind}") for kind in ("published", "intended"))
        assert {section for section in published if published[section] != intended[section]} == sections
