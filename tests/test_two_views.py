"""What Barlow Twins and SimSiam share beyond the contract: a pair of views, and a loss that is a mean over the images."""

import copy

import pytest
import torch
from small import make, views

from diptych.base.errors import RecipeError
from diptych.methods import BarlowTwins, SimSiam

both = pytest.mark.parametrize("kind", [BarlowTwins, SimSiam])


@both
def test_every_image_twice_is_the_same_loss(kind):
    method = make(kind, projector=(10, 7)).double()
    projections = method.project(views(dtype=torch.float64), {})
    twice = {key: torch.cat([value, value]) for key, value in projections.items()}
    once, twice = (method.compare(rows, 0.0).loss for rows in (projections, twice))
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)


@both
@pytest.mark.parametrize("wrong", [views(sizes=(9,)), views(sizes=(9, 9, 9)), [views(4)[0], views(5)[1]]])
def test_two_views_of_the_same_images(kind, wrong):
    with pytest.raises(RecipeError, match="compares two views of the same images, got views of"):
        make(kind)(wrong)


@both
def test_nothing_but_gradients_moves_it(kind):
    method = make(kind)
    before = copy.deepcopy(method.state_dict())
    method.after_step({}, 0.5)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert method.draw(3, torch.Generator()) == {} and method.statistics_rows is None


@both
def test_the_pair_of_projections_is_shown(kind):
    method = make(kind, projector=(10, 7))
    projections = method.project(views(), {})
    first, second = method.shown(projections)
    assert first is projections["z1"] and second is projections["z2"]
