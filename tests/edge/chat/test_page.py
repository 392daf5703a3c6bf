"""The page for a chat, as bytes; tests/chat_page uses it in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from edge.chat.page import chat_page

PAGE = chat_page()
TEXT = PAGE.body.decode()


class Parts(HTMLParser):
    """What of a page could run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: dict[str, list[str]] = {"style": [], "script": []}
        self.attributes: list[tuple[str, str, str]] = []
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in self.inline:
            self._inside = tag
            self.inline[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.inline[self._inside][-1] += data


PARTS = Parts()
PARTS.feed(TEXT)


def policy() -> dict[str, list[str]]:
    entries = PAGE.headers["Content-Security-Policy"].split("; ")
    return {name: values.split(" ") for name, _, values in (e.partition(" ") for e in entries)}


@pytest.mark.parametrize("kind", ["style", "script"])
def test_the_policy_allows_exactly_what_is_in_the_file(kind: str) -> None:
    digests = [hashlib.sha256(inside.encode()).digest() for inside in PARTS.inline[kind]]
    sources = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert len(sources) == 1
    assert policy()[f"{kind}-src"] == sources


def test_whatever_the_policy_does_not_name_is_forbidden() -> None:
    assert policy()["default-src"] == ["'none'"]
    assert policy()["connect-src"] == ["'self'"]
    for name in ("base-uri", "form-action", "frame-ancestors"):  # default-src is not theirs
        assert policy()[name] == ["'none'"]
    allowed = {source for sources in policy().values() for source in sources}
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:"} & allowed
    assert PAGE.headers["X-Content-Type-Options"] == "nosniff"
    assert PAGE.headers["Content-Type"] == "text/html; charset=utf-8"


def test_nothing_is_fetched_from_elsewhere_and_no_attribute_holds_code_or_style() -> None:
    for tag, name, value in PARTS.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", tag
        if name in {"src", "href", "action", "srcset", "data"}:
            assert value.startswith("data:"), (tag, value)
    (style,) = PARTS.inline["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_no_text_can_become_markup_or_code() -> None:
    (script,) = PARTS.inline["script"]
    words = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|DOMParser"
    assert re.findall(words + "|createContextualFragment|setHTMLUnsafe", script) == []


def colours(scheme: str) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", TEXT, re.DOTALL)
    found: dict[str, str] = {}
    for block in blocks if scheme == "dark" else blocks[:1]:
        found.update(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    return found


def luminance(colour: str) -> float:
    """Return the relative luminance, by WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "under"),
    [
        *(("ink", under) for under in ("page", "tint", "field", "bad-tint")),
        *(("soft", under) for under in ("page", "tint", "field")),
        ("accent", "page"),
        ("on-accent", "accent"),
        ("bad", "bad-tint"),
        ("page", "ink"),
    ],
)
def test_every_text_stands_out_as_wcag_wants_it(scheme: str, ink: str, under: str) -> None:
    values = colours(scheme)
    lights = sorted((luminance(values[ink]), luminance(values[under])))
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5
