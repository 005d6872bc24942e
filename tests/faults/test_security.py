"""The package runs nothing that it is given, speaks to nobody, and stands on packages that are known by name."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection
from importlib import metadata

import pytest
from package import FILES, ROOT, TREES, dotted, imports_of
from packaging.requirements import Requirement

# --- the syntax tree (more of it in tests/test_safety.py)

# Modules that run, unpack or speak to something, and the files that may import them.
ONLY = {
    "pickle _pickle dill cloudpickle joblib shelve marshal copyreg": set(),
    "ctypes": {"base.memory", "base.signals"},  # glibc's mallopt; prctl
    "cffi code codeop runpy pty commands webbrowser multiprocessing zipimport": set(),
    "requests httpx httpx2 aiohttp huggingface_hub ssl asyncio ftplib smtplib telnetlib xmlrpc socketserver": set(),
    "urllib http": {"runs.download"},
    "subprocess": {"runs.environment", "commands.launch"},  # git, and our own processes
    "socket": {"runs.run", "commands.doctor", "commands.launch"},  # this machine's name, and a free port on it
    "importlib": {
        "__init__",
        "runs.environment",
        "commands.doctor",
        "data.formats",
        "data.photographs",
        "commands.opening",
    },  # our own modules; versions; where packages lie; pillow-heif; the module that a person names with --encoder
    "pickletools": {"data.cifar"},  # reads the instructions of a pickle; they are not run
    "tempfile": {"data.archives", "commands.launch"},
}
ALLOWED = {module: files for modules, files in ONLY.items() for module in modules.split()}
NAMES = {"eval", "exec", "compile", "__import__", "globals", "breakpoint"}
MENTIONS = re.compile(
    r"os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|startfile|fork)"
    r"|torch\.(save|hub|jit|package|classes|ops\.load\w*|export|_export|utils\.(cpp_extension|model_zoo)|distributed\.checkpoint)(\..*)?"
    r"|torch\.serialization\..*"
    r"|shutil\.unpack_archive|yaml\.(unsafe_\w+|full_\w+|safe_load\w*|load_all|Loader|UnsafeLoader|FullLoader)"
    r"|np\.(lib\..*|memmap|ctypeslib.*)|pd\.read_pickle"
)
HARMLESS = "torch.serialization.pickle.UnpicklingError"  # to be caught
# Who may use what MENTIONS forbids: it writes exported programs, and loads the bytes that it has just written, from memory.
MAY = {"downstream.programs": {"torch.export.Dim", "torch.export.export", "torch.export.save", "torch.export.load"}}


def argument(call: ast.Call, name: str) -> object:
    return next(
        (word.value.value for word in call.keywords if word.arg == name and isinstance(word.value, ast.Constant)), None
    )


def dangers(tree: ast.AST, may: Collection[str] = ()) -> list[str]:
    """What in a syntax tree could run what it is given, in words with line numbers; may: names that it may mention."""
    found, harmless = [], {id(part) for node in ast.walk(tree) if dotted(node) == HARMLESS for part in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in harmless:
            continue
        name, told = dotted(node) if isinstance(node, ast.Name | ast.Attribute) else "", ""
        if (
            name in may or name == "torch.export"
        ):  # the latter is a part of longer names, which are looked at themselves
            continue
        if isinstance(node, ast.Name) and name in NAMES or MENTIONS.fullmatch(name):
            told = name
        elif isinstance(node, ast.Attribute) and node.attr in ("extractall", "extract"):
            told = f"{node.attr}: members are read in place"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if called == "torch.load" and argument(node, "weights_only") is not True:
                told = "torch.load without weights_only=True"
            elif called == "np.load" and argument(node, "allow_pickle") is not False:
                told = "np.load without allow_pickle=False"
            elif called == "yaml.load" and not any(word.arg == "Loader" for word in node.keywords):
                told = "yaml.load without a loader"
            elif argument(node, "shell") is True or argument(node, "allow_pickle") is True:
                told = "shell=True or allow_pickle=True"
            elif called.startswith("subprocess.") and node.args and not isinstance(node.args[0], ast.List | ast.Name):
                told = f"{called} of a text"
        if told:
            found.append(f"line {node.lineno}: {told}")
    return found


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_what_it_is_given(name):
    assert not dangers(TREES[name], MAY.get(name, ()))
    tops = {imported.split(".")[0] for imported in imports_of(name)}
    wrong = {top for top in tops if top in ALLOWED and name not in ALLOWED[top]}
    assert not wrong, f"{name} imports {sorted(wrong)}; ONLY says who may"


def test_the_list_of_who_may_is_no_longer_than_needed():
    tops = {name: {imported.split(".")[0] for imported in imports_of(name)} for name in FILES}
    assert {module: {name for name in FILES if module in tops[name]} for module in ALLOWED} == ALLOWED


HIDDEN = """
eval(x); f = exec; compile(x, "", "exec"); os.system(x); os.execvp(x, y); torch.hub.load(x); torch.save(x, y); torch.jit.load(x);
torch.export.load(x); torch.package.PackageImporter(x); torch.ops.load_library(x); torch.load(x);
torch.load(x, weights_only=flag); torch.load(x, weights_only=False); torch.serialization.add_safe_globals([x]);
torch.serialization.pickle.load(x); np.load(x); np.load(x, allow_pickle=True); yaml.load(x);
yaml.load(x, yaml.Loader); yaml.unsafe_load(x); run(x, shell=True);
subprocess.run("ls " + x); archive.extractall(); archive.extract(x); shutil.unpack_archive(x)
"""


@pytest.mark.parametrize("program", [program.strip() for program in HIDDEN.split(";")])
def test_the_walk_finds(program):
    assert dangers(ast.parse(program))


def test_the_walk_lets_pass():
    program = "model.eval(); torch.load(x, weights_only=True); np.load(x, allow_pickle=False); subprocess.run(['git', x]); " \
              "re.compile(x); torch.serialization.pickle.UnpicklingError; safetensors.torch.save(x)"  # fmt: skip
    assert not dangers(ast.parse(program))


# --- sockets

COMMANDS = """
doctor photos
recipes demo
views photos --recipe demo --out views.png --count 2 images.size=16
pretrain photos --recipe demo --out run images.size=16 encoder.channels=[4,4,4,4] method.projector=[8,8] pretrain.batch_size=8 \
pretrain.epochs=1 pretrain.precision=float32
evaluate run --train photos --test photos
embed run photos --out vectors
search vectors 0 --out found.html
audit photos --run run --out audit
pick vectors --budget 3 --out picked.csv
classify run photos --train photos --out labels.csv
finetune run --train photos --test photos --labels 1.0 --epochs 1
report run
compare run --out compare.html
labels run --train photos --test photos --no-scratch --out curves.html
plan photos --recipe demo encoder.channels=[4,4,4,4] method.projector=[8,8] pretrain.batch_size=8 watch.images=4
export run --to onnx --to torch-export --out exported
import-weights nothing.pth --out imported
download barlow-twins-resnet50
download
"""
PROGRAM = """
import json, os, shlex, sys
import numpy as np
from PIL import Image

events = []
def listen(event, words):
    if event.startswith("socket.") and event != "socket.gethostname":
        events.append(event)
sys.addaudithook(listen)

rng = np.random.default_rng(0)
for kind in ("cat", "dog"):
    os.makedirs(f"photos/{kind}")
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"photos/{kind}/{i}.png")

from diptych.commands import cli
told = []
for line in sys.stdin.read().strip().splitlines():
    sys.argv, code = ["diptych", *shlex.split(line)], 0
    events.clear()
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except RuntimeError as error:
        code = str(error)
    told.append([line.split()[0], code, sorted(set(events))])
print("told " + json.dumps(told))
"""


@pytest.mark.slow
def test_no_command_but_download_opens_a_socket(tmp_path):
    """Python tells of every socket that it makes; the network itself is closed in this process (offline/sitecustomize.py)."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=COMMANDS, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1].removeprefix("told "))
    *others, asking, listing = told
    assert [command for command, *_ in told] == [line.split()[0] for line in COMMANDS.strip().splitlines()]
    assert [(command, code) for command, code, _ in others if code not in (0, None)] == [("import-weights", 4)], (
        done.stderr
    )
    assert [events for *_, events in others] == [[]] * len(others)
    assert asking[1] == "the tests use no network, this one asked for dl.fbaipublicfiles.com"
    assert listing[1:] == [0, []]


# --- dependencies

# By name, because a package of a similar name is another one. What an installation with every extra brings along;
USERS = """
absl-py annotated-doc annotated-types anyio click cloudpickle cuda-bindings cuda-pathfinder cuda-toolkit filelock flatbuffers
fsspec grpcio h11 hf-xet httpcore2 httpx2 huggingface-hub idna imageio jinja2 joblib lazy-loader markdown markdown-it-py
markupsafe mdurl ml-dtypes mpmath narwhals networkx numpy nvidia-cublas nvidia-cuda-cccl nvidia-cuda-cupti nvidia-cuda-nvrtc
nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13
nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx onnx onnx-ir onnxruntime onnxscript packaging pillow
protobuf pyarrow pydantic pydantic-core pygments pyyaml rich safetensors scikit-image scikit-learn scipy setuptools
shellingham sympy tensorboard tensorboard-data-server threadpoolctl tifffile timm torch torchvision tqdm triton truststore
typer typing-extensions typing-inspection werkzeug
"""
# and what the tests,
DEVELOPERS = """
coverage duckdb execnet hypothesis iniconfig pandas pluggy pyrefly pytest pytest-timeout pytest-xdist python-dateutil regex
ruff segmentation-models-pytorch sortedcontainers tokenizers transformers tzdata
"""
# and benchmarks/ against others bring.
BENCHMARKS = """
aiohappyeyeballs aiohttp aiosignal antlr4-python3-runtime astunparse attrs certifi charset-normalizer cleanlab contourpy
cycler faiss-cpu fonttools frozenlist gast google-pasta h5py hydra-core imagededup keras kiwisolver kornia kornia-rs libclang
lightly lightning-utilities matplotlib multidict namex omegaconf opt-einsum optree propcache pyparsing pytorch-lightning
pywavelets requests six tensorflow-cpu termcolor torchmetrics urllib3 wheel wrapt yarl
"""
# The report's tests in a browser bring these.
BROWSER = "axe-playwright-python greenlet playwright"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def closure(*extras: str) -> set[str]:
    """The installed packages that diptych with these extras asks for, and what they ask for, here (markers)."""
    waiting, seen = [Requirement(f"diptych[{','.join(extras)}]")], set()
    while waiting:
        asked = waiting.pop()
        name = re.sub(r"[-_.]+", "-", asked.name).lower()
        for extra in {"", *asked.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            for line in asks(name, extra):
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return {name for name, _ in seen} - {"diptych"}


def asks(name: str, extra: str) -> list[str]:
    """The requirements of an installed package, [] where it is not installed; ours as pyproject.toml has them."""
    if name == "diptych":
        return PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def test_what_is_installed_is_known_by_name():
    users, everybody = closure("all"), closure("all", "dev")
    assert {"torch", "jinja2", "scikit-learn", "typing-extensions"} <= users, (
        "the walk goes no further than our own lines"
    )
    assert users <= set(USERS.split()), f"new with diptych[all]: {sorted(users - set(USERS.split()))}"
    new = everybody - users - set(DEVELOPERS.split())
    assert not new, f"new with diptych[dev]: {sorted(new)}"


def test_the_pins_are_those_names_and_no_others():
    pinned = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()]
    known = {*USERS.split(), *DEVELOPERS.split(), *BENCHMARKS.split(), *BROWSER.split()}
    assert set(pinned) == known, f"not the same: {sorted(set(pinned) ^ known)}"
