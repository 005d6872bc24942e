"""The command line as a person meets it: quick to answer, one line for a mistake, the promised exit code."""

import inspect
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diptych.commands import cli, cli_encoders
from diptych.commands.shelf import recipe_names

SMALL = ["encoder.channels=[8,8,8,8]", "method.projector=[16,16]", "pretrain.batch_size=8", "pretrain.epochs=1",
         "pretrain.precision=float32", "images.size=32"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """`photos/cat`, `photos/dog`: 12 JPEGs each."""
    root = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for kind, colour in (("cat", (200, 120, 60)), ("dog", (60, 120, 200))):
        (root / kind).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(colour, 50, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{i}.jpg")
    return root


def diptych(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of one command, run in this process."""
    capsys.readouterr()
    code, before = 0, sys.argv
    sys.argv = ["diptych", *map(str, words)]
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = before
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    sys.argv = ["diptych", "pretrain", str(photos), "--recipe", "demo", "--out", str(folder), *SMALL]
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    return folder


def test_help_answers_at_once_without_torch():
    program = "import sys, diptych.commands.cli as c\nsys.argv = ['diptych', '--help']\ntry: c.main()\nexcept SystemExit: pass\n"
    program += "heavy = [m for m in ('torch', 'timm', 'numpy') if m in sys.modules]\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "views", "pretrain", "evaluate", "embed", "report", "recipes", "doctor"):
        assert verb in done.stdout


def test_a_run_is_judged_embedded_and_reported(run, photos, capsys, tmp_path):
    code, out, _ = diptych(capsys, "evaluate", run, "--train", photos, "--test", photos)
    assert code == 0
    for row in ("chance", "raw pixels", "untrained", "trained"):
        assert f"\n{row} " in out
    assert "verdict: " in out and "24 test and 24 training images of 2 classes" in out
    assert out.endswith(f"report: {run / 'report.html'}\n")
    assert "raw pixels" in (run / "report.html").read_text("utf-8"), "the page has no accuracies of this evaluation"
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert {(line.get("subject"), line.get("protocol")) for line in lines if "subject" in line} == {
        (subject, protocol)
        for subject in ("chance", "raw pixels", "untrained", "trained")
        for protocol in ("knn", "linear")
    }

    table = tmp_path / "table.csv"
    table.write_text(
        "file,parity\n" + "".join(f"{kind}/{i}.jpg,{i % 2}\n" for kind in ("cat", "dog") for i in range(12))
    )
    code, out, _ = diptych(capsys, "embed", run, photos, "--out", tmp_path / "vectors", "--labels", f"{table}:parity")
    assert code == 0 and "24 x 8 float32, 0 images failed" in out
    vectors = np.load(tmp_path / "vectors" / "vectors.npy")
    index = [json.loads(line) for line in (tmp_path / "vectors" / "index.jsonl").read_text().splitlines()]
    assert vectors.shape == (24, 8) and np.isfinite(vectors).all()
    assert index[1]["key"] == "cat/1.jpg" and index[1]["label"] == "1" and len(index) == 24

    code, out, _ = diptych(capsys, "report", run)
    page = (run / "report.html").read_text()
    assert code == 0 and out.strip() == str(run / "report.html")
    assert "untrained" in page and "http:" not in page and "https:" not in page


def test_a_bad_image_keeps_its_row_and_has_no_vector(run, photos, capsys, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i in range(3):
        (mixed / f"{i}.jpg").write_bytes((photos / "cat" / f"{i}.jpg").read_bytes())
    (mixed / "1.jpg").write_bytes(b"")
    code, out, _ = diptych(capsys, "embed", run, mixed, "--out", tmp_path / "vectors")
    assert code == 0 and "2 x 8 float32, 1 image failed" in out
    index = [json.loads(line) for line in (tmp_path / "vectors" / "index.jsonl").read_text().splitlines()]
    assert [row["key"] for row in index] == ["0.jpg", "1.jpg", "2.jpg"]
    assert "empty" in index[1]["error"] and index[0]["status"] == index[2]["status"] == "ok"


def test_views_writes_a_picture(photos, capsys, tmp_path):
    code, out, _ = diptych(capsys, "views", photos, "--recipe", "demo", "--out", tmp_path / "sheet.png", "--count", "3")
    assert code == 0 and out.strip() == str(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 200


def test_recipes_and_doctor(capsys, photos):
    code, out, _ = diptych(capsys, "recipes")
    lines = out.splitlines()
    assert code == 0 and len(lines) < 23 and max(map(len, lines)) <= 80
    listed = re.findall(r"[a-z0-9-]+", out.partition("\n\n")[0].replace("_", ""))
    assert set(recipe_names()) <= set(listed)
    rows = dict(line.split(maxsplit=1) for line in lines[: lines.index("")] if line[:1].isalpha())
    methods = "barlow_twins simsiam simclr byol moco moco_v3 swav vicreg dino coding_rate".split()
    assert rows.keys() == set(methods) and rows["simsiam"].startswith("simsiam-small, ")
    described = {}
    for method in methods:
        code, described[method], _ = diptych(capsys, "recipes", method)
        assert code == 0 and max(map(len, described[method].splitlines())) <= 80
    assert "time: 18 minutes" in described["simsiam"] and "8 GPUs" in described["moco"]
    assert diptych(capsys, "recipes", "barlow-twins")[1] == described["barlow_twins"]
    assert diptych(capsys, "recipes", "--all")[1].count("hardware: ") == len(recipe_names())
    assert "moco" in diptych(capsys, "recipes", "mocko")[2]
    assert "leave out demo" in diptych(capsys, "recipes", "demo", "--all")[2]
    code, out, _ = diptych(capsys, "recipes", "demo")
    assert code == 0 and out.startswith("# ") and "encoder:" in out
    code, out, _ = diptych(capsys, "doctor", photos)
    assert code == 0
    for word in (
        "torch",
        "threads",
        "GB",
        "gloo",
        "24 of 24 images can be read",
        "2 classes: cat (12), dog (12)",
    ):
        assert word in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["pretrain", "PHOTOS", "--recipe", "demo", "optimizer.lrr=1"],
            2,
            "optimizer has no 'lrr'; did you mean lr?",
        ),
        (["pretrain", "PHOTOS", "--recipe", "demp"], 2, "did you mean demo?"),
        (
            ["pretrain", "PHOTOS", "--recipe", "demo", "pretrain.device=cuda:99", "pretrain.batch_size=8"],
            2,
            "device cuda",
        ),
        (["pretrain", "PHOTOS", "--recipe", "demo", "pretrain.batch_size=99"], 2, "use at most 24"),
        (["pretrain", "NOWHERE", "--recipe", "demo"], 3, "NOWHERE"),
        (["evaluate", "PHOTOS", "--train", "PHOTOS", "--test", "PHOTOS"], 4, "holds no encoder"),
        (["embed", "RUN", "PHOTOS", "--out", "RUN"], 6, "RUN"),
        (["report", "PHOTOS"], 3, "not a run"),
        (["search", "RUN", "PHOTOS"], 3, "holds an encoder, no vectors"),
        (["embed", "VECTORS", "PHOTOS", "--out", "NOWHERE"], 4, "it holds vectors"),
        (["quick", "PHOTOS", "--out", "RUN"], 6, "add --overwrite"),
        (["finetune", "RUN", "--train", "PHOTOS", "--share", "30"], 2, "(--share) is '30'"),
        (
            ["pretrain", "PHOTOS", "--recipe", "demo", "--out", "RUN", "pretrain.batch_size=8"],
            6,
            "already holds a run",
        ),
        (
            ["pretrain", "PHOTOS", "--recipe", "demo", "--out", "RUN", "--resume", "pretrain.batch_size=8"],
            4,
            "was made with another recipe",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(words, code, message, run, photos, capsys, tmp_path):
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "vectors.npy").touch()
    names = {"PHOTOS": str(photos), "RUN": str(run), "NOWHERE": str(tmp_path / "nowhere"),
             "VECTORS": str(tmp_path / "vectors")}  # fmt: skip
    if words[0] == "pretrain" and "--out" not in words:
        words = [*words, "--out", str(tmp_path / "out")]
    got, out, err = diptych(capsys, *[names.get(word, word) for word in words])
    told = [line for line in err.splitlines() if line.startswith("diptych: ")]
    assert got == code, err
    assert len(told) == 1 and names.get(message, message) in told[0]
    assert "Traceback" not in err and out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [["pretrian"], ["pretrain"], ["pretrain", "x", "--recipes", "y"], ["views", "x", "--count", "many"]],
)
def test_usage_errors_are_exit_code_2_without_torch(words):
    done = subprocess.run([sys.executable, "-m", "diptych", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("diptych: ") and done.stderr.endswith("--help`)\n") and done.stderr.count("\n") == 1


def test_defaults_shown_are_those_of_the_signature(capsys, monkeypatch):
    """The command line has none of its own: it hands on what was given, and shows what the function says."""
    from diptych.commands.defaults import defaults_of
    from diptych.downstream.finetune import finetune

    signature = inspect.signature(finetune).parameters.values()
    written = {one.name: one.default for one in signature if one.default is not one.empty}
    assert defaults_of("downstream/finetune.py", "finetune") == written
    own = {name: one.default for name, one in inspect.signature(cli_encoders.finetune).parameters.items()}
    own["labels"] = own.pop("share")  # the command's own --labels says where labels come from
    shown = own.keys() & written.keys() - {"device"}
    assert shown == {"labels", "epochs", "steps", "batch_size", "encoder_lr", "head_lr", "scratch_lr", "published", "seeds",
                     "seed"}  # fmt: skip
    assert all(own[name] is None for name in shown)
    _, out, _ = diptych(capsys, "finetune", "--help")
    words = " ".join(out.replace("│", " ").split())
    texts = ["fitted" if written[name] is None else written[name] for name in sorted(shown)]
    assert [text for text in texts if f"[default: ({text})]" not in words] == []
    assert words.count("[default: (fitted)]") == sum(written[name] is None for name in shown) == 6
    handed = {}
    monkeypatch.setattr("diptych.downstream.finetune.finetune", lambda *_, **options: handed.update(options))
    monkeypatch.setattr(cli_encoders, "open_encoder", lambda *_: None)
    monkeypatch.setattr(cli_encoders, "image_options", lambda *_: {})
    monkeypatch.setattr(cli_encoders, "open_labelled", lambda *_: (None, None))
    monkeypatch.setattr("diptych.commands.paging.page_again", lambda *_: [])
    diptych(capsys, "finetune", "run", "--train", "a", "--test", "b", "--epochs", "3")
    assert handed == {"epochs": 3, "device": "auto"}


def test_the_version(capsys):
    import diptych as package

    code, out, err = diptych(capsys, "--version")
    assert (code, out, err) == (0, f"diptych {package.__version__}\n", "")


def test_a_bar_of_80_columns_keeps_the_count_and_the_time_left(monkeypatch):
    """A text that is too long is cut, not the bar."""
    import io

    from rich.console import Console

    from diptych.base import terminal

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(terminal, "_stderr", lambda: console)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with terminal.ProgressBar("pretrain", 46_800) as bar:
        for step in (0, 100, 200):
            bar(step, "1,234 img/s  loss -318.5  " + "agreement 0.7876  " * 5)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    last = [line for line in lines if line.strip()][-1]
    assert "200/46800" in last and "1,234 img/s  loss -318.5" in last and re.match(r"pretrain .{16} ", last)
    assert max(map(len, lines)) <= 80
