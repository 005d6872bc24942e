"""Row 27 of docs/faults.md: a recipe is read as it is meant, or refused in one line before an image is touched."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoiled import diptych, refusal

from diptych.base.errors import RecipeError
from diptych.commands import recipe as recipes
from diptych.commands import shelf

GOOD = """images: {size: 32}
encoder: {name: resnet18}
method: {name: barlow_twins}
views: [{times: 2, do: [{random_resized_crop: {size: 32}}]}]
optimizer: {name: lars, lr: 1e-3}
pretrain: {epochs: 1, batch_size: 8}
"""
BOMB = "a: &a [x, x, x, x]\n"
BOMB += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("lr: 1e-3", "learning: 1e-3", "optimizer has no 'learning'; it takes lr"),
        ("batch_size", "batch_sise", "pretrain has no 'batch_sise'; did you mean batch_size"),
        ("epochs: 1", "epochs: many", "pretrain.epochs is 'many', which is not a whole number"),
        ("size: 32}\nen", "size: [32]}\nen", "images.size is [32], which is not"),
        ("epochs: 1", "epochs: 1, epochs: 2", "line 6: the key 'epochs' appears twice"),
        ("images: {size: 32}", "images:\n\tsize: 32", "line 2: found character '\\t' that cannot"),
        ("images:", "images: !!python/object/apply:os.mkdir [CANARY]\nx:", "line 1: tags (tag:yaml.org,2002:python/object/apply"),
        (GOOD, BOMB, "line 2: aliases (*name) are not allowed"),
        (GOOD, "#" * 10_000_000, "has 10,000,000 bytes; a recipe has at most 1,000,000"),
        (GOOD, "images: {size", "line 1: "),
        (GOOD, "\x00\x01", "not YAML"),
        (GOOD, "", "a recipe is a map of sections (images, encoder, method"),
    ],
    ids=["unknown key", "near key", "wrong type", "wrong type 2", "twice", "tab", "object", "bomb", "10 MB", "cut", "binary",
         "empty"],
)  # fmt: skip
def test_27_a_bad_recipe_is_exit_code_2_and_one_line(old, new, told, tmp_path):
    canary, mine = tmp_path / "canary", tmp_path / "mine.yaml"
    assert old in GOOD
    mine.write_text(GOOD.replace(old, new.replace("CANARY", str(canary)), 1))
    code, out, err = diptych("pretrain", tmp_path / "nowhere", "--recipe", mine, "--out", tmp_path / "run")
    line = refusal(err)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert told in line and "mine.yaml" in line
    assert not canary.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n")], ids=["plain", "BOM", "CRLF"])
def test_27_what_editors_do_to_a_recipe_changes_nothing(text, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(text.encode())
    asked = recipes.read_recipe(str(tmp_path / "mine.yaml"))
    assert asked["optimizer"]["lr"] == 0.001 and isinstance(asked["optimizer"]["lr"], float)  # PyYAML alone reads text
    assert asked["pretrain"]["batch_size"] == 8


def places(value, path=()):
    """The path of every value in a recipe."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


DEMO = recipes.strict_yaml.read(shelf.find_recipe("demo"))
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
                        max_leaves=4)  # fmt: skip


@given(path=st.sampled_from(list(places(DEMO))), value=ANYTHING)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_27_anything_anywhere_is_taken_or_refused_in_one_line(path, value):
    changed = copy.deepcopy(DEMO)
    if not path:
        changed = value if isinstance(value, dict) else {}
    else:
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    try:
        recipes.resolve(changed, "mine.yaml")
    except RecipeError as error:
        assert "\n" not in str(error).replace("\\n", "") and str(error).startswith("mine.yaml")
