"""Recipes: completely checked before an image is read; every one that ships is trained for two steps."""

import numpy as np
import pytest

from diptych.base import strict_yaml
from diptych.base.errors import RecipeError
from diptych.commands import recipe as recipes
from diptych.commands import shelf
from diptych.commands.build import build, build_watches
from diptych.data.images import images
from diptych.training.pretrain import pretrain


@pytest.mark.parametrize("name", shelf.names())
def test_every_recipe_trains_two_steps(name, tmp_path):
    """On synthetic images, with a batch and projector small enough for a laptop; widths and views as they stand."""
    asked = recipes.read(name, ["pretrain.batch_size=4", "pretrain.epochs=1", "pretrain.precision=float32"])
    projector = asked["method"]["projector"]
    asked["method"]["projector"] = [64] * len(projector)
    built = build(asked)
    size = asked["images"]["size"] or built.views[0].size
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    photos = images(pixels, labels=np.arange(8) % 2)
    watch = build_watches(asked, built, photos)
    run = pretrain(built.method, photos, built.views, built.optimizer, schedule=built.schedule, watch=watch,
                   out=tmp_path / "run", show=False, record=asked, **asked["pretrain"])  # fmt: skip
    assert run.finished and len(run.lines("epoch")) == 1
    assert recipes.resolve(run.recipe, "recipe.yaml") == asked  # what was written down is a recipe again


@pytest.mark.parametrize("name", shelf.names())
def test_every_recipe_opens_with_what_a_reader_needs(name):
    text = shelf.find(name).read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments[0]) > 20
    for word in ("command", "hardware", "time", "numbers"):
        assert any(line.startswith(f"# {word} ") for line in comments), f"{name} says no {word}"


def wrong(text: str, tmp_path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        recipes.read(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


GOOD = """
images: {size: 32}
encoder: {name: resnet18}
method: {name: barlow_twins}
views: {both: [{random_resized_crop: {size: 32}}]}
optimizer: {name: lars, lr: 1e-3}
pretrain: {epochs: 1, batch_size: 8}
"""


def test_a_small_recipe_is_completed(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    asked = recipes.read(
        str(tmp_path / "mine.yaml"), ["optimizer.lr=0.5", "views.both.0.random_resized_crop.scale=[0.2, 1]"]
    )
    assert asked["optimizer"]["lr"] == 0.5 and asked["optimizer"]["momentum"] == 0.9
    assert asked["views"]["both"][0]["random_resized_crop"]["scale"] == [0.2, 1]
    assert asked["schedule"]["name"] == "warmup_cosine" and asked["pretrain"]["seed"] == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 1e-3", "lrr: 1e-3", "mine.yaml: optimizer has no 'lrr'; did you mean lr?"),
        ("lr: 1e-3", "lr: fast", "mine.yaml: optimizer.lr is 'fast', which is not a number"),
        ("epochs: 1", "epochs: 1.5", "mine.yaml: pretrain.epochs is 1.5, which is not a whole number"),
        ("name: lars", "name: larz", "mine.yaml: optimizer.name 'larz' is unknown; did you mean lars?"),
        ("method:", "methods:", "mine.yaml: there is no section 'methods'; did you mean method?"),
        ("size: 32}}", "sise: 32}}", "views.both.random_resized_crop has no 'sise'; did you mean size?"),
        (
            "random_resized_crop",
            "random_resize_crop",
            "no operation 'random_resize_crop'; did you mean random_resized_crop or",
        ),
        ("both:", "left:", "views holds either `both`, or `first` and `second`"),
        (", batch_size: 8", "", "pretrain needs batch_size"),
        ("twins}", "twins, projector: wide}", "method.projector is 'wide', which is not a list"),
        ("name: resnet18", "name: [resnet18]", "encoder.name is ['resnet18'], which is not a word"),
        ("encoder: {name: resnet18}\n", "", "the section 'encoder' is missing"),
        ("epochs: 1", "epochs: 1, epochs: 2", "mine.yaml, line 7: the key 'epochs' stands twice"),
        (
            "images:",
            "images: !!python/object:os.system",
            "line 2: tags (tag:yaml.org,2002:python/object:os.system)",
        ),
        ("images: {size: 32}", "images:\n\tsize: 32", "line 3: found character '\\t'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(old, new, message, tmp_path):
    assert old in GOOD
    assert message in wrong(GOOD.replace(old, new, 1), tmp_path)


def test_hostile_yaml_is_refused(tmp_path):
    assert "aliases (*name) are not allowed" in wrong("images: &a {size: 1}\nencoder: *a\n", tmp_path)
    assert "a recipe has at most" in wrong("# " + "x" * 1_000_001, tmp_path)
    assert "a recipe is a map" in wrong("- 1\n", tmp_path)
    assert "a key must be a word" in wrong("? [a]\n: 1\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=0.3", "there is no section 'lr'"),
        ("optimizer.lr", "'optimizer.lr' is not an override"),
        ("optimizer.lr.x=1", "lr is a value, it holds nothing"),
        ("views.both.7.x=1", "7 is not a position in a list of 1"),
    ],
)
def test_overrides_that_mean_nothing(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        recipes.read(str(tmp_path / "mine.yaml"), [text])


def test_unknown_recipes_offer_near_ones(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe 'demp'; did you mean demo"):
        recipes.read("demp")
    with pytest.raises(RecipeError, match="there is no recipe file none.yaml"):
        recipes.read("none.yaml")


def test_yaml_reads_what_people_mean():
    text = "a: 1e-3\nb: no\nc: 0755\nd: 1:30\ne: 2026-01-01\nf: [1, 2.5, -3e2, .inf]\ng: ~\nh:\ni: true\nk: -1\nl: 5.\n"
    read = strict_yaml.parse(text, "t")
    assert read == {"a": 0.001, "b": "no", "c": 755, "d": "1:30", "e": "2026-01-01", "f": [1, 2.5, -300.0, float("inf")],
                    "g": None, "h": None, "i": True, "k": -1, "l": 5.0}  # fmt: skip
    assert strict_yaml.parse(strict_yaml.write(read), "t") == read
    assert strict_yaml.parse("\ufeffa: 1\r\nb: 2\r\n".encode(), "t") == {"a": 1, "b": 2}
