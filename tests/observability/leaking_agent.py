"""An agent whose backend keeps some memory of every request: python -m ... FOLDER.

FOLDER holds what `make_config` writes. Prints its URL when it is ready, and serves until SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from edge.config import AgentConfig
from tests.agents import open_agent
from tests.fakes import FakeNotifier, FakeSession

KEPT_BYTES = 32 << 10


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO)
    kept: list[bytes] = []
    config = AgentConfig(
        bundle=folder / "bundle",
        trusted_keys=folder / "keys",
        cache=folder / "engines",
        port=0,
        warm_up=False,
    )
    agent = open_agent(
        config,
        notifier=FakeNotifier(),
        # Written, as memory that nobody has written to is not resident.
        open_session=lambda *_: FakeSession(before_run=lambda: kept.append(b"x" * KEPT_BYTES)),
    )
    signal.signal(signal.SIGTERM, lambda *_: agent.request_stop())
    agent.run(on_ready=lambda: print(agent.url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
