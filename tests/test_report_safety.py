"""The report meets hostile names, damaged files, five thousand pictures, and eyes that need contrast."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import DIAGNOSIS, ENVIRONMENT, evaluation_lines, fake_run, log_lines, overview_arrays, write_lines
from page import Page

from diptych.reporting.page import TEMPLATES
from diptych.reporting.report import report

HOSTILE = '"><img src=x onerror=alert(1)>'
NAMES = (HOSTILE, "</script><script>alert(1)</script>", "a\u2028b & <b>", "{{ 7 * 7 }}", "'-alert(1)-'")
PLAIN = ("one", "two/th/ree", "four", "five", "six")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page(report(finished))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_nothing_comes_from_outside(page):
    assert "http:" not in page.source and "https:" not in page.source
    for name in ("src", "href"):
        assert all(re.match(r"#|data:(image/(png|jpeg);base64,|,$)", value) for value in page.attributes(name))
    styles = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in styles and "@import" not in styles
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not handlers
    assert {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "base", "form"} == set()


def test_only_our_script_may_run(page):
    (data, hover), (places, _), (code, script) = page.scripts
    assert data == {"type": "application/json", "id": "hover"} and code == {}
    assert places == {"type": "application/json", "id": "explorer-data"}
    assert script == "".join((TEMPLATES / name).read_text("utf-8") for name in ("report.js", "explore.js"))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert f"script-src 'sha256-{wanted}'" in policy
    lines = json.loads(hover)["lr"]
    assert len(lines) == 2, "groups with equal rates share a line"
    assert len(lines[0]) == 60 and lines[0][-1][2] == 1200


def hostile_run(folder: Path, names: tuple[str, ...]) -> Path:
    """A run in which every text that users or files choose is one of `names`."""
    run = fake_run(folder, classes=names, keys=names)
    nasty = names[0]
    (run / "recipe.yaml").write_text(f"method: x\n# {names[1]}\nencoder: {json.dumps(nasty)}\n", "utf-8")
    environment = ENVIRONMENT | {"device": nasty, nasty: list(names), "command": ["x", "pretrain", *names]}
    (run / "environment.json").write_text(json.dumps(environment))
    lines = evaluation_lines()
    lines[-1]["diagnosis"] = DIAGNOSIS | {
        "reasons": list(names),
        "advice": list(names),
        "readings": {nasty: 1.0},
    }
    for protocol, subject in ((nasty, "trained"), ("knn", nasty)):
        lines.append(lines[1] | {"protocol": protocol, "subject": subject, "details": {nasty: names[1]}})
    write_lines(run / "evaluations.jsonl", lines)
    log = log_lines()
    for line in log:
        line |= {"parts": {name: 1.0 for name in names}} if line["event"] == "step" else {names[1]: 2.0}
    write_lines(run / "log.jsonl", [line for line in log if line["event"] != "end"])
    (run / "crash").mkdir()
    (run / "crash" / "step_0000001_rank_0.json").write_text(json.dumps({"step": nasty, "loss": names[1]}))
    return run


def test_hostile_names_are_only_text(tmp_path):
    """Hostile names make the same tags and attributes as plain ones, and are shown as they are."""
    plain = Page(report(hostile_run(tmp_path / "plain", PLAIN)))
    folder = tmp_path / HOSTILE
    hostile = Page(report(hostile_run(folder, NAMES)))
    assert hostile.shape() == plain.shape()
    assert [attributes for attributes, _ in hostile.scripts] == [attributes for attributes, _ in plain.scripts]
    assert len(hostile.scripts) == 3
    for _, data in hostile.scripts[:2]:
        json.loads(data)
        assert "\u2028" not in data and "<" not in data
    for name in NAMES:
        assert any(name in text for text in hostile.texts), name
    titles = [text.strip() for text in hostile.texts]
    assert titles.count(HOSTILE) > 5, "as run, class, key, reading, protocol, subject"
    assert "<img src=x" not in hostile.source and "<script>alert" not in hostile.source


def test_a_name_that_is_no_text_is_shown_with_a_question_mark(run):
    lines = evaluation_lines()
    lines[-1]["diagnosis"] = DIAGNOSIS | {"advice": ["photo\udcff.png"]}
    write_lines(run / "evaluations.jsonl", lines)
    assert "photo?.png" in Page(report(run)).text


@pytest.mark.slow
def test_five_thousand_pictures_stay_small(run):
    """Noise does not compress: the worst that can be offered, everywhere at once."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (5_000, 48, 48, 3), dtype=np.uint8)
    big = rng.integers(0, 256, (40, 128, 128, 3), dtype=np.uint8)
    folder, m = run / "pictures", len(noise)
    np.savez(folder / "views.npz", originals=big, view_0=big, view_1=big)
    np.savez(folder / "correlation.npz", matrix=rng.uniform(-1, 1, (600, 600)).astype(np.float32))
    classes = np.array([f"class {i} " + "x" * 1000 for i in range(1000)])
    labels, xy = np.arange(m) % 1000, rng.normal(size=(m, 2)).astype(np.float32)
    places = {"names": np.array(["k" * 5000] * 2 + ["n" * 300] * (m - 2)), "shows": np.array("test images")}
    places |= overview_arrays(labels, 1000, rng) | {"large": big.repeat(6, axis=0), "large_rows": np.arange(240)}
    np.savez(folder / "map.npz", xy=xy, labels=labels, thumbnails=noise, classes=classes, **places)
    tested = {"labels": labels, "predicted": places["predicted"], "confidence": places["confidence"]}
    np.savez(folder / "predictions.npz", classes=classes, protocol=np.array("linear"), **tested)
    lines = [{"event": "step", "step": i, "parts": {f"part {k}" * 50: i**0.5 for k in range(40)}} for i in range(2000)]
    write_lines(run / "log.jsonl", lines)
    (run / "recipe.yaml").write_text("\n".join(f"key_{i}: {'y' * 5000}" for i in range(5000)))
    (run / "environment.json").write_text(json.dumps({f"{i}": "z" * 5000 for i in range(5000)}))
    page = Page(report(run))
    assert (run / "report.html").stat().st_size < 6_000_000
    data = json.loads(page.scripts[1][1])
    assert len(data["names"]) == 5000 and data["tile"] >= 16
    assert sum("view 1 of" in alt for alt in page.attributes("alt")) >= 4
    assert sum(a.get("id", "").startswith("large-") for tag, a in page.tags if tag == "image") >= 15
    np.savez(folder / "map.npz", **dict(np.load(folder / "map.npz")) | {"xy": np.zeros((5001, 2), np.float32)})
    assert "pictures/map.npz cannot be drawn" in Page(report(run)).text


@pytest.mark.parametrize("name", ["views", "correlation", "map", "predictions"])
@pytest.mark.parametrize("damage", ["junk", "truncated", "objects", "shapes"])
def test_damaged_pictures_are_left_out_and_noted(run, name, damage):
    path = run / "pictures" / f"{name}.npz"
    arrays = dict(np.load(path))
    if damage == "junk":
        path.write_bytes(b"junk")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "objects":
        np.savez(path, **{key: np.array([{"a": 1}], dtype=object) for key in arrays})
    elif name == "correlation":
        np.savez(path, matrix=arrays["matrix"][:5])
    else:
        np.savez(path, **arrays | {key: arrays[key][:1] for key in list(arrays)[-1:]})
    page = Page(report(run))
    assert f"pictures/{name}.npz cannot be drawn" in page.text


def luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's ratio."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_texts_can_be_read_and_marks_be_seen():
    themes = re.findall(r":root \{(.*?)\}", (TEMPLATES / "report.css").read_text("utf-8"), re.DOTALL)[:2]
    for colours in (dict(re.findall(r"--([\w]+): (#\w{6})", theme)) for theme in themes):
        grounds = colours["paper"], colours["raised"]
        for name in ("ink", "soft", "accent", "good", "warn", "bad"):
            assert min(contrast(colours[name], ground) for ground in grounds) >= 4.5, name
        for k in range(10):
            assert contrast(colours[f"c{k}"], colours["paper"]) >= 3, k
