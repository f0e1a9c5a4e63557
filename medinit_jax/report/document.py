"""An HTML document around a page's content, and its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medinit_jax.report.markup import Html, element
from medinit_jax.report.style import CSS

PAGE = "report.html"


def document(title: str, *content: Any) -> Html:
    """A whole document that loads nothing.

    Args:
        title: of the browser's tab.
        *content: sections, in order.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(CSS)),
    )
    body = element("body", element("main", *content))
    return Html("<!doctype html>\n" + element("html", head, body, lang="en") + "\n")


def write_page(folder: Path, page: Html) -> Path:
    """Writes `report.html` in one step, so that a reader never meets half of it."""
    path = folder / PAGE
    partial = path.with_suffix(".html.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path
