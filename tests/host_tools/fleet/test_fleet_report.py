"""The page about a fleet: it stands alone, escapes what devices say, and fits a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from host_tools.fleet.figures import FleetFigures
from host_tools.fleet.inventory import Device
from host_tools.fleet.report import page_from
from tests.browser import Browser, found_browser
from tests.host_tools.fleet.looks import BEGAN_S, a_week, poll, summarised

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
NAMES = ("line-1", "line-2", "line-3", "line-4")
DEVICES = tuple(Device(name=name, host=name) for name in NAMES)
END_S = BEGAN_S + 7 * 86400


class Tags(HTMLParser):
    """Notes every tag, and what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]


def week() -> FleetFigures:
    return summarised(a_week(NAMES[:3]), DEVICES, begin_s=BEGAN_S, end_s=END_S)


def test_the_page_needs_nothing_but_itself() -> None:
    tags = Tags()
    tags.feed(page_from(week()))
    assert not {"script", "iframe", "object", "link[stylesheet]"} & tags.names
    loads = [(tag, value) for tag, name, value in tags.attributes if name in {"src", "href"}]
    assert loads == [("link", "data:,")]
    assert not [name for _, name, _ in tags.attributes if name.startswith("on")]


def test_what_a_device_says_is_text_and_nothing_else() -> None:
    evil = poll(
        "line-1", state="degraded", reason=EVIL, bundle=EVIL, agent=EVIL, alarms=(EVIL,),
        drifted=(EVIL,), variants={EVIL: EVIL}, p95_ms=3.0,
    )  # fmt: skip
    page = page_from(summarised([evil], DEVICES, begin_s=BEGAN_S, end_s=END_S))
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img"} & tags.names
    assert page.count("&lt;script&gt;alert(1)") >= 6
    assert "<script" not in page


def test_figures_of_the_week_stand_on_the_page() -> None:
    text = re.sub(r"<[^>]*>|\s+", " ", page_from(week()))
    for words in ("4 devices", "504 polls", "1 never asked", "connection refused", "camera 1.4.0"):
        assert words in text
    assert re.search(r"Energy per request\s+2\.50\s+J", text)


def test_a_fleet_that_nobody_asked_has_a_page() -> None:
    page = page_from(summarised([], DEVICES, begin_s=BEGAN_S, end_s=END_S))
    assert "4 never asked" in page
    assert page.count("No device could tell.") == 8


@pytest.fixture
def browser() -> Iterator[Browser]:
    executable = found_browser()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with Browser(executable) as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_the_page_fits_a_desk_and_a_phone(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    file = tmp_path / "fleet.html"
    file.write_text(page_from(week()), encoding="utf-8")
    browser.look(width, 900, scheme=scheme)
    browser.open(file.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    plots: list[dict[str, Any]] = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().toJSON())"
    )
    assert len(plots) == 5
    assert all(plot["height"] > 100 and 200 < plot["width"] < width for plot in plots)
    dark = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == {"light": "rgb(250, 248, 244)", "dark": "rgb(23, 25, 27)"}[scheme]
    assert browser.problems == []
