"""The door: `import diptych` is quiet, late and small, and what it promises is there."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from package import FILES, PACKAGE, TREES, imports

FUNCTIONS = {
    "images",
    "encoder",
    "pretrain",
    "quick",
    "compare",
    "labels",
    "embed",
    "evaluate",
    "finetune",
    "diagnose",
    "export",
    "load",
    "overview",
    "report",
    "split",
}
OTHERS = {"Preprocessing", "Trained", "View", "views", "methods", "losses", "optimizers", "schedules"}


def python(program: str) -> subprocess.CompletedProcess:
    """Run a program in a fresh Python, warnings being errors."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def changes(before: list[str], imported: list[str]) -> tuple[list[str], set[str]]:
    """What importing `imported`, after `before`, changes in a fresh process; and the modules it then has."""
    ended = python(f"""
        import importlib, json, logging, os, random, sys, warnings

        def load(names):
            for name in names:
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError:  # a name inside a module
                    importlib.import_module(name.rpartition(".")[0])

        def state():
            found = {{f"variable {{name}}": value for name, value in os.environ.items()}}
            for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]:
                if isinstance(logger, logging.Logger):
                    found[f"logger {{name}}"] = (logger.level, len(logger.handlers), logger.propagate)
            found["directory"] = os.getcwd()
            found["warnings"] = str(warnings.filters)
            found["random"] = random.getstate()
            if "numpy" in sys.modules:
                found["numpy's random"] = str(sys.modules["numpy"].random.get_state())
            if torch := sys.modules.get("torch"):
                found["torch's random"] = torch.get_rng_state().tolist()
                found["threads"] = torch.get_num_threads()
                found["precision"] = torch.get_float32_matmul_precision()
                found["type"] = str(torch.get_default_dtype())
            return found

        load({before!r})
        first = state()
        load({imported!r})
        second = state()
        unused = (logging.NOTSET, 0, True)  # a logger that was only asked for
        changed = [n for n in first.keys() | second.keys() if first.get(n, unused) != second.get(n, unused)]
        sys.stderr.write(json.dumps([sorted(changed), sorted(sys.modules)]))
    """)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    changed, modules = json.loads(ended.stderr)
    return changed, set(modules)


def test_import_is_quiet_and_late():
    changed, modules = changes([], ["diptych"])
    assert not changed
    late = {"torch", "torchvision", "timm", "numpy", "PIL", "rich", "typer", "jinja2"} & modules
    assert not late, f"`import diptych` imports {late}"


def test_no_file_changes_the_process_that_imports_it():
    """As above for every file; what other packages do at their own import is done before."""
    everything = set().union(
        *(imports(iter(tree.body), FILES[name].relative_to(PACKAGE).parts[:-1]) for name, tree in TREES.items())
    )
    theirs = sorted(name for name in everything if name.split(".")[0] not in ("diptych", "__future__"))
    ours = [f"diptych.{name}" for name in FILES if not name.startswith("__")]
    changed, modules = changes(theirs, ours)
    assert not changed
    assert set(ours) <= modules


def test_the_watch_can_see(tmp_path, monkeypatch):
    noisy = """
        import logging, os, random, numpy, torch
        os.environ["NOISY"] = "1"
        logging.getLogger("noisy").setLevel(logging.ERROR)
        random.random(), numpy.random.rand(), torch.rand(1)
    """
    (tmp_path / "noisy.py").write_text(textwrap.dedent(noisy))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    changed, _ = changes(["numpy", "torch"], ["noisy"])
    assert changed == ["logger noisy", "numpy's random", "random", "torch's random", "variable NOISY"]


def test_public_names():
    import diptych

    assert set(diptych.__all__) == FUNCTIONS | OTHERS
    assert set(diptych.__all__) <= set(dir(diptych))
    with pytest.raises(AttributeError, match="nonsense"):
        diptych.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "earlier",
    ["", "diptych.training.pretrain", pytest.param("diptych.embeddings.scores", marks=pytest.mark.slow)],
)
def test_public_names_are_what_they_say(earlier):
    """`diptych.images` is the function, also where a program has imported the file of that name before."""
    ended = python(f"""
        import sys
        import diptych{", " + earlier if earlier else ""}

        functions = {sorted(FUNCTIONS)}
        for turn in range(2):  # touching one name must not change another
            for name in functions:
                assert callable(getattr(diptych, name)), name
        assert diptych.losses.barlow_twins and diptych.methods.BarlowTwins and diptych.methods.SimSiam
        assert diptych.views.barlow_twins and isinstance(diptych.View, type)
        from diptych import {", ".join(sorted(FUNCTIONS | OTHERS))}
        assert images is diptych.images and callable(images)
        from diptych.data.images import Images
    """)
    assert ended.returncode == 0, ended.stderr
