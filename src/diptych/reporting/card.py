"""The card of an exported encoder, README.md: what its input must be, what it was trained on, how good it is, how to open it."""

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

from diptych.base.errors import CheckpointError, RecipeError
from diptych.networks.inference import Preprocessing
from diptych.reporting.numbers import accuracy_section
from diptych.reporting.page import TEMPLATES
from diptych.reporting.record import Record, clip, read_run, real
from diptych.runs import checkpoints

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}", re.IGNORECASE)
MARKS = re.compile(r"([\\`*\[\]<>|&$])")  # what Markdown would not show as it is


@dataclass(frozen=True)
class Card:
    """What is known of an exported encoder beside its run.

    width: E. fit: as in `diptych.images`. licence: an identifier of the Hugging Face Hub; "other" is not stated. built:
    arguments of `diptych.encoder`, None for another network. hashes: file -> its sha256. differences: file -> the largest
    difference of its embeddings, measured on `compared_on`. pyramid: whether it has maps of 1/2 to 1/32 of its input.
    """

    preprocessing: Preprocessing
    width: int
    formats: list[str]
    fit: str
    licence: str
    built: dict | None
    class_name: str
    hashes: dict[str, str]
    differences: dict[str, float]
    compared_on: str
    pyramid: bool


def require_licence(licence: str) -> None:
    """Raises RecipeError for a text that is no identifier of a licence."""
    if not LICENCE.fullmatch(licence):
        raise RecipeError(
            f"licence {clip(licence, 40)!r} is not an identifier of a licence; give one of the Hugging Face Hub's, such as "
            "apache-2.0, mit, cc-by-nc-4.0 or other"
        )


def card_of(card: Card, run_folder: Path | None, origin: dict) -> str:
    """The text of README.md. run_folder: of the run that trained the encoder, if any; origin: of published weights, else {}."""
    run = read_run(run_folder) if run_folder is not None else None
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["plain"] = plain
    expected = card.preprocessing
    accuracy = accuracy_section(run) if run else None
    diagnosis = run.diagnosis if run else None
    return jinja.get_template("card.md.jinja").render(
        card=card,
        size=expected.size,
        opened=max(expected.size, expected.opened),
        mean=as_tuple(expected.mean),
        std=as_tuple(expected.std),
        stem=(card.built or {}).get("stem"),
        architecture=str((card.built or {}).get("name", card.class_name)).split(".")[0],
        options={key: value for key, value in (card.built or {}).items() if key not in ("name", "stem", "size")},
        accuracy=accuracy,
        cell=cell_text,
        gap=gap_text,
        verdict=diagnosis.get("verdict") if diagnosis else None,
        readings=readings_of(diagnosis),
        training=training_of(run),
        origin=origin,
    )


def plain(value: object) -> str:
    """Any value as text in one line that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", " ".join(clip(value).split()))


def as_tuple(numbers: tuple[float, ...]) -> str:
    """(0.485, 0.456, 0.406), for a program."""
    return f"({', '.join(repr(float(value)) for value in numbers)})"


def gap_text(gap: float | None) -> str:
    """A difference of embeddings; "" for a file that has none."""
    return "" if gap is None else f"{gap:.0e} of their largest number" if gap else "none"


def cell_text(cell: dict | None) -> str:
    """An accuracy in % with its interval; "" where there is none."""
    if cell is None:
        return ""
    ends = f" [{100 * cell['ends'][0]:.1f} to {100 * cell['ends'][1]:.1f}]" if cell["ends"] else ""
    return f"{100 * cell['value']:.1f}{ends}"


def readings_of(diagnosis: dict | None) -> str:
    """The diagnosis' numbers in one line."""
    readings = diagnosis.get("readings") if diagnosis else None
    numbers = {key: real(value) for key, value in readings.items()} if isinstance(readings, dict) else {}
    numbers = dict(list(numbers.items())[:4])
    return ", ".join(
        f"{clip(key, 40).replace('_', ' ')} {value:.3g}" for key, value in numbers.items() if value is not None
    )


def training_of(run: Record | None) -> dict[str, str]:
    """What a run says of its training: name -> text. Its source is a place on one machine, and stays there."""
    if run is None:
        return {}
    method, images = section(run, "method"), section(run, "images")
    state = last_state(run.folder)
    count = state.get("images") or images.get("count")
    end, versions = run.end or {}, run.environment.get("versions")
    facts = {
        "method": "closed form (diptych quick)" if run.closed_form else method.get("name"),
        "recipe": run.recipe.get("recipe"),
        "images": f"{count:,}" if isinstance(count, int) else None,
        "fingerprint of the images": state.get("data"),
        "steps": end.get("step") or None,
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items())
        if isinstance(versions, dict)
        else None,
        "commit of Diptych": run.environment.get("commit"),
    }
    return {key: plain(value) for key, value in facts.items() if isinstance(value, str | int | float)}


def section(run: Record, name: str) -> dict:
    value = run.recipe.get(name)
    return value if isinstance(value, dict) else {}


def last_state(run_folder: Path) -> dict:
    """The numbers in the last checkpoint of a run; {} where there is none, or it is damaged."""
    try:
        return checkpoints.read_state(checkpoints.steps(run_folder / "checkpoints")[-1])
    except (IndexError, CheckpointError):
        return {}
