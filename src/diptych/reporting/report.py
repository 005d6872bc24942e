"""The report: one HTML file made from the run folder alone. It needs no network, nor scripts."""

import base64
import hashlib
import io
import shlex
from pathlib import Path

import jinja2
from PIL import Image

from diptych.base.files import require_free_file, write_file
from diptych.reporting import figures, pictures
from diptych.reporting.charts import HEIGHT, MAP_HEIGHT, MAP_WIDTH, WIDTH, number
from diptych.reporting.numbers import accuracy_table, cost, environment_rows, facts, judged, summary, texts
from diptych.reporting.record import Record, clip, read_run, real
from diptych.runs.run import Run, flatten

TEMPLATES = Path(__file__).resolve().parent / "templates"
VERDICTS = {
    "OK": ("Healthy", "Different images have different embeddings: there is no sign of collapse."),
    "WARNING": ("Needs a look", "Some readings are not what a healthy run shows."),
    "COLLAPSED": (
        "The encoder has collapsed",
        "Different images look nearly alike to the encoder: its embeddings carry little.",
    ),
}


def report(run_folder: Run | str | Path, out: str | Path | None = None) -> Path:
    """Writes `report.html`, and its figures as PNG, into the run folder (or only the page, as `out`); returns its path.

    What the folder lacks is told in the page, with the command that makes it. Raises `DataError` when the
    folder is not a run's, and `OutputError` when the page cannot be written.
    """
    run = read_run(run_folder.folder if isinstance(run_folder, Run) else run_folder)
    path = require_free_file(Path(out) if out is not None else run.folder / "report.html", replace=True)
    # A file name may hold bytes that are no text (lone surrogates); they become question marks.
    write_file(path, render(run).encode("utf-8", "replace"))
    if out is None:
        save_figures(run)
    return path


def save_figures(run: Record) -> None:
    """The page's curves and its grid of views as figures/NAME.png in the run folder, for slides and papers."""
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    for chart in [*figures.training_charts(run), *figures.watch_charts(run)]:
        if chart["name"] in figures.TITLES:  # other names are the run's own, and no names for files
            save_png(folder / f"{chart['name']}.png", pictures.line_picture(chart, (WIDTH, HEIGHT)))
    if "views" in run.pictures:
        originals, *views = (images[:24] for images in run.pictures["views"].values())
        save_png(folder / "views.png", pictures.contact_sheet(originals, views))


def save_png(path: Path, picture: Image.Image) -> None:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    write_file(path, file.getvalue())


def render(run: Record) -> str:
    """The page. All that comes from the run is escaped; our own style and script are taken as they are."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    jinja = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    training, watched, speed = (
        figures.training_charts(run),
        figures.watch_charts(run),
        figures.speed_chart(run),
    )
    accuracy = accuracy_table(run)
    return jinja.get_template("report.html.jinja").render(
        name=run.name,
        facts=facts(run),
        status=status(run),
        verdict=verdict(run),
        summary=summary(accuracy),
        accuracy=accuracy,
        todo=what_next(run, accuracy),
        commands=commands(run),
        training=training,
        watched=watched,
        speed=speed,
        hover={c["name"]: [line["hover"] for line in c["lines"]] for c in [*training, *watched, speed] if c},
        views=figures.view_rows(run),
        correlation=figures.correlation(run),
        map=figures.map_figure(run),
        map_size=(MAP_WIDTH, MAP_HEIGHT),
        neighbours=figures.neighbours(run),
        recipe=run.recipe_text,
        environment=environment_rows(run),
        cost=cost(run),
        notes=[clip(note) for note in run.notes[:20]],
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def commands(run: Record) -> dict[str, str]:
    """The commands that make what a run may lack."""
    folder, asked = shlex.quote(clip(run.folder)), run.environment.get("command")
    train = f"diptych pretrain SOURCE --out {folder}"
    if isinstance(asked, list) and asked[1:2] in (["pretrain"], ["demo"]):
        words = [str(word) for word in asked[1:] if word not in ("--resume", "--overwrite")]
        train = clip(shlex.join(["diptych", *words]))
    return {
        "resume": f"{train} --resume",
        "evaluate": f"diptych evaluate {folder} --train SOURCE --test SOURCE",
        "embed": f"diptych embed {folder} SOURCE --out vectors",
        "load": f"trained = diptych.load({clip(run.folder)!r})",
        "report": f"diptych report {folder}",
    }


def status(run: Record) -> dict:
    """How far training came: `word` is finished, unfinished, diverged or empty; `text` says it."""
    last = run.steps[-1] if run.steps else {}
    step, progress = real(last.get("step")), real(last.get("progress"))
    done = f"{number(step)} steps" if step is not None else "no step"
    share = f", {100 * progress:.0f} % of the way" if progress is not None else ""
    if run.crash:
        where, loss = clip(run.crash.get("step", "?"), 20), clip(run.crash.get("loss", "?"), 20)
        text = f"Training broke off at step {where}: the loss was {loss}. The last good step is saved."
        return {"word": "diverged", "text": text}
    if run.end:
        return {"word": "finished", "text": f"Finished after {done}."}
    if not run.steps:
        return {"word": "empty", "text": "Nothing is logged yet: training has not made its first steps."}
    return {"word": "unfinished", "text": f"Training is unfinished: {done} logged{share}."}


def verdict(run: Record) -> dict:
    """OK, WARNING or COLLAPSED in words, with reasons, advice and readings; `word` is None before one."""
    found = run.diagnosis or {}
    word = found.get("verdict")
    if not isinstance(word, str) or word not in VERDICTS:
        word, found = None, {}
    title, text = VERDICTS[word] if word else ("No verdict yet", "The encoder has not been evaluated.")
    readings = flatten(found["readings"]) if isinstance(found.get("readings"), dict) else {}
    shown = [
        (clip(name, 60).replace("_", " "), number(value))
        for name, raw in readings.items()
        if (value := real(raw)) is not None
    ]
    return {
        "word": word,
        "title": title,
        "text": text,
        "reasons": texts(found.get("reasons")),
        "advice": texts(found.get("advice")),
        "readings": shown[:16],
    }


def what_next(run: Record, accuracy: dict | None) -> list[tuple[str, str]]:
    """At most three steps: (sentence, command or "")."""
    word, state, make = verdict(run)["word"], status(run)["word"], commands(run)
    trained = judged(accuracy)[1] or {"better": None}
    steps = []
    if state == "diverged":
        steps.append(("Lower optimizer.lr, lengthen the warm-up or set pretrain.clip_norm; start anew.", ""))
    elif state != "finished":
        steps.append(("Let training go on to its end. What is done is kept.", make["resume"]))
    if word is None or trained["better"] is None:
        text = "Measure what the encoder is worth, beside chance, raw pixels and an untrained encoder."
        steps.append((text, make["evaluate"]))
    if word in ("WARNING", "COLLAPSED"):
        steps.append(("Follow the advice above before training longer: time alone mends no collapse.", ""))
    elif word == "OK" and trained["better"] is False:
        steps.append(("Train longer, or on more images: the encoder is healthy, but has learned little.", ""))
    elif word == "OK" and state == "finished":
        steps.append(("Turn images into embeddings.", make["embed"]))
        steps.append(("Use the encoder in Python.", make["load"]))
    if len(steps) < 3:
        steps.append(("Make this page again when there is more to show.", make["report"]))
    return steps[:3]
