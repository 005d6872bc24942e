"""pyproject.toml and constraints.txt say what the code imports; no file says where packages come from."""

import re
import sys
import tomllib

from package import FILES, PACKAGE, ROOT, TREES, imports, imports_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTION = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "faiss": "faiss-cpu",
}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def names(requirements: list[str]) -> set[str]:
    return {NAME.match(line).group() for line in requirements} - {"diptych"}


CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}


def distributions(imported: set[str]) -> set[str]:
    """The packages of others among what is imported."""
    tops = {name.split(".")[0] for name in imported} - {"diptych", *sys.stdlib_module_names}
    return {DISTRIBUTION.get(top, top) for top in tops}


def test_what_is_imported_is_declared():
    """At the top of a file: a dependency. Inside a function: a dependency or one of a user's extras."""
    for name in FILES:
        folder = FILES[name].relative_to(PACKAGE).parts[:-1]
        at_the_top = distributions(imports(iter(TREES[name].body), folder))
        assert at_the_top <= CORE, f"{name} imports {sorted(at_the_top - CORE)}, no core dependency"
        anywhere = distributions(imports_of(name))
        extras = set().union(*(lines for extra, lines in EXTRAS.items() if extra not in ("dev", "benchmarks")))
        assert anywhere <= CORE | extras, f"{name} imports {sorted(anywhere - CORE - extras)}, undeclared"


def test_what_is_declared_is_imported():
    needed = set().union(*(distributions(imports_of(name)) for name in FILES))
    assert needed >= CORE, f"nothing imports {sorted(CORE - needed)}"


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    form = re.compile(r"[a-z0-9][a-z0-9._-]*==[A-Za-z0-9.+!]+( ; [A-Za-z0-9_.<>=!'\" ()]+)?")
    wrong = [line for line in lines if not form.fullmatch(line) or "://" in line]
    assert not wrong, f"not name==version: {wrong}"
    everywhere = [line.split("==")[0] for line in lines if ";" not in line]
    assert len(everywhere) == len(set(everywhere)), "a name stands twice"
    missing = (CORE | set().union(*EXTRAS.values())) - {line.split("==")[0] for line in lines}
    assert not missing, f"no pin for {sorted(missing)}"


def test_no_file_names_a_registry():
    """Where packages come from is the business of the one who installs them."""
    address = re.compile(
        rb"pypi\.(org|python|nvidia)|pythonhosted\.|download\.pytorch\.|conda\.(io|anaconda|org)"
        rb"|--(extra-)?index-url"
    )
    folders = [ROOT / name for name in ("src", "tests", "docs", "benchmarks", "examples", ".ci")]
    paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    paths = [path for path in [*paths, *ROOT.iterdir()] if path.is_file()]
    assert {"constraints.txt", "run", "conftest.py"} <= {path.name for path in paths}
    naming = [str(path.relative_to(ROOT)) for path in paths if address.search(path.read_bytes())]
    assert not naming, f"a registry's address stands in {naming}"


def test_the_version_is_one():
    import diptych

    assert diptych.__version__ == PROJECT["version"]
