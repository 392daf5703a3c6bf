"""Recorded requests, sent to the bundle before and to the one on trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge.capture.answers import Closeness
from edge.capture.capture_file import Exchange, read_capture
from edge.capture.replay import Sent, check_inference, replay
from edge.capture.replay_report import Report, report_from_replay
from edge.errors import CaptureError
from edge.files import storage_errors

CONNECTIONS = 4
TIMEOUT_S = 30.0


class Replay:
    """The requests of one capture; `before` and `now` send each of them once, at any pace."""

    def __init__(self, file: Path, url: str) -> None:
        with storage_errors("read", file), file.open("rb") as reader:
            self._exchanges: Sequence[Exchange] = read_capture(reader).exchanges
        if not self._exchanges:
            raise CaptureError(f"{file} holds no requests; record while there is traffic")
        check_inference(self._exchanges)
        self._url = url
        self._before: list[Sent] | None = None

    def before(self) -> None:
        """Ask the bundle that is in service."""
        self._before = self._send()

    @property
    def has_asked(self) -> bool:
        """Whether the bundle before was asked, and answered."""
        return self._before is not None and any(map(_is_answered, self._before))

    def now(self, closeness: Mapping[str, Closeness], *, most: float) -> Report:
        """Ask the trial, and compare with the bundle before, or else with the recording.

        closeness: by model. most: the tolerance where the body of a request names its model. What
        the bundle before did not answer says nothing of the trial.
        """
        sent, exchanges = self._send(), self._exchanges
        tolerance = max((close.tolerance for close in closeness.values()), default=most)
        if self._before is None or not self.has_asked:
            return report_from_replay(exchanges, sent, tolerance=tolerance, closeness=closeness)
        kept = [place for place, one in enumerate(self._before) if _is_answered(one)]
        return report_from_replay(
            [exchanges[place] for place in kept],
            [self._before[place] for place in kept],
            tolerance=tolerance,
            against=[sent[place] for place in kept],
            closeness=closeness,
        )

    def _send(self) -> list[Sent]:
        return replay(
            self._exchanges, self._url, speed=0, connections=CONNECTIONS, timeout_s=TIMEOUT_S
        )


def _is_answered(sent: Sent) -> bool:
    return sent.answer is not None and sent.answer.status == 200
