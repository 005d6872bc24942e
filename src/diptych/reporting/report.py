"""The report: one HTML file made from the run folder alone. It needs neither a network nor scripts."""

import base64
import hashlib
import shlex
from pathlib import Path

from diptych.base.files import HTML_MARK, PNG_MARK, make_folder, require_free_file, write_file
from diptych.embeddings.lamps import NOT_MEASURED
from diptych.reporting import figures, pictures
from diptych.reporting.charts import HEIGHT, MAP_HEIGHT, MAP_WIDTH, WIDTH, number
from diptych.reporting.explore import explored
from diptych.reporting.label_page import label_part
from diptych.reporting.left_out import left_out_rows
from diptych.reporting.numbers import (
    accuracy_section,
    clipped_texts,
    cost,
    environment_rows,
    facts,
    main_result,
    summary,
)
from diptych.reporting.page import page_template, text_of
from diptych.reporting.record import Record, clip, read_run, real
from diptych.reporting.sheet import write_picture
from diptych.runs.pictures import FIGURES
from diptych.runs.proposed import PLACEHOLDERS, Proposed, word
from diptych.runs.run import Run, flatten
from diptych.runs.subjects import JOINED

VERDICTS = {
    "OK": ("Worth its cost", "It is better than every reference that costs seconds, and nothing points to a collapse."),
    "UNPROVEN": (
        "Not yet shown to be useful",
        "Nothing points to a collapse; without labels, nothing more can be said.",
    ),
    "WARNING": ("Needs a look", "Some readings differ from those of a healthy run."),
    "WORSE": ("Not worth its training", "A reference that costs seconds is better on these images."),
    "COLLAPSED": (
        "The encoder has collapsed",
        "Different images have nearly the same embeddings, which therefore carry little information.",
    ),
}


def report(run_folder: Run | str | Path, out: str | Path | None = None, *, live: bool = False) -> Path:
    """Write `report.html`, and its figures as PNG, into the run folder (or only the page, as `out`); return its path.

    The page names what the folder lacks, with the command that makes it. live: the page reloads itself until it is written
    without this flag, and no PNG is written. Raises `DataError` when the
    folder is not a run's, and `OutputError` when the page cannot be written, or would replace a file that is not a
    report.
    """
    run = read_run(run_folder.folder if isinstance(run_folder, Run) else run_folder)
    path = require_free_file(Path(out) if out is not None else run.folder / "report.html", HTML_MARK)
    if out is None and not live:
        for name in FIGURES:  # before anything is written
            require_free_file(make_folder(run.folder / "figures") / f"{name}.png", PNG_MARK)
    # A file name may contain bytes that are not text (lone surrogates); they become question marks.
    write_file(path, render(run, live=live).encode("utf-8", "replace"))
    if out is None and not live:
        save_figures(run)
    return path


def save_figures(run: Record) -> None:
    """The page's curves and its grid of views as figures/NAME.png in the run folder, for slides and papers."""
    folder = run.folder / "figures"
    for chart in [*figures.training_charts(run), *figures.watch_charts(run)]:
        if chart["name"] in FIGURES:  # other names come from the run and are not safe as file names
            write_picture(folder / f"{chart['name']}.png", pictures.line_picture(chart, (WIDTH, HEIGHT)))
    if "views" in run.pictures:
        originals, *views = (images[:24] for images in run.pictures["views"].values())
        write_picture(folder / "views.png", pictures.contact_sheet(originals, views))


def render(run: Record, *, live: bool = False) -> str:
    """The page's HTML. Everything that comes from the run is escaped; only report.css and report.js are not."""
    style, script = text_of("report.css"), text_of("report.js", "explore.js")
    labels = label_part(run)
    training, watched, speed = (
        figures.training_charts(run),
        figures.watch_charts(run),
        figures.speed_chart(run),
    )
    accuracy, explorable = accuracy_section(run), explored(run)
    return page_template("report.html.jinja").render(
        name=run.name,
        reload=RELOADED if live else None,
        facts=facts(run),
        status=status(run),
        closed_form=run.closed_form,
        verdict=verdict(run),
        summary=summary(accuracy, run.main),
        accuracy=accuracy,
        todo=what_next(run, accuracy),
        commands=commands(run),
        training=training,
        watched=watched,
        speed=speed,
        hover={c["name"]: [line["hover"] for line in c["lines"]] for c in [*training, *watched, speed] if c},
        views=figures.view_rows(run),
        correlation=figures.correlation(run),
        **explorable,
        map_size=(MAP_WIDTH, MAP_HEIGHT),
        parts=parts_of(run, accuracy, explorable, labels),
        labels=labels,
        no_accuracy=NO_LABELS if run.unlabelled else NOT_EVALUATED,
        recipe=run.recipe_text,
        environment=environment_rows(run),
        cost=cost(run),
        left_out=left_out_rows(run),
        notes=[clip(note) for note in run.notes[:20]],
        style=style + (text_of("compare.css") if labels else ""),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


LONGEST_ADVICE = 2000  # characters: it names paths, which a command needs whole
RELOADED = 20  # seconds, of a page of a run that still trains
NOT_EVALUATED = "The encoder has not been evaluated. This needs labelled images:"
NO_LABELS = (
    "These images have no labels, so no accuracy is known. To measure one, put some of them into a folder for each "
    "class, or give their labels with --labels FILE.csv:COLUMN:"
)


def parts_of(run: Record, accuracy: dict | None, explorable: dict, labels: str) -> list[tuple[str, str]]:
    """The sections of the page, (id, name), in its order."""
    shown = {"neighbours": "Neighbours", "lists": "Contents", "mistakes": "Errors"}
    ids = {"lists": "contents", "mistakes": "errors"}
    map_parts = [("map", "Map")] + [(ids.get(key, key), name) for key, name in shown.items() if explorable[key]]
    map_parts += [("labels", "Labels")] if labels else []
    training = [("training", "Training"), ("watched", "Over time"), ("views", "Views"), ("correlation", "Correlation")]
    measured = [("accuracy", "Accuracy")]
    parts = [*(measured if accuracy else []), ("next", "What next"), *map_parts, *([] if accuracy else measured)]
    return [*parts, *([] if run.closed_form else training), ("run", "Run")]


def commands(run: Record) -> dict[str, str]:
    """The commands that make the parts a run may lack."""
    folder, command = word(run.folder, "RUN"), run.environment.get("command")
    source = run.recipe.get("source")
    proposed = Proposed(clip(source, LONGEST_ADVICE) if isinstance(source, str) and source else None, run.folder)
    source = word(proposed.source, "SOURCE")
    train = f"diptych pretrain SOURCE --out {folder}"
    if isinstance(command, list) and command[1:2] in (["pretrain"], ["demo"]):
        words = [str(word) for word in command[1:] if word not in ("--resume", "--overwrite")]
        train = clip(shlex.join(["diptych", *words]))
    return {
        "resume": f"{train} --resume",
        "evaluate": f"diptych evaluate {folder} --train SOURCE --test SOURCE",
        "embed": f"diptych embed {folder} {source} --out vectors",
        "search": "diptych search vectors IMAGE --out like-it.html",
        "audit": f"diptych audit {source} --run {folder} --out audit",
        "overview": f"diptych report {folder} --images {source}",
        "load": f"trained = diptych.load({clip(run.folder)!r})",
        "report": f"diptych report {folder}",
        "closed form": proposed.closed_form,
        "join": proposed.joined,
    }


def status(run: Record) -> dict:
    """How far training came: `word` is finished, unfinished, diverged or empty; `text` is a sentence."""
    last = run.steps[-1] if run.steps else {}
    step, progress = real(last.get("step")), real(last.get("progress"))
    done = f"{number(step)} steps" if step is not None else "no step"
    share = f", {100 * progress:.0f} % of the way" if progress is not None else ""
    if run.crash:
        where, loss = clip(run.crash.get("step", "?"), 20), clip(run.crash.get("loss", "?"), 20)
        text = f"Training stopped at step {where}: the loss was {loss}. The last good step is saved."
        return {"word": "diverged", "text": text}
    if run.end and run.closed_form:
        joined = "A closed form beside a trained encoder." if run.main == JOINED else ""
        return {"word": "finished", "text": joined or "Computed in closed form, without training."}
    if run.end:
        return {"word": "finished", "text": f"Finished after {done}."}
    if not run.steps:
        return {"word": "empty", "text": "Nothing is logged yet: training has not finished its first steps."}
    return {"word": "unfinished", "text": f"Training is unfinished: {done} logged{share}."}


def verdict(run: Record) -> dict:
    """The verdict with its reasons, advice and readings; `word` is OK, WARNING, COLLAPSED, or None without one."""
    diagnosis = run.diagnosis or {}
    word = diagnosis.get("verdict")
    if not isinstance(word, str) or word not in VERDICTS:
        word, diagnosis = None, {}
    if word == "OK" and not lamps_of(diagnosis):
        word = "UNPROVEN"  # of an older run, or of `diagnose` alone: it speaks of a collapse only
    title, text = VERDICTS[word] if word else ("No verdict yet", "The encoder has not been evaluated.")
    if word == "WORSE" and run.closed_form:
        title = "Not worth its cost"
    readings = flatten(diagnosis["readings"]) if isinstance(diagnosis.get("readings"), dict) else {}
    shown = [
        (clip(name, 60).replace("_", " "), number(value))
        for name, raw in readings.items()
        if (value := real(raw)) is not None
    ]
    return {
        "word": word,
        "title": title,
        "text": text,
        "lamps": lamps_of(diagnosis),
        "reasons": clipped_texts(diagnosis.get("reasons")) if not lamps_of(diagnosis) else [],
        "advice": clipped_texts(diagnosis.get("advice"), LONGEST_ADVICE),
        "readings": shown[:16],
    }


LAMPS = {
    "collapse": "Do different images have different embeddings?",
    "learning": "Does it recognise another view of an image?",
    "worth": "Is it better than references that cost seconds?",
}


def lamps_of(diagnosis: dict) -> list[dict[str, str]]:
    """The lamps of a diagnosis, in order: name, question, word and text. [] for an older run, which has none."""
    lamps = diagnosis.get("lamps")
    known = [(name, lamps.get(name)) for name in LAMPS] if isinstance(lamps, dict) else []
    return [
        {"name": name, "question": LAMPS[name], "word": word, "text": sentence(clip(lamp.get("text", ""), 600))}
        for name, lamp in known
        if isinstance(lamp, dict) and (word := str(lamp.get("word"))) in (*VERDICTS, NOT_MEASURED)
    ]


def sentence(text: str) -> str:
    """With a capital letter, except in front of "kNN"."""
    text = text.replace("knn: ", "kNN: ")
    return text if text.startswith("kNN") else text[:1].upper() + text[1:]


def advised(judged: dict) -> str:
    """The command of the advice; "" where it has placeholders, as for images given as arrays in Python."""
    named = [part for text in judged["advice"] for part in text.split("`")[1::2] if part.startswith("diptych quick ")]
    return next((command for command in named if not PLACEHOLDERS.intersection(command.split())), "")


def what_next(run: Record, accuracy: dict | None) -> list[tuple[str, str]]:
    """At most three steps: (sentence, command or "")."""
    judged, state, command = verdict(run), status(run)["word"], commands(run)
    word, collapse = judged["word"], [lamp["word"] for lamp in judged["lamps"] if lamp["name"] == "collapse"]
    trained = main_result(accuracy)[1] or {"better": None}
    steps = []
    if state == "diverged":
        steps.append(("Lower optimizer.lr, lengthen the warm-up or set pretrain.clip_norm; then start again.", ""))
    elif state != "finished":
        steps.append(("Finish the training. It continues from the last checkpoint.", command["resume"]))
    if run.unlabelled and state == "finished":
        steps.append(("Turn the images into embeddings.", command["embed"]))
        steps.append(("Find the images that are similar to one of yours.", command["search"]))
        steps.append(("List duplicates, outliers and damaged files of the source.", command["audit"]))
    elif word in (None, "UNPROVEN") or accuracy is None or (trained["better"] is None and not run.closed_form):
        references = "chance and raw pixels" if run.closed_form else "chance, raw pixels and an untrained encoder"
        text = f"Measure the encoder's accuracy, compared with {references}."
        steps.append((text, command["evaluate"]))
    if any(" --join " in text for text in judged["advice"]):
        text = "Join the closed form and this encoder; the advice above says what that gains."
        steps.append((text, advised(judged) or command["join"]))
    elif word == "WORSE" and any("`diptych quick " in text for text in judged["advice"]):
        steps.append(("Use the closed-form encoder on these images.", advised(judged) or command["closed form"]))
    elif not run.closed_form and (word == "COLLAPSED" or (word == "WARNING" and collapse != ["OK"])):
        steps.append(
            ("Follow the advice above before training longer: longer training alone does not undo a collapse.", "")
        )
    elif word in ("WARNING", "WORSE", "COLLAPSED") and judged["advice"]:
        steps.append(("Follow the advice above.", ""))
    elif word == "OK" and trained["better"] is False:
        steps.append(("Train longer, or on more images: the encoder is healthy, but has learned little.", ""))
    elif word in ("OK", "UNPROVEN", "WARNING") and state == "finished":
        steps.append(("Turn images into embeddings.", command["embed"]))
        steps.append(("Use the encoder in Python.", command["load"]))
    if len(steps) < 3:
        steps.append(("Make this page again after further training or evaluation.", command["report"]))
    return steps[:3]
