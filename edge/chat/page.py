"""The page for a chat in a browser."""

from __future__ import annotations

from pathlib import Path

from edge.http_answer import HttpAnswer
from edge.pages import page_answer

PAGE_PATH = "/chat"


def chat_page() -> HttpAnswer:
    """Return the page; see `pages`."""
    return page_answer(Path(__file__).with_name("page.html"))
