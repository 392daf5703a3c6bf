"""The whole way of a chat model: train, export, judge, pack, serve, ask.

Every step after the training is one of the commands a user types, printed before it runs.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rich.console import Console

from edge.agent_process import agent_process
from edge.http_client import AgentClient
from host_tools.chat.demo.corpus import corpus
from host_tools.chat.demo.demo import QUESTIONS, Demo, make_demo
from host_tools.progress import progress_bar
from host_tools.tour import SERVE_FLAGS, Tour, TourError, make_empty, require_free

MODEL = "pydoc"
MARKER = ".edge-kit-chat-demo"  # a folder with this file may be deleted by the next run
ANSWER_TOKENS = 80
TIMEOUT_S = 120.0


def run_chat_demo(
    folder: Path, *, minutes: float | None, keep: bool, port: int, console: Console
) -> None:
    """Run every step in folder, which is made anew; print the answers; with keep, go on serving.

    Raises TourError naming the step that failed.
    """
    folder = folder.resolve()
    if keep:
        require_free(port)
    make_empty(folder, marker=MARKER)
    tour = Tour(folder, console)
    with progress_bar() as progress:
        demo = make_demo(folder / "model", minutes=minutes, say=console.print, progress=progress)
    _print_report(console, demo)
    text = corpus()
    (folder / "text.txt").write_text("\n\n".join(d.text for d in text.held_out), encoding="utf-8")
    tour.step("edge-kit", "plan", "--model", "model", "--target", "orin-nano-8gb")
    tour.step("edge-kit", "export-chat", "model", "--precision", "fp32", "--precision", "int8",
              "--text", "text.txt", "--out", "export")  # fmt: skip
    tour.step("edge-kit", "keygen", "release", "--out", "keys")
    tour.step("edge-kit", "pack", "export", "--name", MODEL, "--key", "keys/release.key",
              "--out", "bundle")  # fmt: skip
    tour.step("edge-kit", "inspect", "bundle")
    _serve_and_ask(tour)
    if keep:
        tour.keep_serving(
            port,
            (
                "{url}/chat in a browser, or",
                'curl -d \'{{"query": "What does str.split do?"}}\' {url}/chat',
            ),
        )


def _print_report(console: Console, demo: Demo) -> None:
    report = demo.report
    console.print(
        f"{report.parameters / 1e6:.1f} M parameters, {report.tokens / 1e6:.1f} M tokens in "
        f"{report.steps} steps, {report.seconds:.0f} s"
    )
    console.print(
        f"perplexity of held-out docstrings: {report.perplexity_before:,.0f} before, "
        f"{report.perplexity_after:,.0f} after"
    )
    console.print(
        f"questions answered word by word: {report.known:.0%}, and {report.known_rephrased:.0%} in "
        "words that were never used in training"
    )


def _serve_and_ask(tour: Tour) -> None:
    flags = [*SERVE_FLAGS, "--port", "0"]
    tour.show(["edge-agent", "serve", *flags])
    with agent_process(tour.folder, flags) as (url, _):
        client = AgentClient(url, timeout_s=TIMEOUT_S)
        try:
            for question in QUESTIONS:
                asked = {"query": question, "temperature": 0}
                answer = _read(client, "POST", "/chat", json.dumps(asked).encode())
                tour.console.print(f"> {question}", style="bold", highlight=False)
                tour.console.print(f"  {answer['answer']}", highlight=False)
            (model,) = _read(client, "GET", "/telemetry")["models"]
        finally:
            client.close()
    chat = model["chat"]
    tour.console.print(
        f"{model['variant']}: {chat['tokens_per_s']:.0f} tokens/s, first token after "
        f"{chat['first_token_ms']:.0f} ms; {chat['lanes']} lanes of {chat['context']} tokens"
    )


def _read(client: AgentClient, method: str, path: str, body: bytes = b"") -> Any:
    received = client.send(method, path, body=body)
    if received.status != HTTPStatus.OK:
        raise TourError(f"{path} answered {received.status}: {received.body.decode()}")
    return json.loads(received.body)
