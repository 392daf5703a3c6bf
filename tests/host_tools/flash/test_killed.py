"""kill -9 at every step that setting up a device takes on disk; the next run converges."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from host_tools.flash.script import device_script
from tests.agents import unused_port
from tests.host_tools.flash.devices import files_in, make_root, stop_units
from tests.host_tools.flash.payloads import Factory, agent_wheels

pytestmark = pytest.mark.slow

# Runs the script, and kills it at its nth write, rename, link, or program.
_KILLED = """
import os, runpy, signal, sys
left, script, *words = sys.argv[1:]
left = int(left)
fatal = {"os.rename", "os.mkdir", "os.symlink", "os.remove", "shutil.rmtree", "subprocess.Popen"}
def hook(event, arguments):
    global left
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if writes or event in fatal:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.argv = [script, *words]
sys.path.insert(0, script)
sys.addaudithook(hook)
runpy.run_path(script, run_name="__main__")
"""


def test_a_setup_that_is_killed_at_any_step_converges_when_it_is_repeated(tmp_path):
    factory = Factory(tmp_path / "here", port=unused_port())
    wheels = factory.house("house-1", agent_wheels())
    payloads = [
        factory.payload(factory.bundle("bundle-1", version="1"), wheels),
        factory.payload(factory.bundle("bundle-2", scale=3.0, version="2"), wheels),
    ]
    script = tmp_path / "device_setup.pyz"
    script.write_bytes(device_script())
    root = make_root(tmp_path / "root")
    folder = root / "var/lib/edge-kit/payload"

    def apply(kill_at):
        command = [sys.executable, "-I", "-c", _KILLED, str(kill_at), str(script), "apply"]
        command += [str(folder), "--root", str(root), "--json", "--ready-s", "60"]
        environment = {"PATH": "/usr/bin:/bin"}
        return subprocess.run(command, capture_output=True, env=environment)

    state = root / "var/lib/edge/state.json"
    kept = []
    try:
        for payload, version in zip(payloads, ("1", "2"), strict=True):
            kill_at = 0
            while True:
                kill_at += 1
                # Every kill meets a device as the kill before left it; the list of files is there
                # again, as the sender brings it.
                payload.write(folder)
                result = apply(kill_at)
                if result.returncode == 0:
                    break
                assert result.returncode == -signal.SIGKILL, result.stderr.decode()
                if version == "2":
                    served = json.loads(state.read_text())["a"]["version"]
                    assert served in {"1", "2"}
            assert json.loads(state.read_text())["a"]["version"] == version
            assert not (folder / "pending").exists()
            assert not (folder / "before.json").exists()
            again = apply(0)
            assert json.loads(again.stdout)["changed"] is False
            kept.append(kill_at)
        assert not [name for name in files_in(root / "etc") if ".new" in name]
        assert min(kept) >= 10, kept
    finally:
        stop_units(root)
        shutil.rmtree(root, ignore_errors=True)
