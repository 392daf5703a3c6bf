"""A real agent on a free port, run in a thread of the test process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge.admission import Admission
from edge.agent import Agent
from edge.chat_preparing import OpenDecoder
from edge.config import AgentConfig
from edge.preparing import Prepared
from edge.session import Session
from edge.target import Target
from tests.bundles import Parts, affine_parts, make_key, write_bundle
from tests.fakes import DEADLINE_S, FakeNotifier


def make_config(
    tmp_path: Path,
    parts: Parts | None = None,
    **changes: Any,
) -> AgentConfig:
    """Return the configuration of an agent that serves a freshly written bundle.

    parts: of the bundle; None is the affine one.
    """
    key = make_key()
    manifest, files = parts or affine_parts()
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "test.pub").write_bytes(key.public_pem)
    root = write_bundle(tmp_path / "bundle", manifest, files, key)
    defaults: dict[str, Any] = {
        "bundle": root,
        "trusted_keys": keys,
        "port": 0,
        "intra_op_threads": 1,
        "cache": tmp_path / "engines",
        "warm_up": False,
    }
    return AgentConfig(**{**defaults, **changes})


def open_agent(
    config: AgentConfig,
    *,
    notifier: FakeNotifier,
    open_session: Callable[..., Session] | None = None,
    open_decoder: OpenDecoder | None = None,
    admission: Callable[[Target], Admission] | None = None,
) -> Agent:
    """Return an agent; open_session and open_decoder stand in for every backend."""
    prepare = None if open_session is None else lambda *_: Prepared(open=open_session)
    return Agent.open(
        config,
        notifier=notifier,
        prepare=prepare,
        prepare_decoder=None if open_decoder is None else lambda *_: open_decoder,
        admission=admission,
    )


@contextlib.contextmanager
def running_agent(
    config: AgentConfig,
    *,
    open_session: Callable[..., Session] | None = None,
    open_decoder: OpenDecoder | None = None,
    notifier: FakeNotifier | None = None,
    admission: Callable[[Target], Admission] | None = None,
    until_ready: bool = True,
) -> Iterator[Agent]:
    """Yield an agent that serves; afterwards it is stopped as by SIGTERM."""
    notifier = notifier or FakeNotifier()
    agent = open_agent(
        config,
        notifier=notifier,
        open_session=open_session,
        open_decoder=open_decoder,
        admission=admission,
    )
    thread = threading.Thread(target=agent.run, name="agent-main")
    thread.start()
    try:
        if until_ready:
            assert notifier.is_ready.wait(DEADLINE_S)
        yield agent
    finally:
        agent.request_stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def unused_port() -> int:
    """Return a port of 127.0.0.1 where nobody listens, at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
