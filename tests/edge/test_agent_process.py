from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from edge.agent_process import AgentProcessError, agent_process
from tests.agents import make_config
from tests.fakes import DEADLINE_S

FLAGS = ["--bundle", "bundle", "--trusted-keys", "keys", "--port", "0"]
STARTED_BY_QUICKSTART = """
    import signal, sys
    from pathlib import Path
    from edge.agent_process import agent_process
    from edge.console import stop_on_sigterm

    stop_on_sigterm()
    with agent_process(Path(sys.argv[1]), sys.argv[2:]) as (url, process):
        print(process.pid, flush=True)
        signal.pause()
"""


def test_sigterm_takes_the_agent_along_and_the_outer_environment_does_not_reach_it(
    tmp_path: Path,
) -> None:
    make_config(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STARTED_BY_QUICKSTART), str(tmp_path), *FLAGS],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EDGE_PORT": "1", "EDGE_NONSENSE": "1"},
    ) as process:
        assert process.stdout is not None
        agent = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert not agent.is_running()


def test_an_agent_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(AgentProcessError, match="no bundle at bundle"),
        agent_process(tmp_path, FLAGS),
    ):
        pass


STOPS_WHEN_FROZEN = """
    import gc, os, signal, sys
    from pathlib import Path
    from edge.serve import serve
    from edge.config import AgentConfig

    freeze = gc.freeze
    def freeze_and_stop():
        freeze()
        os.kill(os.getpid(), signal.SIGTERM)
    gc.freeze = freeze_and_stop
    folder = Path(sys.argv[1])
    serve(AgentConfig(bundle=folder / "bundle", trusted_keys=folder / "keys", port=0))
    print(gc.get_freeze_count())
"""


def test_what_the_start_made_is_hidden_from_the_collector_before_requests_come(
    tmp_path: Path,
) -> None:
    make_config(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOPS_WHEN_FROZEN), str(tmp_path)],
        stdout=subprocess.PIPE, check=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert int(done.stdout) > 10_000
