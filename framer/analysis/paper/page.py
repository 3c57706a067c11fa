"""One HTML file that holds a whole analysis: pictures, numbers and words, without scripts and without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

from framer.files import write_text


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers under a figure.

    Attributes:
        header: Names of the columns.
        rows: The cells, as many in each row.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One figure of the paper.

    Attributes:
        title: Its heading.
        pictures: Files of its pictures, each with a text for those who cannot see it; none where it was not drawn.
        caption: What is shown.
        reading: How to read it.
        table: Its numbers.
        missing: What could not be drawn, and why; each a sentence.
    """

    title: str
    caption: str = ""
    reading: str = ""
    pictures: Sequence[tuple[Path, str]] = ()
    table: Table | None = None
    missing: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A small picture.

    Attributes:
        name: What it is of.
        png: The file's content.
    """

    name: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is written.

    Attributes:
        title: The page's heading.
        command: The command line that makes it again.
        models: What was analysed.
        images: Name, and thumbnail of the degraded and the original tile.
        images_note: What to know of the images.
        settings: Setting and value.
        sections: The figures in order.
        notes: What else a reader must know.
    """

    title: str
    command: str
    models: Table
    images: Sequence[Thumbnail]
    images_note: str
    settings: Mapping[str, str]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #ffffff; --soft: #5c5f66; --line: #d9dbe0; --card: #f5f6f8;
  --accent: #00538a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --paper: #16171a; --soft: #a2a6af; --line: #383b42; --card: #202227; --accent: #7cc4f5; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p, ul { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
figure { margin: 1rem 0; overflow-x: auto; }
/* On a phone pictures keep a readable size and are pushed sideways. */
figure img { display: block; width: 100%; min-width: 42rem; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.path { overflow-wrap: anywhere; min-width: 14rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.images { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; list-style: none; max-width: none; }
.images li { width: 8rem; font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }
.images img { width: 8rem; height: auto; display: block; border-radius: .25rem; }
.missing { background: var(--card); border-left: .25rem solid #d55e00; padding: .5rem .75rem; border-radius: .25rem;
  max-width: 46rem; }
.missing p { margin: .25rem 0; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
.soft { color: var(--soft); }
"""


def write_page(path: Path, page: Page) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: The HTML file to create or replace, in a folder that exists.
        page: What it says; all texts are escaped.

    Raises:
        UserError: The folder cannot be written to.
        OSError: A picture cannot be read.
    """
    body = [
        f"<h1>{escape(page.title)}</h1>",
        _contents(page.sections),
        "<h2>What was analysed</h2>",
        _table(page.models),
        *(f"<p>{escape(note)}</p>" for note in page.notes),
        "<h3>Images</h3>",
        f"<p>{escape(page.images_note)}</p>",
        _thumbnails(page.images),
        "<h3>Settings</h3>",
        _table(Table(header=("setting", "value"), rows=list(page.settings.items()))),
        "<h3>To make this page again</h3>",
        f"<pre><code>{escape(page.command)}</code></pre>",
        *(_section(number, section) for number, section in enumerate(page.sections)),
    ]
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n",
    )


def _contents(sections: Sequence[Section]) -> str:
    entries = []
    for number, section in enumerate(sections):
        absent = "" if section.pictures else ' <span class="soft">(not drawn)</span>'
        entries.append(f'<li><a href="#figure-{number}">{escape(section.title)}</a>{absent}</li>')
    return f"<ul>{''.join(entries)}</ul>"


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="figure-{number}">', f"<h2>{escape(section.title)}</h2>"]
    for path, words in section.pictures:
        parts.append(f'<figure><img alt="{escape(words, quote=True)}" src="{_data_uri(path.read_bytes())}"></figure>')
    if section.caption:
        parts.append(f"<p>{escape(section.caption)}</p>")
    if section.reading:
        parts.append(f"<p><strong>How to read it.</strong> {escape(section.reading)}</p>")
    if section.missing:
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in section.missing)
        parts.append(f'<div class="missing"><p><strong>Not drawn</strong></p>{sentences}</div>')
    if section.table is not None:
        parts.append(f"<details><summary>The numbers</summary>{_table(section.table)}</details>")
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(_is_number(row[column]) for row in table.rows) for column in range(len(table.header))
    ]
    paths = [any("/" in row[column] for row in table.rows) for column in range(len(table.header))]
    classes = [
        ' class="number"' if number else ' class="path"' if path else ""
        for number, path in zip(numeric, paths, strict=True)
    ]
    head = "".join(f"<th{css}>{escape(name)}</th>" for name, css in zip(table.header, classes, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{css}>{escape(cell)}</td>" for cell, css in zip(row, classes, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell in ("unknown", "not seen", "1 by definition")
    return True


def _thumbnails(images: Sequence[Thumbnail]) -> str:
    items = "".join(
        f'<li><img alt="{escape(image.name, quote=True)}" src="{_data_uri(image.png)}">{escape(image.name)}</li>'
        for image in images
    )
    return f'<ul class="images">{items}</ul>'


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
