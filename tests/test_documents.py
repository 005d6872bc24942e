"""What the documents show is true: programs run, links lead somewhere, the tree is the disk, the tutorial's commands work."""

import os
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import diptych

from diptych.commands import recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "LOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
SHOWING = [
    name for name in NAMES if (ROOT / name).is_file() and "```python" in (ROOT / name).read_text(encoding="utf-8")
]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LANGUAGES = {
    "python",
    "bash",
    "text",
    "yaml",
    "json",
    "toml",
}  # only `python` is run; another name would be skipped unseen


def blocks(document: str) -> list[tuple[str, str, int]]:
    """(language, text, line number) of every fenced block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        found.append(
            (
                match["language"].strip(),
                textwrap.dedent(match["body"]),
                text.count("\n", 0, match.start("body")) + 1,
            )
        )
    return found


def slug(heading: str) -> str:
    """The anchor that a page makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Where a reader stands: a folder with `photos/cat/*.jpg` and `photos/dog/*.jpg`; the demo has a twentieth of its squares."""
    monkeypatch.setattr("diptych.data.photographs.TRAIN", 15)
    monkeypatch.setattr("diptych.data.photographs.TEST", 5)
    rng = np.random.default_rng(0)
    for kind, colour in (("cat", (200, 120, 60)), ("dog", (60, 120, 200))):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(48):
            pixels = np.clip(rng.normal(colour, 60, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(
                tmp_path / "photos" / kind / f"{i:02d}.jpg"
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_documents_exist():
    missing = [name for name in (*NAMES, "docs/journey.md", "docs/words.md") if not (ROOT / name).is_file()]
    assert not missing
    assert any(language == "python" for language, _, _ in blocks("README.md")), "README shows no program"


@pytest.mark.parametrize("document", NAMES)
def test_fences_are_known(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    found = blocks(document)
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), "a fence is not closed"
    unknown = {language for language, _, _ in found} - LANGUAGES
    assert not unknown, f"name the block's language, one of {sorted(LANGUAGES)}: {unknown}"


@pytest.mark.parametrize("document", SHOWING)
def test_programs_run(document, reader):
    """Every `python` block, from top to bottom, as one program."""
    program = {"__name__": "document"}
    for language, text, line in blocks(document):
        if language == "python":
            code = compile("\n" * (line - 1) + text, str(ROOT / document), "exec")
            exec(code, program)


@pytest.mark.parametrize("document", NAMES)
def test_links_lead_somewhere(document):
    path = ROOT / document
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            if anchor not in {slug(heading) for heading in headings}:
                broken.append(link)
    assert not broken


def test_the_tree_is_the_disk():
    """One block of docs/architecture.md opens with the line `src/diptych/` and has one line for each folder of the package."""
    trees = [text for _, text, _ in blocks("docs/architecture.md") if text.split(maxsplit=1)[:1] == ["src/diptych/"]]
    assert len(trees) == 1, "the tree of src/diptych/ is drawn once"
    drawn = [line.strip().partition("  ")[::2] for line in trees[0].splitlines()[1:]]
    assert all(description.strip() for _, description in drawn), "the tree says nothing of a folder"
    rooms = [f"{path.parent.name}/" for path in (ROOT / "src" / "diptych").glob("*/__init__.py")]
    assert sorted(room for room, _ in drawn) == sorted(rooms), "the tree is not the disk"


def test_the_readme_installs_as_ci_does():
    command = 'python -m pip install -e ".[dev]" -c constraints.txt'
    for name in ("README.md", ".ci/run", "CONTRIBUTING.md", "Makefile"):
        assert command.removeprefix("python") in (ROOT / name).read_text(encoding="utf-8"), (
            f"{name} does not say: {command}"
        )
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_decisions_keep_their_form():
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04d}" for number in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        assert len(lines) <= 30, f"{path.name} has {len(lines)} lines; a decision has at most 30"
        assert lines[0].startswith(f"# {int(path.name[:4])}. "), path.name
        parts = re.findall(r"^\n\*\*(.+?)\*\*", text, re.MULTILINE)
        assert parts == ["Situation.", "Choice.", "Given up.", "Evidence.", "Revisit when"], f"{path.name}: {parts}"


def test_the_change_log_tells_of_numbers():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert releases
    assert all("### Numbers that changed" in release for release in releases)


def test_the_api_is_that_of_the_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_api

    assert make_api.reference() == make_api.FILE.read_text("utf-8"), "run `python docs/make_api.py`"


def test_the_settings_of_other_libraries_have_these_places():
    """Overrides that the page names are those of the recipe with the same settings, but for three that say they differ."""
    text = (ROOT / "docs" / "migrating.md").read_text("utf-8")
    overrides = [
        word for word in re.findall(r"[a-z]+[.][\w.]*=[^\s`]+", text) if word.partition(".")[0] in recipe.SECTIONS
    ]
    assert len(overrides) > 15
    published = recipe.read_recipe("barlow-twins-cifar10")
    changed = [word for word in overrides if recipe.read_recipe("barlow-twins-cifar10", [word]) != published]
    assert changed == [
        "encoder.stem=small-padded",
        "pretrain.budget=20m",
        "views.0.do.0.random_resized_crop.scale=[0.2,1.0]",
    ]


SMALL = {"pretrain": ["pretrain.epochs=1", "pretrain.batch_size=16", "images.size=32", "encoder.channels=[8,8,8,8]",
                      "method.projector=[32,32]"]}  # fmt: skip


@pytest.mark.slow
def test_the_tutorial_commands_work(reader, capsys):
    """On the reader's 96 pictures, with a small network for one epoch in place of the budget."""
    shutil.copytree("photos", "labelled")
    shutil.copy("photos/cat/00.jpg", "photos/first.jpg")
    commands = [
        line for language, text, _ in blocks("docs/tutorial.md") if language == "bash" for line in text.splitlines()
    ]
    assert len(commands) == 12 and all(line.startswith("diptych ") for line in commands)
    for line in commands:
        words = [word for word in shlex.split(line)[1:] if not word.startswith("pretrain.budget")]
        code, _, err = diptych(capsys, *words, *SMALL.get(words[0], []))
        assert code == 0, f"{line}: {err}"
    assert Path("runs/both/report.html").is_file() and Path("labels.csv").is_file() and Path("found.html").is_file()
