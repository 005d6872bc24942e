"""`diptych audit` and `diptych pick`."""

from pathlib import Path

from diptych.base.errors import RecipeError
from diptych.base.files import require_free_folder, write_file
from diptych.commands.opening import image_options, open_encoder
from diptych.commands.places import require_outside
from diptych.commands.schema import call_arguments
from diptych.data.images import Images, images
from diptych.downstream.audit import audit
from diptych.downstream.audit_files import write_audit
from diptych.downstream.copies import THUMBNAIL
from diptych.downstream.picked import pick_images, picked_table
from diptych.downstream.spreadsheet import require_table


def run_audit(
    source: str | None,
    train: str | None,
    test: str | None,
    out: Path,
    *,
    run: Path | None,
    labels: str,
    device: str,
    seed: int,
    own: str | None,
) -> str:
    """Audit one source, or a training and a test set, write the folder and return the text that the command prints."""
    if (source is None) == (train is None and test is None) or (train is None) != (test is None):
        raise RecipeError("give either SOURCE, or both --train SOURCE and --test SOURCE")
    if own is not None and run is None:
        raise RecipeError("--encoder is the network of a run: give --run too")
    names = [name for name in (source, train, test) if name is not None]
    require_outside(require_free_folder(out), *names)
    trained = None if run is None else open_encoder(run, own)
    options = {"size": THUMBNAIL} if trained is None else image_options(trained)
    sets: list[Images] = [images(name, **call_arguments(images, options | {"labels": labels})) for name in names]
    result = audit(sets[0], test=sets[1] if test is not None else None, trained=trained, seed=seed, device=device)
    files = write_audit(result, out, " and ".join(Path(name).name or name for name in names))
    page, *tables = sorted(files, key=lambda file: file.suffix != ".html")
    return "\n".join([str(result), f"page: {page}", *map(str, tables)])


def run_pick(vectors: Path, budget: int, out: Path, seed: int) -> str:
    """Pick images of saved embeddings, write the table and return the text that the command prints."""
    require_outside(require_table(out), str(vectors))
    picked = pick_images(vectors, budget, seed)
    write_file(out, picked_table(picked, out.suffix))
    rest = "" if len(picked) == budget else f" (all that are distinct; the budget was {budget:,})"
    return f"{out}  {len(picked):,} images to label{rest}"
