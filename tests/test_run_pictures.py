"""The arrays kept for the report: one writer, which accepts what the reader asks for and nothing else."""

import numpy as np
import pytest
from fake_run import fake_run

from diptych.reporting.record import read_run
from diptych.runs.pictures import PICTURES, optional_keys, save_picture

A = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize("name", PICTURES)
def test_the_writer_takes_the_listed_arrays(name, tmp_path):
    picture = PICTURES[name]
    for keys in (picture.required, (*picture.required, *picture.optional)):
        path = save_picture(tmp_path, name, **dict.fromkeys(keys, A))
        with np.load(path, allow_pickle=False) as arrays:
            assert path == tmp_path / "pictures" / f"{name}.npz" and set(arrays) == set(keys)


@pytest.mark.parametrize("name", PICTURES)
def test_the_writer_refuses_other_arrays(name, tmp_path):
    first, *others = PICTURES[name].required
    with pytest.raises(ValueError, match=f"pictures/{name}.npz needs .* missing: {first}, unknown: none"):
        save_picture(tmp_path, name, **dict.fromkeys(others, A))
    with pytest.raises(ValueError, match="missing: none, unknown: colour"):
        save_picture(tmp_path, name, colour=A, **dict.fromkeys((first, *others), A))
    with pytest.raises(ValueError, match="no picture is named 'portrait'; there are: views, "):
        save_picture(tmp_path, "portrait", **{first: A})
    assert not list(tmp_path.iterdir())


def test_views_are_numbered_without_a_gap(tmp_path):
    arrays = {"originals": A, "view_0": A, "view_1": A, "view_3": A}
    assert optional_keys("views", arrays) == ["view_1"]
    with pytest.raises(ValueError, match="unknown: view_3"):
        save_picture(tmp_path, "views", **arrays)
    assert set(np.load(save_picture(tmp_path, "views", **arrays, view_2=A))) == {*arrays, "view_2"}


def test_the_report_reads_what_it_draws(tmp_path):
    run = fake_run(tmp_path / "run")
    save_picture(run, "projections", z1=A, z2=A)
    pictures = read_run(run).pictures
    assert (
        set(pictures)
        == {name for name, picture in PICTURES.items() if picture.drawn}
        == set(PICTURES) - {"projections", "answers"}
    )
    assert set(pictures["map"]) == {*PICTURES["map"].required, *PICTURES["map"].optional}
