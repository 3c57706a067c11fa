"""The report: one file that needs nothing else."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from framer.analysis.paper.page import Page, Section, Table, Thumbnail, write_page

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
EVIL = '<script>alert("1")</script> & more'


class Checked(HTMLParser):
    """Counts tags, and refuses those that are closed in another order than opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def write(folder: Path) -> str:
    picture = folder / "figure.png"
    picture.write_bytes(PNG)
    table = Table(header=("model", "value"), rows=[(EVIL, "0.5")])
    page = Page(
        title=EVIL,
        command=f"framer analyze {EVIL}",
        models=table,
        images=[Thumbnail(name=EVIL, png=PNG)],
        images_note=EVIL,
        settings={EVIL: EVIL},
        sections=[
            Section(title="Fig. 2", pictures=[(picture, EVIL)], caption=EVIL, reading=EVIL, table=table),
            Section(title="Fig. 7", missing=[EVIL]),
        ],
        notes=[EVIL],
    )
    write_page(folder / "report.html", page)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_it_is_whole_by_itself_and_well_formed(tmp_path: Path) -> None:
    text = write(tmp_path)
    parser = Checked()
    parser.feed(text)
    assert parser.open == []
    assert "script" not in parser.seen
    assert "link" not in parser.seen
    assert all(source.startswith(("data:image/png;base64,", "#figure-")) for source in parser.sources)
    assert not re.search(r"url\(|@import|http", text)


def test_texts_are_escaped_everywhere(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") == text.count("alert(") > 10


def test_what_was_not_drawn_is_said_in_its_place_and_in_the_contents(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert text.count("(not drawn)") == 1
    assert text.count("<strong>Not drawn</strong>") == 1
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
