"""The templates of pages for people: everything from a run or a folder is escaped."""

import functools
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"


@functools.cache  # compiling takes a third of a second
def page_template(name: str) -> jinja2.Template:
    """A template of an HTML page; a variable that it lacks is an error."""
    jinja = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
                               trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return jinja.get_template(name)


def text_of(*files: str) -> str:
    """Files beside the templates, one after the other, as a page contains them."""
    return "".join((TEMPLATES / file).read_text("utf-8") for file in files)
