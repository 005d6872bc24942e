"""The shape of the house: imports point down, rooms stay small, words do not lie."""

import ast
import re

import pytest
from package import FILES, TEXTS, functions, rooms_of

# From the ground up. A file imports from its own room and from the rooms of lower floors.
FLOORS = [
    {"base"},
    {"data", "networks", "embeddings"},
    {"views", "methods", "runs"},
    {"training", "reporting"},
    {"downstream"},
    {"commands"},
    {"__init__", "__main__"},  # the door
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MOST_ARROWS = 60  # between rooms

# Some files see less than the floors below them.
KNOWS_ONLY = {
    "methods.losses": {"base.arithmetic", "base.processes"},
    "methods.method": {"base.errors", "base.random_at"},
    "methods.barlow_twins": {"base.errors", "base.ranges", "methods.losses", "methods.method", "networks.projectors"},
    "methods.simsiam": {"base.errors", "base.ranges", "methods.losses", "methods.method", "networks.projectors"},
    "reporting.charts": set(),
    "reporting.pictures": {"base.errors"},
}

FILE, FUNCTION, METHOD_FILE, LOOP = 300, 50, 130, 60  # lines
THE_LOOP = "training.pretrain.loop"
# How is Barlow Twins trained? Read these, and the views (docs/decisions/0014).
THE_PATH = """methods.barlow_twins methods.method methods.losses networks.projectors
training.pretrain training.feed training.learner training.diary training.ends""".split()
PATH_LINES = 910

# Words that name anything and so say nothing.
VAGUE = {"told", "found", "made", "asked", "each", "whole"}
TORCHS = {"found_inf"}  # the convention of its optimizers

NEVER = re.compile(r"(?<![a-z])(backbone|trunk|hparams|cfg|features)s?(?![a-z])", re.IGNORECASE)
# Names that timm, torch and published checkpoints chose.
THEIRS = re.compile(r'(num|in|out|forward)_features|features_only|\["features"\]|(pretrained|default)_cfg|\bbackbone\.')


def room_of(file: str) -> str:
    return file.split(".")[0]


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of the body without its docstring: naming arguments and explaining is never too long."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_every_room_has_a_floor():
    assert FILES
    assert {room_of(name) for name in FILES} == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_down(name):
    others = {other for other in rooms_of(name) if room_of(other) != room_of(name)}
    up = {other for other in others if FLOOR[room_of(other)] >= FLOOR[room_of(name)]}
    assert not up, f"{name} looks up the stairs, or across its floor, at {sorted(up)}"


def test_arrows_between_rooms_are_few():
    arrows = {(room_of(name), room_of(other)) for name in FILES for other in rooms_of(name)}
    arrows = {(room, other) for room, other in arrows if room != other}
    assert len(arrows) <= MOST_ARROWS, f"{len(arrows)} arrows: {sorted(arrows)}"


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_rooms_have_no_circles(room):
    """Within a room too, imports at the top of files have an order."""
    left = {name: {n for n in rooms_of(name) if room_of(n) == room} for name in FILES if room_of(name) == room}
    while ready := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in ready}
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("name", KNOWS_ONLY)
def test_some_files_know_little(name):
    assert rooms_of(name) <= KNOWS_ONLY[name]


def test_the_root_bears_no_name_of_a_function():
    """`import diptych.x.y` and `mock.patch` work as anyone expects: no file or folder hides behind a function of the door."""
    import diptych

    functions_of_the_door = {name for name, place in diptych._DOOR.items() if ":" in place}
    assert not functions_of_the_door & {room_of(name) for name in FILES}


def test_recipes_stop_at_the_commands():
    """Configuration is known to the commands alone; below them, arguments are plain."""
    readers = {name for name in FILES if "commands.recipe" in rooms_of(name)}
    assert {room_of(name) for name in readers} == {"commands"}
    configured = [
        f"{function}({argument.arg})"
        for function, node in functions()
        if room_of(function) != "commands"
        for argument in [*node.args.args, *node.args.kwonlyargs]
        if argument.arg in {"config", "configuration", "cfg", "hparams", "args", "opt"}
    ]
    assert not configured, f"an object that holds everything travels: {configured}"


def test_only_one_file_speaks_to_other_processes():
    words = re.compile(r"torch\.distributed|torch\.nn\.parallel|from torch import .*\bdistributed\b")
    assert {name for name, text in TEXTS.items() if words.search(text)} == {"base.processes"}


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    lines, limit = TEXTS[name].count("\n"), METHOD_FILE if name.startswith("methods.") else FILE
    assert lines <= limit, f"{name} has {lines} lines, its budget is {limit}"


def test_functions_are_short():
    sizes = {name: body_lines(node) for name, node in functions()}
    assert THE_LOOP in sizes, f"the loop is not {THE_LOOP}"
    long = {name: n for name, n in sizes.items() if n > (LOOP if name == THE_LOOP else FUNCTION)}
    assert not long, f"with more than {FUNCTION} lines (the loop: {LOOP}): {long}"


@pytest.mark.parametrize("name", FILES)
def test_words(name):
    lies = [
        f"line {number}: {found.group()}"
        for number, line in enumerate(TEXTS[name].splitlines(), 1)
        if (found := NEVER.search(THEIRS.sub("", line)))
    ]
    assert not lies, f"{name}: {lies}; docs/words.md has the word"


KERAS = re.compile("keras", re.IGNORECASE)
KERAS_REGISTERED = re.compile(
    r"from diptych\.\w+\.keras(_masked)? import KERAS_[A-Z]+(, KERAS_[A-Z]+)*|(\*\*|\| )KERAS_[A-Z]+"
)  # an import, a merge
KERAS_REGISTRIES = {
    "methods",
    "networks.encoders",
    "downstream.protocols",
    "reporting.numbers",
    "views",
    "views.together",
}


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[-1] not in ("keras", "keras_masked")])
def test_the_word_keras_stays_in_its_files(name):
    """Quirks of the two published programs are objects of the files keras.py, which registries name and nothing else."""
    text = TEXTS[name] if name not in KERAS_REGISTRIES else KERAS_REGISTERED.sub("", TEXTS[name])
    lines = [f"line {number}: {line}" for number, line in enumerate(text.splitlines(), 1) if KERAS.search(line)]
    assert not lines, f"{name}: {lines}; it belongs into a file keras.py"


def test_the_rule_for_keras_can_fail():
    for line in ("keras: bool = False", "KERAS_METHODS['a']", "from diptych.methods.keras import keras_simsiam"):
        assert KERAS.search(KERAS_REGISTERED.sub("", line)), line
    for line in ("from diptych.methods.keras import KERAS_METHODS", "    **KERAS_METHODS,", "A = B | KERAS_METHODS"):
        assert not KERAS.search(KERAS_REGISTERED.sub("", line)), line
    assert all(KERAS_REGISTERED.search(TEXTS[name]) for name in KERAS_REGISTRIES)


def test_the_list_of_words_can_fail():
    for line in ("self.backbone = net", "cfg", "these features", "make_trunk()", "f(hparams)"):
        assert NEVER.search(THEIRS.sub("", line)), line
    for line in ("net.num_features", "truncated", "config", "pretrained_cfg", '"module.backbone.conv1"'):
        assert not NEVER.search(THEIRS.sub("", line)), line


def test_the_path_of_barlow_twins_is_short():
    lines = {name: TEXTS[name].count("\n") for name in THE_PATH}
    assert sum(lines.values()) < PATH_LINES, f"{sum(lines.values())} lines: {lines}"


def names_in(tree: ast.AST) -> set[str]:
    """Variables, arguments, attributes, functions and classes of a file."""
    names = set()
    for node in ast.walk(tree):
        for kind, field in ((ast.Name, "id"), (ast.arg, "arg"), (ast.keyword, "arg"), (ast.Attribute, "attr")):
            names |= {getattr(node, field) or ""} if isinstance(node, kind) else set()
        names |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
    return names


@pytest.mark.parametrize("name", FILES)
def test_names_say_what_the_thing_is(name):
    names = names_in(ast.parse(TEXTS[name])) - TORCHS
    vague = sorted(word for word in names if VAGUE & set(word.strip("_").split("_")))
    assert not vague, f"{name}: {vague}; say what the thing is"


def test_a_vague_name_is_noticed():
    tree = ast.parse("def f(told):\n    x.found_rows = [y for each in z]\n    g(asked=1)")
    assert {word for word in names_in(tree) if VAGUE & set(word.split("_"))} == {"told", "found_rows", "each", "asked"}
