"""Kill a command at every step that it takes on disk."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

_SCRIPT = """
import os, signal, sys
from pathlib import Path

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
{given}
fatal = {{"open", "os.rename", "os.mkdir", "os.chmod", "os.link"}}

def die_at(step):
    def hook(event, arguments):
        nonlocal step
        if event in fatal and f".{{out.name}}." in str(arguments[0]):
            step -= 1
            if step == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

step = 0
while True:
    step += 1
    child = os.fork()
    if child == 0:
        die_at(step)
        write()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert not out.exists(), step
print(step)
"""


def killed_at_every_step(given: str, folder: Path, out: Path) -> int:
    """Run write(), which `given` defines, until it has survived; return how often it ran.

    The nth run is killed at its nth access to the scratch folder of `out`, which must not be there
    then. given: Python code; it finds the path `folder`.
    """
    script = _SCRIPT.format(given=textwrap.dedent(given))
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(out)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)
