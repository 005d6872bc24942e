"""Every example runs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

NEEDED = {
    "own_loop": ("skimage", "accelerate"),
    "detection": ("torchvision",),
    "segmentation": ("segmentation_models_pytorch",),
}
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == "detection" else [])
    for path in sorted(EXAMPLES.glob("*.py"))
])  # fmt: skip
def test_example_runs(path, tmp_path, capsys):
    for package in NEEDED.get(path.stem, ("skimage",)):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(tmp_path / "out.png"))
    assert re.search(r"\(\d+, \d+", capsys.readouterr().out)


def test_every_example_is_listed():
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"]({path.name})" in text for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells from top to bottom, on a tenth of the demo's squares."""
    monkeypatch.setattr("diptych.data.photographs.TRAIN", 30)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_hour.ipynb").read_text("utf-8"))
    program: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "a notebook is kept without its outputs"
            exec("".join(cell["source"]), program)
    assert program["vectors"].shape == (540, 64) and (tmp_path / "runs" / "notebook-quick" / "report.html").is_file()
