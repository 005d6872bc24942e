"""Parts of a recipe fit together after one word: what belonged to the old choice goes, sizes and stems follow."""

import numpy as np
import pytest

from diptych.base.errors import RecipeError
from diptych.commands import recipe as recipes
from diptych.commands import shelf
from diptych.commands.build import build
from diptych.commands.schema import call_arguments
from diptych.data.images import images
from diptych.training.pretrain import pretrain

SMALL = ["barlow-twins-small", "barlow-twins-cifar10-small", "simsiam-cifar10-small", "simsiam-small", "demo"]
QUICK = ["pretrain.batch_size=4", "pretrain.epochs=1", "pretrain.precision=float32", "watch.collapse=false",
         "watch.knn=false"]  # fmt: skip
CONVNEXT, VIT = "encoder.name=convnext_atto", "encoder.name=vit_tiny_patch16_224"
# That all fits is seen on shallow and narrow networks too; as they stand they are deep.
NARROW = ["encoder.channels=[8,8,16,16]"]  # of the recipes' own ResNet
SHALLOW = {CONVNEXT: ["encoder.depths=[1, 1, 1, 1]", "encoder.dims=[8, 8, 16, 24]"], VIT: ["encoder.depth=1"]}
METHODS = ["method.name=simsiam", "method.name=barlow_twins"]
SIZES = ["images.size=32", "images.size=64", "images.size=96"]
SINGLES = [[word] for word in (CONVNEXT, VIT, *METHODS, *SIZES)]
PAIRS = [[encoder, method, size] for encoder in (CONVNEXT, VIT) for method in METHODS for size in SIZES]


def fitted(name: str, *words: str) -> tuple[dict, list[str]]:
    lines: list[str] = []
    return recipes.read_recipe(name, words, lines.append), lines


def train_two_steps(name: str, words: list[str], tmp_path) -> None:
    shallow = [option for word in words for option in SHALLOW.get(word, [])] or NARROW
    recipe, _ = fitted(name, *QUICK, *words, *shallow)
    built = build(recipe)
    size = recipe["images"]["size"]
    assert [view.size for view in built.views] == [size, size]
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    run = pretrain(built.method, images(pixels), built.views, built.optimizer, schedule=built.schedule, out=tmp_path / "run",
                   show=False, **call_arguments(pretrain, recipe["pretrain"]))  # fmt: skip
    assert run.finished and len(run.lines("epoch")) == 1


@pytest.mark.parametrize("words", SINGLES, ids=" ".join)
@pytest.mark.parametrize("name", SMALL)
def test_one_word_gives_a_recipe_that_trains(name, words, tmp_path):
    train_two_steps(name, words, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("words", PAIRS, ids=" ".join)
@pytest.mark.parametrize("name", SMALL)
def test_three_words_give_a_recipe_that_trains(name, words, tmp_path):
    train_two_steps(name, words, tmp_path)


@pytest.mark.parametrize(
    ("name", "words", "section", "gone", "line"),
    [
        ("barlow-twins-small", [CONVNEXT], "encoder", {"channels"}, "encoder convnext_atto does not take channels: left out"),
        ("demo", [VIT], "encoder", {"channels"}, "encoder vit_tiny_patch16_224 does not take stem, channels: left out"),
        ("demo", ["method.name=simsiam"], "method", {"off_diagonal_weight"},
         "method simsiam does not take off_diagonal_weight: left out"),
        ("simsiam-cifar10-small", ["method.name=barlow_twins"], "method", {"predictor"},
         "method barlow_twins does not take predictor: left out"),
        ("barlow-twins-small", ["schedule.name=constant"], "schedule", {"warmup", "floor"},
         "schedule constant does not take warmup, floor: left out"),
        ("demo", ["optimizer.name=sgd"], "optimizer", {"betas"},
         "optimizer sgd takes its own rates, not adamw's lr, weight_decay: left out"),
    ],
)  # fmt: skip
def test_what_the_old_choice_took_goes_and_is_said(name, words, section, gone, line):
    recipe, lines = fitted(name, *words)
    assert lines == [line]
    assert not gone & recipe[section].keys()


def test_what_both_choices_take_stays():
    recipe, lines = fitted("demo", "encoder.name=resnet34", "method.name=simsiam", "schedule.name=cosine")
    assert recipe["encoder"]["channels"] == [32, 32, 64, 128] and recipe["encoder"]["stem"] == "small-stride2"
    assert recipe["method"]["projector"] == [512, 512, 512] and recipe["method"]["predictor"] == 512
    assert recipe["schedule"]["floor"] == 0.001
    assert not any(line.startswith("encoder") for line in lines)
    assert fitted("demo", "encoder.name=resnet18", "images.size=32") == (fitted("demo")[0], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([CONVNEXT, "encoder.channels=[8, 8, 8, 8]"], "convnext_atto has no option 'channels'"),
        (["encoder.channels=[8, 8, 8, 8]", CONVNEXT], "convnext_atto has no option 'channels'"),
        (["method.name=simsiam", "method.off_diagonal_weight=0.01"], "method has no 'off_diagonal_weight'"),
        (["optimizer.name=sgd", "optimizer.betas=[0.9, 0.99]"], "optimizer has no 'betas'"),
        (["encoder.name=convnext_ato"], "no encoder is named 'convnext_ato'"),
        (["method.name=simsam"], "method.name 'simsam' is unknown; did you mean simsiam or"),
    ],
)
def test_what_the_user_gives_and_the_new_choice_does_not_take_is_an_error(words, message):
    with pytest.raises(RecipeError) as error:
        build(fitted("demo", *words)[0])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_the_users_that_does_not_fit_is_an_error(tmp_path):
    text = shelf.find_recipe("demo").read_text().replace("name: resnet18", "name: convnext_atto")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match="convnext_atto"):
        build(fitted(str(tmp_path / "mine.yaml"))[0])


def test_rules_for_the_old_methods_networks_go():
    recipe, lines = fitted("simsiam-keras-intended", "method.name=barlow_twins")
    assert recipe["optimizer"]["groups"] == [] and "optimizer.groups names networks of" in lines[-1]
    kept, _ = fitted("simsiam-keras-intended", "method.name=simsiam", "optimizer.groups.0.weight_decay=0.1")
    assert len(kept["optimizer"]["groups"]) == 3


def crops(recipe: dict) -> list:
    return [entry["do"][0]["random_resized_crop"]["size"] for entry in recipe["views"]]


MULTI = """
images: {size: 224}
encoder: {name: vit_tiny_patch16_224, size: 224}
method: {name: barlow_twins}
views:
  - {times: 2, do: [random_resized_crop: {size: 224}]}
  - {times: 6, do: [random_resized_crop: {size: 96}]}
optimizer: {name: adamw}
pretrain: {epochs: 1, batch_size: 8}
"""


def test_views_and_encoder_follow_the_images(tmp_path):
    (tmp_path / "multi.yaml").write_text(MULTI)
    recipe, lines = fitted(str(tmp_path / "multi.yaml"), "images.size=112")
    assert crops(recipe) == [112, 48] and recipe["encoder"]["size"] == 112
    assert lines == ["images.size is 112: sizes of views follow (224 -> 112, 96 -> 48 pixels)"]
    assert crops(fitted(str(tmp_path / "multi.yaml"), "images.size=50")[0]) == [50, 24]  # 21.4, to a multiple of 8
    assert crops(fitted("barlow-twins-imagenet", "images.size=128")[0]) == [112, 112]  # 7 of 8 pixels, as in the recipe
    keras = fitted("barlow-twins-keras-published", "images.size=64")[0]["views"][0]["do"][0]["keras_crop"]
    assert keras == {"size": 64, "sides": [48, 62]}


def test_an_override_of_a_size_wins_in_either_order(tmp_path):
    (tmp_path / "multi.yaml").write_text(MULTI)
    own = "views.1.do.0.random_resized_crop.size=40"
    for words in ([own, "images.size=112"], ["images.size=112", own]):
        assert crops(fitted(str(tmp_path / "multi.yaml"), *words)[0]) == [112, 40]
    recipe, _ = fitted(str(tmp_path / "multi.yaml"), "images.size=112", "encoder.size=64")
    assert recipe["encoder"]["size"] == 64 and crops(recipe) == [112, 48]


def test_the_size_of_a_crop_alone_changes_nothing_else():
    recipe, lines = fitted("barlow-twins-small", "views.0.do.0.random_resized_crop.size=32")
    assert crops(recipe) == [32] and recipe["images"]["size"] == 64 and lines == []
    assert recipe["encoder"]["stem"] == "standard" and build(recipe).views[0].size == 32


@pytest.mark.parametrize("size", ["null", "true", "-32", "wide"])
def test_a_size_that_is_none_is_left_to_the_check(size):
    try:
        recipe, lines = fitted("demo", f"images.size={size}")
    except RecipeError as error:
        assert "images.size is" in str(error)
    else:
        assert crops(recipe) == [32] and lines == []


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("barlow-twins-small", 32, "small-stride2"),
        ("barlow-twins-small", 96, "standard"),
        ("demo", 64, "standard"),
        ("demo", 40, "small-stride2"),
        ("simsiam-cifar10", 64, "small-stride2"),
        ("barlow-twins-imagenet", 128, "small-stride2"),
    ],
)
def test_the_stem_follows_the_images(name, size, stem):
    """Maps of the first stage keep their size, and a step its time."""
    recipe, lines = fitted(name, f"images.size={size}")
    old = fitted(name)[0]["encoder"]["stem"]
    assert recipe["encoder"]["stem"] == stem
    assert any(f"encoder.stem follows ({old} -> {stem})" in line for line in lines) == (old != stem)
    assert fitted(name, f"images.size={size}", "encoder.stem=small")[0]["encoder"]["stem"] == "small"
    assert fitted(name, f"images.size={size}", CONVNEXT)[0]["encoder"]["stem"] in ("auto", "standard")
