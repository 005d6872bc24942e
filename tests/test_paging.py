"""The page of a run is written while it trains, reloads itself until the end, and never ends a run."""

import numpy as np
import pytest
from PIL import Image
from test_cli import diptych as command

from diptych.base.errors import OutputError
from diptych.commands import paging
from diptych.reporting.report import report

SMALL = ["pretrain.epochs=3", "pretrain.batch_size=8", "images.size=16", "encoder.channels=[4,4,4,4]", "method.projector=[8]",
         "pretrain.device=cpu", "watch.images=8"]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / f"{number:02d}.png"
        )
    return str(tmp_path / "photos")


def test_pages_while_it_trains_and_at_the_end(photos, tmp_path, capsys, monkeypatch):
    pages = []

    def written(out, *arguments, **options):
        path = report(out, *arguments, **options)
        pages.append(path.read_text("utf-8"))
        return path

    monkeypatch.setattr(paging, "SECONDS", 0)
    monkeypatch.setattr(paging, "report", written)
    code, out, _ = command(capsys, "pretrain", photos, "--out", str(tmp_path / "run"), *SMALL)
    assert code == 0 and f"report: {tmp_path / 'run' / 'report.html'}" in out
    *live, last = pages
    assert len(live) == 3 and all(
        'data-reload="20"' in page and "reloads itself every 20 seconds" in page for page in live
    )
    assert "data-reload=" not in last.replace("dataset.reload", "") and 'id="explorer"' in last
    assert not (tmp_path / "run" / "figures").exists() or len(list((tmp_path / "run" / "figures").iterdir())) > 3


def test_a_page_of_somebody_else_ends_no_run(photos, tmp_path, capsys, monkeypatch):
    def begin(step, encoder):
        (tmp_path / "run" / "report.html").write_text("mine")
        return {}

    monkeypatch.setattr(paging, "SECONDS", 0)
    monkeypatch.setattr("diptych.commands.pretraining.build_watches", lambda *_: [begin])
    code, out, _ = command(capsys, "pretrain", photos, "--out", str(tmp_path / "run"), *SMALL)
    assert code == 0 and "no report: " in out and "report.html" in out
    assert (tmp_path / "run" / "report.html").read_text() == "mine"


def test_a_page_that_cannot_be_written_ends_no_run(photos, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OutputError("no room")

    monkeypatch.setattr(paging, "overview", full)
    code, out, _ = command(capsys, "pretrain", photos, "--out", str(tmp_path / "run"), *SMALL)
    assert code == 0 and "no report: no room; `diptych report" in out and (tmp_path / "run" / "encoder").is_dir()
