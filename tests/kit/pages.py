"""Pages of reports, read back and held against what every page must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

VOID = {"meta", "link", "br", "img", "hr", "input", "col", "path", "line", "circle"}
FETCHING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href", "ping"}


class Page(HTMLParser):
    """Checks that elements are balanced, and collects texts, attributes and tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def read(file: Path) -> Page:
    """Read a page and hold it against what every page must be."""
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert "script" not in page.tags
    assert [value for _, name, value in page.attributes if name in FETCHING] == []
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    links = [(tag, value) for tag, name, value in page.attributes if name == "href"]
    assert all(value == "data:," for tag, value in links if tag == "link")
    assert not [value for _, value in links if value and re.match(r"[a-z]+:", value) and value != "data:,"]
    assert not re.search(r"@import|url\(|image-set", text)
    policy = next(
        v for tag, name, v in page.attributes if tag == "meta" and name == "content" and "default-src" in (v or "")
    )
    assert policy
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    headings = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("figure") == page.tags.count("figcaption")
    assert all(
        any(name == "aria-label" and value for tag, name, value in page.attributes if tag == "svg")
        for _ in range(page.tags.count("figure"))
    )
    return page
