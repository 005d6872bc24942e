"""Recipes: completely checked before an image is read; every one that ships is trained for two steps."""

import numpy as np
import pytest
import torch

from diptych.base import strict_yaml
from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.commands import recipe as recipes
from diptych.commands import shelf
from diptych.commands.build import build, build_views, build_watches, watches
from diptych.commands.schema import call_arguments
from diptych.data.images import images
from diptych.training.pretrain import pretrain

LARGE = {name for name in shelf.recipe_names() if name.endswith(("-imagenet", "-cifar10"))}
LARGE -= {"barlow-twins-cifar10", "simsiam-cifar10"}
LARGE |= {"barlow-twins-keras-intended"}  # it differs from -published in views alone, which test_keras_views.py holds


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in shelf.recipe_names()]
)
def test_every_recipe_trains_two_steps(name, tmp_path):
    """On synthetic images, with a batch and heads small enough for a laptop; encoders and views as they stand."""
    asked = recipes.read_recipe(name, ["pretrain.batch_size=4", "pretrain.epochs=1", "pretrain.precision=float32"])
    method = asked["method"]
    method |= {"projector": [64] * len(method["projector"])}
    small = {"predictor": 32, "prototypes": 50, "statistics_rows": 2, "queue": 8}
    method |= {key: value for key, value in small.items() if method.get(key) is not None}
    built = build(asked)
    size = asked["images"]["size"] or built.views[0].size
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    photos = images(pixels, labels=np.arange(8) % 2)
    watch = build_watches(asked, built, photos)
    run = pretrain(built.method, photos, built.views, built.optimizer, schedule=built.schedule, watch=watch,
                   out=tmp_path / "run", show=False, record=asked,
                   **call_arguments(pretrain, asked["pretrain"]))  # fmt: skip
    assert run.finished and len(run.lines("epoch")) == 1
    assert recipes.resolve(run.recipe, "recipe.yaml") == asked  # what was written down is a recipe again


@pytest.mark.parametrize("name", shelf.recipe_names())
def test_every_recipe_opens_with_what_a_reader_needs(name):
    text = shelf.find_recipe(name).read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments[0]) > 20
    for word in ("command", "hardware", "time", "numbers"):
        assert any(line.startswith(f"# {word} ") for line in comments), f"{name} says no {word}"


def wrong(text: str, tmp_path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        recipes.read_recipe(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


VIEW = "{times: 2, do: [{random_resized_crop: {size: 32}}]}"
GOOD = f"""
images: {{size: 32}}
encoder: {{name: resnet18}}
method: {{name: barlow_twins}}
views: [{VIEW}]
optimizer: {{name: lars, lr: 1e-3}}
pretrain: {{epochs: 1, batch_size: 8}}
"""


def test_a_small_recipe_is_completed(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    asked = recipes.read_recipe(
        str(tmp_path / "mine.yaml"), ["optimizer.lr=0.5", "views.0.do.0.random_resized_crop.scale=[0.2, 1]"]
    )
    assert asked["optimizer"]["lr"] == 0.5 and asked["optimizer"]["momentum"] == 0.9
    assert asked["views"][0]["times"] == 2
    assert asked["views"][0]["do"][0]["random_resized_crop"]["scale"] == [0.2, 1]
    assert asked["schedule"]["name"] == "warmup_cosine" and asked["pretrain"]["seed"] == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 1e-3", "lrr: 1e-3", "mine.yaml: optimizer has no 'lrr'; did you mean lr?"),
        ("lr: 1e-3", "lr: fast", "mine.yaml: optimizer.lr is 'fast', which is not a number"),
        ("epochs: 1", "epochs: 1.5", "mine.yaml: pretrain.epochs is 1.5, which is not a whole number"),
        ("name: lars", "name: larz", "mine.yaml: optimizer.name 'larz' is unknown; did you mean lars?"),
        ("method:", "methods:", "mine.yaml: there is no section 'methods'; did you mean method?"),
        ("size: 32}}", "sise: 32}}", "views.0.do.0.random_resized_crop has no 'sise'; did you mean size?"),
        (
            "random_resized_crop",
            "random_resize_crop",
            "no operation 'random_resize_crop'; did you mean random_resized_crop or",
        ),
        ("times: 2", "tims: 2", "mine.yaml: views.0 has no 'tims'; did you mean times?"),
        ("times: 2", "times: 0", "mine.yaml: views.0.times is 0; it must be at least 1"),
        ("times: 2", "times: 2.0", "mine.yaml: views.0.times is 2.0, which is not a whole number"),
        ("times: 2", "times: true", "mine.yaml: views.0.times is True, which is not a whole number"),
        (
            "do: [{random_resized_crop: {size: 32}}]",
            "do: []",
            "mine.yaml: views.0.do is an empty list; name an operation",
        ),
        ("do: [{random_resized_crop: {size: 32}}]", "do: grayscale", "views.0.do is 'grayscale', which is not a list"),
        (", do: [{random_resized_crop: {size: 32}}]", "", "mine.yaml: views.0 needs do"),
        (
            f"[{VIEW}]",
            "[grayscale]",
            "views.0 is a map of arguments, not 'grayscale'",
        ),
        (f"[{VIEW}]", "[]", "mine.yaml: the section 'views' is missing"),
        (
            f"[{VIEW}]",
            "two",
            "mine.yaml: views is a list, not 'two'; write",
        ),
        (", batch_size: 8", "", "pretrain needs batch_size"),
        ("twins}", "twins, projector: wide}", "method.projector is 'wide', which is not a list"),
        ("name: resnet18", "name: [resnet18]", "encoder.name is ['resnet18'], which is not a word"),
        ("encoder: {name: resnet18}\n", "", "the section 'encoder' is missing"),
        ("epochs: 1", "epochs: 1, epochs: 2", "mine.yaml, line 7: the key 'epochs' appears twice"),
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


OLDER = "views: {both: [{random_resized_crop: {size: 32}}]}", "views: {first: [grayscale], second: [grayscale]}"


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (OLDER[0], "mine.yaml: views is a list and has no 'both'; write `views: [{times: 2, do: [...]}]`"),
        (
            OLDER[1],
            "mine.yaml: views is a list and has no 'first' or 'second'; write `views: [{do: [...]}, {do: [...]}]`",
        ),
    ],
)
def test_views_by_their_older_names_are_told_the_new_form(views, message, tmp_path):
    assert wrong(GOOD.replace(f"views: [{VIEW}]", views), tmp_path) == message


@pytest.mark.parametrize("views", [None, *OLDER])
@pytest.mark.parametrize(
    ("older", "new"),
    [
        ("views.both.3.keras_blur.seed", "views.0.do.3.keras_blur.seed"),
        ("views.both", "views.0.do"),
        ("views.first.0.grayscale.p", "views.0.do.0.grayscale.p"),
        ("views.second.0.grayscale.p", "views.1.do.0.grayscale.p"),
    ],
)
def test_an_override_by_an_older_name_is_told_its_new_one(views, older, new, tmp_path):
    text = (
        "\n".join(line for line in GOOD.split("\n") if not line.startswith("views")) + f"{views}\n" if views else GOOD
    )
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        recipes.read_recipe(str(tmp_path / "mine.yaml"), [f"{older}=1"])
    name = older.split(".")[1]
    assert str(error.value) == f"mine.yaml: views is a list and has no {name!r}; write {new}=... for {older}=..."


def test_views_are_one_flat_list():
    """Two large and six small: each view draws by its position, however the list is written."""
    crops = [{"random_resized_crop": {"size": size}} for size in (32, 16)]
    views = build_views([{"times": 2, "do": crops[:1]}, {"times": 6, "do": crops[1:]}])
    assert [view.size for view in views] == [32, 32, *[16] * 6] and len({id(view) for view in views}) == 8
    pixels = torch.randint(256, (4, 3, 40, 40), generator=random_at(0), dtype=torch.uint8)
    apart = build_views([{"do": crops[:1]}, {"do": crops[:1]}, *[{"do": crops[1:]}] * 6])
    for index, (view, other) in enumerate(zip(views, apart, strict=True)):
        assert torch.equal(
            view(pixels, random_at(0, "views", 3, index)), other(pixels, random_at(0, "views", 3, index))
        )


def test_one_view_is_a_recipe(tmp_path):
    """How many views there are is the method's to judge."""
    (tmp_path / "mine.yaml").write_text(GOOD.replace("times: 2, ", ""))
    assert recipes.read_recipe(str(tmp_path / "mine.yaml"))["views"][0]["times"] == 1


def test_arguments_that_a_command_gives_are_no_keys(tmp_path):
    for section, names in recipes.GIVEN_BY_COMMAND.items():
        for name in names:
            with pytest.raises(RecipeError, match=f"{section} has no '{name}'"):
                (tmp_path / "mine.yaml").write_text(GOOD)
                recipes.read_recipe(str(tmp_path / "mine.yaml"), [f"{section}.{name}=1"])


def test_watches_are_those_that_the_section_asks_for():
    """The section's signature is the function that builds them."""
    built = build(recipes.read_recipe("demo", ["method.projector=[16]"]))
    photos = images(np.zeros((8, 32, 32, 3), np.uint8), labels=np.arange(8) % 2)
    unlabelled = images(np.zeros((8, 32, 32, 3), np.uint8))
    assert [len(watches(built, photos, 0, **section)) for section in (
        {}, {"knn": False}, {"collapse": False}, {"collapse": False, "knn": False, "images": 0}
    )] == [2, 1, 1, 0]  # fmt: skip
    assert len(watches(built, unlabelled, 0)) == 1
    with pytest.raises(RecipeError, match=r"watch.images is 1; it must be at least 2 .or watch.collapse=false"):
        watches(built, photos, 0, images=1)


@pytest.mark.parametrize(
    "name", ["byol-cifar10-small", "moco-cifar10-small", "moco-v3-cifar10-small", "dino-cifar10-small"]
)
def test_weights_are_loaded_before_a_method_copies_the_encoder(name):
    """Else a target network would be a copy of random weights, and DINO's student would start with them."""

    def begin(encoder: torch.nn.Module) -> None:
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.fill_(0.25)

    method = build(recipes.read_recipe(name, ["encoder.channels=[4, 4, 4, 4]"]), begin).method
    copies = [method.encoder, method.student[0] if name.startswith("dino") else method.target[0]]
    assert all(bool(p.eq(0.25).all()) for network in copies for p in network.parameters())


def test_hostile_yaml_is_refused(tmp_path):
    assert "aliases (*name) are not allowed" in wrong("images: &a {size: 1}\nencoder: *a\n", tmp_path)
    assert "a recipe has at most" in wrong("# " + "x" * 1_000_001, tmp_path)
    assert "a recipe is a map" in wrong("- 1\n", tmp_path)
    assert "a key must be a string" in wrong("? [a]\n: 1\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=0.3", "there is no section 'lr'"),
        ("optimizer.lr", "'optimizer.lr' is not an override"),
        ("optimizer.lr.x=1", "lr is a value and has no keys"),
        ("views.7.x=1", "7 is not a position in a list of 1"),
        ("views.0.do.1.grayscale.p=1", "1 is not a position in a list of 1"),
    ],
)
def test_overrides_that_mean_nothing(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        recipes.read_recipe(str(tmp_path / "mine.yaml"), [text])


def test_unknown_recipes_offer_near_ones(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe 'demp'; did you mean demo"):
        recipes.read_recipe("demp")
    with pytest.raises(RecipeError, match="there is no recipe file none.yaml"):
        recipes.read_recipe("none.yaml")


def test_yaml_reads_what_people_mean():
    text = "a: 1e-3\nb: no\nc: 0755\nd: 1:30\ne: 2026-01-01\nf: [1, 2.5, -3e2, .inf]\ng: ~\nh:\ni: true\nk: -1\nl: 5.\n"
    read = strict_yaml.parse(text, "t")
    assert read == {"a": 0.001, "b": "no", "c": 755, "d": "1:30", "e": "2026-01-01", "f": [1, 2.5, -300.0, float("inf")],
                    "g": None, "h": None, "i": True, "k": -1, "l": 5.0}  # fmt: skip
    assert strict_yaml.parse(strict_yaml.write(read), "t") == read
    assert strict_yaml.parse("\ufeffa: 1\r\nb: 2\r\n".encode(), "t") == {"a": 1, "b": 2}
