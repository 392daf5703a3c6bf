"""What /telemetry/log tells of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from edge.log_tail import MAX_LINE_CHARACTERS, MAX_LINES, LogTail

SOURCE = "edge.some.module"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(SOURCE)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(level)


@pytest.fixture
def tail(logger: logging.Logger) -> Iterator[LogTail]:
    tail = LogTail()
    logger.addHandler(tail)
    yield tail
    logger.removeHandler(tail)


def test_lines_are_told_oldest_first_with_level_and_source(
    tail: LogTail, logger: logging.Logger
) -> None:
    logger.info("model opened name=%s", "a")
    logger.error("model lost\nname=%s", "b")
    told = [(line.level, line.source, line.text) for line in tail.report().lines]
    assert told == [
        ("info", SOURCE, "model opened name=a"),
        ("error", SOURCE, "model lost | name=b"),
    ]


def test_what_is_finer_than_info_is_left_out(tail: LogTail, logger: logging.Logger) -> None:
    logger.debug("a request")
    assert tail.report().lines == ()


def test_the_newest_lines_are_kept_and_long_ones_cut(tail: LogTail, logger: logging.Logger) -> None:
    for number in range(2 * MAX_LINES):
        logger.info("line %d", number)
    logger.info("x" * 10 * MAX_LINE_CHARACTERS)
    lines = tail.report().lines
    assert len(lines) == MAX_LINES
    assert lines[0].text == f"line {MAX_LINES + 1}"
    assert len(lines[-1].text) == MAX_LINE_CHARACTERS


def test_a_record_that_cannot_be_written_costs_nobody_anything(
    tail: LogTail, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d rows", "no number")
    logger.info("the next")
    assert [line.text for line in tail.report().lines] == ["the next"]
