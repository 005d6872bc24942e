"""Every value of a recipe has a range: any value of any key trains or is refused in one line before an image is read."""

import copy
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.base.device import choose_device
from diptych.base.errors import DiptychError, RecipeError
from diptych.base.random_at import random_at
from diptych.base.ranges import Range, Words, ranged_hints
from diptych.commands.build import build, build_watches
from diptych.commands.recipe import CALLS, GIVEN_BY_COMMAND, override, resolve
from diptych.commands.schema import call_arguments, dataclass_of, hints_of, is_data
from diptych.data.images import images
from diptych.downstream.finetune import finetune
from diptych.networks.encoders import NETWORKS
from diptych.training.ends import check
from diptych.training.trial import try_method
from diptych.views import OPERATIONS

PHOTOS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
SMALL: dict[str, Any] = {
    "images": {"size": 16, "labels": "none"},
    "encoder": {"name": "resnet10t", "channels": [8, 8, 8, 8]},
    "method": {"name": "barlow_twins", "projector": [8, 8]},
    "views": [{"times": 2, "do": [{"random_resized_crop": {"size": 16}}, "horizontal_flip"]}],
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "cosine"},
    "pretrain": {"epochs": 1, "batch_size": 8, "device": "cpu"},
    "watch": {"images": 4},
    "evaluate": {},
}
# What a method or an operation needs beside its defaults to be small.
NEEDS = {
    "simsiam": {"projector": [8, 8], "predictor": 4},
    "keras_simsiam": {"projector": [8, 8], "predictor": 4},
    "random_resized_crop": {"size": 16},
    "random_crop": {"size": 16},
    "resize": {"size": 16},
    "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "keras_crop": {"size": 16, "sides": [8, 12]},
    "patch_dictionary": {"entries": 8, "second_entries": 8, "first_width": 8, "second_width": 8, "filters": 8,
                         "reduced": 4, "gathered": 8},
    "small_convolutions": {"widths": [8, 8, 8]},
    "vit_tiny_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
}  # fmt: skip
OPTIONS_OF_TIMM = {
    "resnet10t": "act_layer norm_layer block channels layers base_width cardinality drop_rate drop_path_rate stem_width "
    "output_stride zero_init_last aa_layer global_pool in_chans num_classes unknown stem_type avg_down block_args",
    "vit_tiny_patch16_224": "patch_size embed_dim depth num_heads mlp_ratio init_values class_token pos_embed act_layer "
    "norm_layer img_size dynamic_img_size drop_path_rate reg_tokens qkv_bias",
}


def constructors() -> Iterator[tuple[str, str | None, Callable]]:
    """(section, name, function or class) of all that a recipe can call; encoders of timm have no signature."""
    for section, call in CALLS.items():
        if isinstance(call, Mapping):
            yield from ((section, name, make) for name, make in call.items())
        elif section != "views":
            yield section, None, call
    yield from (("views", name, operation) for name, operation in OPERATIONS.items())
    yield from (("encoder", name, network) for name, network in NETWORKS.items())


def keys_of(section: str, make: Callable) -> list[str]:
    hints, given = hints_of(make), GIVEN_BY_COMMAND.get(section, ())
    known = [name for name in inspect.signature(make).parameters if name not in given and name in hints]
    return [name for name in known if is_data(hints[name])]


KEYS = [(section, name, key) for section, name, make in constructors() for key in keys_of(section, make)]
KEYS += [("encoder", name, key) for name, options in OPTIONS_OF_TIMM.items() for key in options.split()]
KEYS.remove(("encoder", None, "pretrained"))  # it asks the internet for weights
KEYS += [("pretrain", None, f"stopping.{key}") for key in ("reading", "largest", "patience")]
KEYS += [("views", None, "times"), ("optimizer", "sgd", "groups.0.lr"), ("optimizer", "lars", "groups.0.match")]
WHOLE = [-(10**30), -1, 0, 1, 2, 3, 7, 8, 16, 17, 33, 2**20, 2**20 + 1, 2**31, 2**63, 10**30]
PLAIN = (
    st.sampled_from([None, True, False, "", "x", "²", "٣", "auto", "cuda:99", "meta", "mps", *WHOLE])
    | st.floats()
    | st.sampled_from([-1.0, 0.0, 1e-30, 0.5, 1.0, 1e30, 1e38, 1e300, math.nan, math.inf, -math.inf])
    | st.text(max_size=4)
)
VALUES = (
    PLAIN
    | st.lists(PLAIN, max_size=4)
    | st.dictionaries(st.text(max_size=4), PLAIN | st.lists(PLAIN, max_size=2), max_size=2)
)


def recipe_with(section: str, name: str | None, key: str, value: Any) -> dict:
    """A small recipe in which one key of one constructor has this value."""
    recipe = copy.deepcopy(SMALL)
    parts = key.split(".")
    if section == "views":
        if name is None:
            recipe["views"][0][key] = value
        else:
            recipe["views"][0]["do"].append({name: NEEDS.get(name, {}) | {key: value}})
        return recipe
    options = recipe[section]
    if name is not None and name != options.get("name"):
        options = {"name": name} | NEEDS.get(name, {"projector": [8, 8]} if section == "method" else {})
    if parts[0] == "groups" and len(parts) > 1:
        value = [{"match": "1d", "lr": 0.1} | {parts[2]: value}]
    elif parts[0] == "stopping" and len(parts) > 1:
        value = {"reading": "loss", parts[1]: value}
    recipe[section] = options | {parts[0]: value}
    return recipe


def train_a_step(recipe: dict) -> None:
    """What `diptych pretrain` does up to its first step, with the same checks in the same order; then one update."""
    sections = resolve(recipe, "mine.yaml")
    built = build(sections)
    photos = images(PHOTOS, **call_arguments(images, sections["images"]))
    build_watches(sections, built, photos)
    options = sections["pretrain"]
    choose_device(options["device"])
    check(photos, built.method, **{key: options[key] for key in ("batch_size", "micro_batch", "torch_compile")})
    try_method(built.method, built.views, photos.size, options["precision"])
    _, pixels = next(photos.read(torch.arange(4), 4, replace=(0, 0)))
    views = [view(pixels, random_at(0, "views", 0, i)) for i, view in enumerate(built.views)]
    built.method(views).loss.backward()
    built.schedule(0.5)
    built.optimizer.step()


def trains_or_is_refused(section: str, name: str | None, key: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            train_a_step(recipe_with(section, name, key, value))
        except DiptychError as error:
            images_differ = key == "labels" and isinstance(value, list)  # one label an image: data, not a setting
            assert error.exit_code == (3 if images_differ else 2) or images_differ and error.exit_code == 2, error
            assert "\n" not in str(error).replace("\\n", "")


SOMETHING = given(place=st.sampled_from(KEYS), value=VALUES)
QUIETLY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@SOMETHING
@settings(max_examples=80, **QUIETLY)
def test_any_value_of_any_key_trains_or_is_refused(place, value):
    trains_or_is_refused(*place, value)


@pytest.mark.slow
@SOMETHING
@settings(max_examples=6000, **QUIETLY)
def test_many_values_train_or_are_refused(place, value):
    trains_or_is_refused(*place, value)


# Each of these was a traceback, or was silently taken.
REFUSED = """
pretrain.log_steps=0 pretrain.log_steps=-1 pretrain.watch_epochs=0 pretrain.clip_norm=-1 pretrain.clip_norm=0
pretrain.checkpoint_minutes=.nan pretrain.checkpoint_minutes=.inf pretrain.device=meta pretrain.device=mps pretrain.device=xla
pretrain.device=hpu pretrain.device=vulkan pretrain.device=privateuseone pretrain.device=cuda:²
optimizer.lr=-1 optimizer.lr=.nan optimizer.lr=.inf optimizer.momentum=-1
method.projector=[99999999999999999999] method.projector=[1048576,1048576,1048576] method.off_diagonal_weight=-1
images.size=99999999999999 schedule.floor=-5 evaluate.k=-3 evaluate.protocols=[magic]
encoder.act_layer=x encoder.norm_layer=x encoder.block=x encoder.block=5 encoder.channels=[8,8] encoder.drop_path_rate=2
views.0.times=65 views.0.do.0.random_resized_crop.ratio=[1001,1001] views.0.do.0.random_resized_crop.size=100000
""".split()


def overridden(*overrides: str) -> dict:
    recipe = copy.deepcopy(SMALL)
    for text in overrides:
        override(recipe, text, "mine.yaml")
    return recipe


@pytest.mark.parametrize("text", REFUSED)
def test_a_value_outside_of_its_range_is_refused_before_an_image_is_read(text):
    """With the key's last part, the value or its range in the line. `build` is all that happens before images are opened."""
    key, _, value = text.partition("=")
    with pytest.raises(RecipeError) as refusal:
        build(resolve(overridden(text), "mine.yaml"))
    line = str(refusal.value)
    last = key.rpartition(".")[2]
    assert "\n" not in line and (last in line or value.strip("[]") in line or "projector" in line), line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["pretrain.log_steps=0"], "mine.yaml: pretrain.log_steps is 0; it must be at least 1"),
        (["optimizer.lr=-1"], "mine.yaml: optimizer.lr is -1; it must be at least 0"),
        (["optimizer.name=adamw", "optimizer.betas=[1,1]"], "optimizer.betas.0 is 1; it must be at least 0 and below 1"),
        (["optimizer.name=adamw", "optimizer.betas=[2,-1]"], "optimizer.betas.0 is 2; it must be at least 0 and below 1"),
        (["optimizer.name=adamw", "optimizer.betas=[0.9]"], "optimizer.betas is [0.9], which is not a list"),
        (["pretrain.device=meta"], "pretrain.device is 'meta'; it must be auto, cpu, cuda or cuda:N"),
        (["method.projector=[8,0]"], "method.projector.1 is 0; it must be at least 1 and at most 1,048,576"),
        (["evaluate.protocols=[magic]"], "there is no protocol 'magic'"),
        (["encoder.name=vit_tiny_patch16_224", "encoder.channels=null", "encoder.patch_size=0"], "vit_tiny_patch16_224"),
        (["encoder.depth=1e9"], "encoder.depth is 1000000000.0; it must be at least -131,072 and at most 131,072"),
        (["views.0.do.0.random_resized_crop.size=8", "encoder.name=vit_tiny_patch16_224", "encoder.size=16",
          "encoder={name: vit_tiny_patch16_224, size: 32}"], "vit_tiny_patch16_224 cannot embed images of 8 pixels"),
        (["views.0.do.1={gaussian_blur: {kernel: 99}}"], "kernel 99 is too large for 16 x 16 images"),
    ],
)  # fmt: skip
def test_the_line_names_key_value_and_range(changes, said):
    with pytest.raises(RecipeError) as refusal:
        build(resolve(overridden(*changes), "mine.yaml"))
    assert said in str(refusal.value)


@pytest.mark.parametrize("key", ["views.²", "views.0.do.²", "views.99999999999", "views.٣.times"])
def test_a_position_in_a_list_is_a_number(key):
    with pytest.raises(RecipeError, match="is not a position in a list"):
        override(copy.deepcopy(SMALL), f"{key}=1", "mine.yaml")


def test_a_crop_of_one_pixel_is_the_narrowest():
    recipe = overridden("views.0.do.0.random_resized_crop.ratio=[1000,1000]")
    train_a_step(recipe)


def leaves(hint: Any) -> Iterator[Any]:
    """The types in a hint that are numbers or words: plain ones, or with their range."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if record := dataclass_of(hint):
        yield from (leaf for part in ranged_hints(record).values() for leaf in leaves(part))
    elif kind is Annotated or hint in (int, float, str):
        yield hint
    elif kind in (typing.Union, types.UnionType, tuple) or (inspect.isclass(kind) and kind is not typing.Literal):
        yield from (leaf for part in inner for leaf in leaves(part))


# Words whose list is known elsewhere: they are checked by `encoder`, `budget.seconds_of`, `Squares`, `EarlyStop`, `PROTOCOLS`
# and the optimizers' rules.
ELSEWHERE = {"encoder.name", "pretrain.budget", "images.background", "pretrain.stopping", "evaluate.protocols"}
ELSEWHERE |= {f"optimizer.{name}.groups" for name in ("sgd", "adamw", "lars", "lamb")}
CHECK_THEMSELVES = {*OPERATIONS}  # by `views.operation`, when they are made


def test_every_number_and_word_of_the_schema_has_a_range():
    plain = set()
    for section, name, make in constructors():
        for key in keys_of(section, make) if name not in CHECK_THEMSELVES else ():
            if any(typing.get_origin(leaf) is not Annotated for leaf in leaves(ranged_hints(make)[key])):
                plain.add(".".join(filter(None, (section, name, key))))
    assert plain == ELSEWHERE


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_key_takes_a_number_that_is_not_finite_unless_it_means_something(number):
    means = {"images.max_pixels": math.inf}  # no limit
    taken = {}
    for section, name, make in constructors():
        for key in keys_of(section, make):
            try:
                resolve(recipe_with(section, name, key, number), "mine.yaml")
            except RecipeError:
                continue
            if section == "encoder" and name is not None:  # checked by the network itself
                with pytest.raises(RecipeError):
                    build(resolve(recipe_with(section, name, key, number), "mine.yaml"))
                continue
            taken[f"{section}.{key}"] = number
    assert taken == {key: number for key, most in means.items() if number == most}


def test_direct_calls_have_the_same_ranges():
    with pytest.raises(RecipeError, match="images: size is 0; it must be at least 1"):
        images(PHOTOS, size=0)
    with pytest.raises(RecipeError, match="finetune: encoder_lr is nan; it must be at least 0"):
        finetune("nowhere", None, None, encoder_lr=math.nan)


@pytest.mark.parametrize(
    ("limit", "inside", "without", "said"),
    [
        (Range(0, 1), [0, 1, 0.5], [-1, 1.1, math.nan], "at least 0 and at most 1"),
        (Range(above=0), [1e-9, 1e18], [0, -1, math.inf, math.nan, 10**30], "above 0 and at most 1e+18"),
        (Range(1, math.inf), [1, math.inf], [0, math.nan], "at least 1"),
        (Range(0, below=1), [0, 0.999], [1, math.nan], "at least 0 and below 1"),
        (Words("a|b"), ["a", "b"], ["", "ab", "a\n"], "one of a, b"),
    ],
)
def test_a_range(limit, inside, without, said):
    assert all(limit.takes(value) for value in inside) and not any(limit.takes(value) for value in without)
    assert str(limit) == said
