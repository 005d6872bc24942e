"""What the package never calls: it would run what a file says, hide an error, or leave the machine."""

import ast

import pytest
from package import FILES, TREES, dotted, imports_of

FORBIDDEN = {
    "eval": "runs text as a program",
    "exec": "runs text as a program",
    "__import__": "hides an import",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "torch.save": "writes a pickle: use safetensors",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes many objects",
    "yaml.load_all": "is not strict: use strict_yaml",
    "yaml.safe_load": "lets the last of two equal keys win and reads 1e-3 as text: use strict_yaml",
}
PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((argument.value for argument in call.keywords if argument.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def strict_loaders(tree: ast.Module) -> set[str]:
    """The classes of a file that refine yaml.SafeLoader."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if "yaml.SafeLoader" in {dotted(base) for base in node.bases}}


def faults_of(node: ast.AST, loaders: set[str]) -> list[str]:
    """What is wrong with one node of a tree, in words."""
    faults = []
    if isinstance(node, ast.Call):
        name = dotted(node.func)
        if name in FORBIDDEN:
            faults.append(f"{name} {FORBIDDEN[name]}")
        if name == "torch.load" and not is_true(keyword(node, "weights_only")):
            faults.append("torch.load without weights_only=True runs what the file says")
        if name == "yaml.load" and dotted(keyword(node, "Loader")) not in loaders:
            faults.append("yaml.load without this file's own strict loader")
        if is_true(keyword(node, "shell")):
            faults.append("shell=True lets a shell read the arguments")
        if is_true(keyword(node, "allow_pickle")):
            faults.append("allow_pickle=True runs what the file says")
        if isinstance(node.func, ast.Attribute) and node.func.attr == "extractall":
            faults.append("extractall writes where the archive says")
    elif isinstance(node, ast.Attribute) and dotted(node) == "torch.hub":
        faults.append("torch.hub fetches and runs code")
    elif isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {dotted(one) for one in caught if one is not None}
        # To clean up after anything, a Ctrl-C too, and raise it again hides nothing.
        passes_on = names == {"BaseException"} and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if (None in caught or names & {"Exception", "BaseException"}) and not passes_on:
            faults.append("catches everything")
    return faults


@pytest.mark.parametrize("name", FILES)
def test_nothing_dangerous_is_called(name):
    loaders = strict_loaders(TREES[name])
    faults = [(node.lineno, fault) for node in ast.walk(TREES[name]) for fault in faults_of(node, loaders)]
    assert not faults, f"{FILES[name]}: {faults}"


@pytest.mark.parametrize("name", FILES)
def test_no_pickle_is_read_or_written(name):
    """CIFAR-10 is published as pickles; sources/cifar.py follows their instructions itself and runs none."""
    pickled = {imported for imported in imports_of(name) if imported.split(".")[0] in PICKLES}
    assert not pickled, f"{name} imports {pickled}"


@pytest.mark.parametrize(
    "program",
    [
        *(f"{name}(x)" for name in FORBIDDEN),
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)",
        "run(x, shell=True)",
        "torch.hub.load(x)",
        "np.load(x, allow_pickle=True)",
        "archive.extractall()",
        "try: x\nexcept: pass",
        "try: x\nexcept Exception: pass",
        "try: x\nexcept Exception:\n    clean()\n    raise",
        "try: x\nexcept (OSError, BaseException) as error: pass",
    ],
)
def test_the_walk_finds(program):
    assert any(faults_of(node, {"Strict"}) for node in ast.walk(ast.parse(program)))


@pytest.mark.parametrize(
    "program",
    [
        "torch.load(x, weights_only=True)",
        "yaml.load(x, Loader=Strict)",
        "model.eval()",
        "run([x], shell=False)",
        "try: x\nexcept (OSError, ValueError): pass",
        "try: x\nexcept BaseException:\n    clean()\n    raise",
    ],
)
def test_the_walk_lets_pass(program):
    assert not any(faults_of(node, {"Strict"}) for node in ast.walk(ast.parse(program)))
