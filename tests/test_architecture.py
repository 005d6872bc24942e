"""The shape of the house: imports point down, rooms stay small, words do not lie."""

import ast
import re

import pytest
from package import FILES, TEXTS, functions, rooms_of

# From the ground to the doors. A file imports only from what stands before it here: from lower floors, and on
# its own floor from the files listed before it. A new file gets its place in this table.
FLOORS = {
    "0 ground": "errors strict_yaml memory",
    "1 mathematics": "random_at schedules distributed losses lamb optimizers",
    "2 images": "threads decode sources.source sources.labels sources.folder sources.archives sources.arrays "
    "sources.cifar sources.parquet sources.photographs sources squares images",
    "2 views": "views.operation views.resample views.geometry views.colour views.blur views.keras views.view views.presets views",
    "2 networks": "convolution keras_networks encoders heads",
    "3 methods": "methods.method methods.barlow_twins methods.simsiam methods",
    "4 worth": "checkpoints weights foreign embed probe evaluate diagnose",
    "5 runs": "run boards watch signals progress job lifecycle gradients pretrain supervised finetune protocols",
    "6 leaving": "pictures judge classify download charts report_data report_figures report_numbers report",
    "7 doors": "recipe build doctor demo opening launch ending cli __init__ __main__",
}
PLACE = {name: place for place, name in enumerate(" ".join(FLOORS.values()).split())}
DOORS = set(FLOORS["7 doors"].split())

# Some rooms see less than the floors below them.
KNOWS_ONLY = {
    "losses": {"distributed"},
    "heads": {"errors", "keras_networks"},
    "methods.method": {"errors"},
    "methods.barlow_twins": {"errors", "heads", "losses", "methods.method"},
    "methods.simsiam": {"errors", "heads", "losses", "methods.method"},
    "evaluate": {"errors", "random_at", "distributed", "probe"},
    "probe": {"errors", "random_at", "distributed"},
    "diagnose": {"errors", "random_at", "distributed"},
    "pictures": {"errors"},
    "charts": {"errors"},
}

FILE, FUNCTION, METHOD_FILE, LOOP = 300, 50, 130, 60  # lines
THE_LOOP = "pretrain.loop"

NEVER = re.compile(r"(?<![a-z])(backbone|trunk|hparams|cfg|features)s?(?![a-z])", re.IGNORECASE)
# Names that timm, torch and published checkpoints chose.
THEIRS = re.compile(r'(num|in|out|forward)_features|features_only|\["features"\]|(pretrained|default)_cfg|\bbackbone\.')


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of the body without its docstring: naming arguments and explaining is never too long."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_every_file_has_a_place():
    assert FILES
    assert set(FILES) <= set(PLACE), f"give {sorted(set(FILES) - set(PLACE))} a place in FLOORS"
    assert set(PLACE) <= set(FILES), f"FLOORS lists {sorted(set(PLACE) - set(FILES))}, which do not exist"


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_down(name):
    up = {room for room in rooms_of(name) if PLACE[room] > PLACE[name]}
    assert not up, f"{name} looks up the stairs at {sorted(up)}"


@pytest.mark.parametrize("name", KNOWS_ONLY)
def test_some_rooms_know_little(name):
    assert rooms_of(name) <= KNOWS_ONLY[name]


def test_recipes_stop_at_the_doors():
    """Configuration is known to the doors alone; below them, arguments are plain."""
    readers = {name for name in FILES if "recipe" in rooms_of(name)}
    assert readers <= DOORS, f"{sorted(readers - DOORS)} know recipes"
    configured = [
        f"{function}({argument.arg})"
        for function, node in functions()
        if function.split(".")[0] not in DOORS
        for argument in [*node.args.args, *node.args.kwonlyargs]
        if argument.arg in {"config", "configuration", "cfg", "hparams", "args", "opt"}
    ]
    assert not configured, f"an object that holds everything travels: {configured}"


def test_only_one_file_speaks_to_other_processes():
    words = re.compile(r"torch\.distributed|torch\.nn\.parallel|from torch import .*\bdistributed\b")
    assert {name for name, text in TEXTS.items() if words.search(text)} == {"distributed"}


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


def test_the_list_of_words_can_fail():
    for line in ("self.backbone = net", "cfg", "these features", "make_trunk()", "f(hparams)"):
        assert NEVER.search(THEIRS.sub("", line)), line
    for line in ("net.num_features", "truncated", "config", "pretrained_cfg", '"module.backbone.conv1"'):
        assert not NEVER.search(THEIRS.sub("", line)), line
