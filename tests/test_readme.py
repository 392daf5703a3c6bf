"""README.md tells the truth: every block is run, or checked against the real command line."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from edge.cli import cli as agent_cli
from host_tools.cli import cli as kit_cli

REPOSITORY = Path(__file__).parents[1]
RUN, BACKGROUND = "run by tests/test_readme.py", "run by tests/test_readme.py: background"
CI, DEVICE, OUTPUT = "run by CI", "needs a device", "output"
START_S = 60.0
_BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)```\n", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    mark: str | None
    language: str
    text: str


def blocks() -> list[Block]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return [Block(mark=m[1], language=m[2], text=m[3]) for m in _BLOCK.finditer(text)]


def commands(block: Block) -> list[str]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def environment() -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}


def test_every_block_says_how_it_is_checked() -> None:
    assert {block.mark for block in blocks()} == {RUN, BACKGROUND, CI, DEVICE, OUTPUT}


def test_ci_runs_the_commands_that_the_readme_says_it_runs() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text()
    (block,) = [block for block in blocks() if block.mark == CI]
    assert commands(block) == ["make quickstart", "make test"]
    for command in commands(block):
        assert f"step {command}\n" in script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run all blocks of the README in order, in one folder, as a reader would."""
    folder = tmp_path_factory.mktemp("readme")
    agent: subprocess.Popen[bytes] | None = None
    try:
        for number, block in enumerate(blocks()):
            if block.mark not in {RUN, BACKGROUND}:
                continue
            if block.mark == BACKGROUND:
                words = shlex.split(commands(block)[0])
                agent = subprocess.Popen(words, cwd=folder, env=environment())
                wait_until_ready(int(words[words.index("--port") + 1]), agent)
            elif block.language == "python":
                name = block.text.splitlines()[0].removeprefix("# ")
                (folder / name).write_text(block.text)
                if name == "ask.py":
                    run([sys.executable, name], folder, number)
            else:
                for command in commands(block):
                    run(shlex.split(command), folder, number)
        yield folder
    finally:
        if agent is not None:
            agent.terminate()
            assert agent.wait(START_S) == 0


def run(words: list[str], folder: Path, number: int) -> None:
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    result = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, (words, result.stderr)
    (folder / f"output-{number}-{words[-1].replace('/', '_')}").write_text(result.stdout)


def wait_until_ready(port: int, agent: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while agent.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready"):
                return
        except urllib.error.URLError:
            continue
    raise AssertionError("the agent of the README did not become ready")


def outputs(folder: Path, ending: str) -> str:
    (path,) = folder.glob(f"output-*{ending}")
    return path.read_text()


def test_the_blocks_run_and_show_what_the_text_promises(folder: Path) -> None:
    assert json.loads(outputs(folder, "_v2_health_ready")) == {"ready": True}
    assert json.loads(outputs(folder, "_v2_models_net"))["inputs"][0]["shape"] == [-1, 3, 32, 32]
    telemetry = json.loads(outputs(folder, "telemetry"))
    model = telemetry["models"][0]
    assert model["why"]
    assert [refusal["code"] for refusal in model["refused"]] == ["not-preferred"]
    assert telemetry["bundle"]["signed_by"]["name"] == "keys/release.pub"
    assert "edge_bundle_info{" in outputs(folder, "metrics")
    assert len(re.findall(r"-?\d+\.\d+", outputs(folder, "ask.py"))) == 10


def device_commands() -> list[list[str]]:
    lines = [line for block in blocks() if block.mark == DEVICE for line in commands(block)]
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


def test_device_blocks_use_flags_that_exist() -> None:
    checked = 0
    for words in device_commands():
        name = Path(words[0]).name
        group = {"edge-agent": agent_cli, "edge-kit": kit_cli}.get(name)
        if group is None:
            assert name in {"python3", "pip", "install", "mkdir", "cp", "systemctl", "ssh"}
            continue
        command = group.commands[words[1]]
        known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        assert {word for word in words[2:] if word.startswith("--")} <= known, words
        checked += 1
    assert checked >= 4


def test_the_wheel_named_in_the_readme_is_the_one_that_is_built() -> None:
    from edge import __version__

    wheels = {w.split("[")[0] for words in device_commands() for w in words if ".whl" in w}
    assert wheels == {f"edge_kit-{__version__}-py3-none-any.whl"}


def test_links_lead_to_files() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPOSITORY / target).is_file(), target
