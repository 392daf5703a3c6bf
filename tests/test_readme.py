"""README.md tells the truth: every block is run, or checked against the real command line."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from edge.cli import cli as agent_cli
from host_tools.cli import cli as kit_cli
from tests.host_tools.text_folders import save_sentence_encoder
from tests.talking import make_talking_folder

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


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command of the README, and what it printed."""

    words: list[str]
    output: str


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Ran]]:
    """Run all blocks of the README in order, in one folder, as a reader would."""
    folder = tmp_path_factory.mktemp("readme")
    # What the reader brings: a folder of Hugging Face, and texts.
    save_sentence_encoder(folder / "encoder", max_tokens=128, max_position_embeddings=130)
    make_talking_folder(folder / "assistant")
    (folder / "texts.txt").write_text("the cat sat on the mat\nthe dog ran far\n")
    ran: list[Ran] = []
    agents: list[subprocess.Popen[str]] = []
    recording: subprocess.Popen[str] | None = None
    try:
        for block in blocks():
            if block.mark == BACKGROUND:
                words = shlex.split(commands(block)[0])
                process = start(words, folder)
                if words[1] == "serve":
                    agents.append(process)
                    wait_until_ready(int(words[words.index("--port") + 1]), process)
                else:
                    recording = process
                    assert process.stderr is not None
                    assert process.stderr.readline().startswith("recording")
            elif block.mark == RUN and block.language == "python":
                name = block.text.splitlines()[0].removeprefix("# ")
                (folder / name).write_text(block.text)
                if name in {"ask.py", "talk.py"}:
                    ran.append(run(["python", name], folder))
            elif block.mark == RUN:
                for command in commands(block):
                    words = shlex.split(command)
                    if words[:2] == ["edge-agent", "replay"]:  # as a reader presses Ctrl-C before
                        assert recording is not None
                        finish(recording, signal.SIGINT)
                    ran.append(run(words, folder))
        yield ran
    finally:
        for agent in agents:
            finish(agent, signal.SIGTERM)


def run(words: list[str], folder: Path) -> Ran:
    found = [sys.executable, *words[1:]] if words[0] == "python" else words
    result = subprocess.run(found, cwd=folder, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, (words, result.stderr)
    return Ran(words=words, output=result.stdout)


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    quiet = None if words[1] == "serve" else subprocess.PIPE
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment(),
        stderr=quiet,
        text=True,
        # Whatever started pytest in the background may have had SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate(timeout=START_S)
    assert process.returncode == 0


def wait_until_ready(port: int, agent: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_S
    while agent.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready"):
                return
        except urllib.error.URLError:
            continue
    raise AssertionError("the agent of the README did not become ready")


def output_of(tour: list[Ran], *ending: str) -> str:
    """Return what the one command with these last words printed."""
    (found,) = [ran.output for ran in tour if tuple(ran.words[-len(ending) :]) == ending]
    return found


def json_from(tour: list[Ran], *ending: str) -> Any:
    return json.loads(output_of(tour, *ending))


def test_the_blocks_run_and_show_what_the_text_promises(tour: list[Ran]) -> None:
    assert json_from(tour, "localhost:8765/v2/health/ready") == {"ready": True}
    model = json_from(tour, "localhost:8765/v2/models/net")
    assert model["inputs"][0]["shape"] == [-1, 3, 32, 32]
    telemetry = json_from(tour, "localhost:8765/telemetry")
    model = telemetry["models"][0]
    assert model["why"]
    assert [refusal["code"] for refusal in model["refused"]] == ["not-preferred"]
    assert telemetry["bundle"]["signed_by"]["name"] == "keys/release.pub"
    assert "edge_bundle_info{" in output_of(tour, "localhost:8765/metrics")
    assert len(re.findall(r"-?\d+\.\d+", output_of(tour, "ask.py"))) == 10


def test_texts_get_their_vectors_in_either_form(tour: list[Ran]) -> None:
    texts = '{"text": ["the cat sat", "dogs"]}'
    (output,) = json_from(tour, texts, "localhost:8766/predict/encoder")["outputs"]
    (item,) = json_from(tour, "localhost:8766/v1/embeddings")["data"]
    assert output["shape"] == [2, 16]
    assert output["data"][:16] == pytest.approx(item["embedding"], abs=1e-5)


def test_models_go_and_come_back_while_others_stay(tour: list[Ran]) -> None:
    index = json_from(tour, "localhost:8766/v2/repository/index")
    states = {entry["name"]: entry["state"] for entry in index}
    assert states == {"net": "UNAVAILABLE", "encoder": "READY"}


def test_the_chat_model_answers_in_every_way_that_the_text_names(tour: list[Ran]) -> None:
    assert "int8" in output_of(tour, "--model", "assistant", "--target", "rtx-4060")
    assert json_from(tour, "localhost:8767/chat")["answer"]
    assert [m["id"] for m in json_from(tour, "localhost:8767/v1/models")["data"]] == ["assistant"]
    assert output_of(tour, "talk.py")


def test_measuring_shows_what_the_text_says(tour: list[Ran]) -> None:
    bench = output_of(tour, "--connections", "8", "--duration", "2")
    assert "8 conn" in bench
    assert "advice" in bench
    compared = output_of(tour, "--framework", "mymodel:build")
    rows = {line.split()[0] for line in compared.splitlines() if line}
    assert {"original", "ort-fp32", "ort-int8"} <= rows
    assert "Conv" in output_of(tour, "profile", "--bundle", "bundle", "--trusted-keys", "keys")
    assert "conv2d" in output_of(tour, "edge-kit", "profile", "mymodel:build")


def test_the_requests_that_were_recorded_get_the_same_answers_again(tour: list[Ran]) -> None:
    replayed = output_of(tour, "replay", "requests.capture", "--url", "http://localhost:8766")
    assert "same: 2 of 2 compared" in replayed


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
        command: click.Command = group
        rest = words[1:]
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words
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
