"""What streaming over HTTP costs: the agent's tokens/s against those of the generator alone.

    python -m tests.bench_chat_serving BUNDLE KEYS [VARIANT]

VARIANT: by default the one that the bundle prefers on the CPU; engines are built here if need be.
The same bundle is asked in turns by two children: one opens it and runs the generator with no
server; the other is an agent, and a third process reads its streams. Ratios of the rounds'
medians are printed for 1, 4 and 8 answers at once, and the time to the first token.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.agent_process import script
from edge.manifest import Model, Variant

ROUNDS = 5
TOKENS = 64
STREAMS = (1, 4, 8)
LANES, CONTEXT = 8, 1024
QUESTION = "Tell me about the sea, the sky and the land between them. " * 4


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Tokens/s of some answers at once, and the median time to the first of them."""

    tokens_per_s: float
    first_token_s: float


def main(*asked: str) -> None:
    """Measure and print. asked: bundle, keys, variant."""
    with Bare(*asked) as bare, Served(*asked) as served:
        print(f"{'answers':>8} {'bare tok/s':>11} {'HTTP tok/s':>11} {'ratio':>6} {'TTFT ms':>14}")
        for streams in STREAMS:
            rates: dict[str, list[Rate]] = {"bare": [], "http": []}
            for round_ in range(ROUNDS + 1):
                for name, side in (("bare", bare), ("http", served)):
                    rate = side.run(streams, round_)
                    if round_:  # the first is a warm-up
                        rates[name].append(rate)
            speed = {
                name: statistics.median(rate.tokens_per_s for rate in found)
                for name, found in rates.items()
            }
            first = {
                name: statistics.median(1e3 * rate.first_token_s for rate in found)
                for name, found in rates.items()
            }
            ratio = speed["http"] / speed["bare"]
            print(
                f"{streams:>8} {speed['bare']:>11.1f} {speed['http']:>11.1f} {ratio:>6.3f} "
                f"{first['bare']:>6.0f} {first['http']:>6.0f}",
                flush=True,
            )


class Bare:
    """The generator in a child, with no server."""

    def __init__(self, *asked: str) -> None:
        command = [sys.executable, "-m", "tests.bench_chat_serving", "bare", *asked]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Bare:
        assert self._child.stdout is not None
        self._child.stdout.readline()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def run(self, streams: int, round_: int) -> Rate:
        """Return the rate of so many answers at once."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(streams, round_, file=self._child.stdin, flush=True)
        return Rate(**json.loads(self._child.stdout.readline()))


def variant_of(model: Model, name: str | None) -> Variant:
    """Return the named variant, or the one that the CPU prefers."""
    wanted = name or model.preferences[0].variant
    return next(variant for variant in model.variants if variant.id == wanted)


def bare(bundle: Path, keys: Path, name: str | None = None) -> None:
    """Open the bundle as an agent does, and answer what is asked on standard input."""
    from edge.bundle import open_bundle
    from edge.chat.openai_request import chat_request
    from edge.chat.room import Room
    from edge.chat_loading import open_chat
    from edge.chat_preparing import DecoderPreparer
    from edge.choice import Candidate, Choice
    from edge.config import AgentConfig
    from edge.matching import Means
    from edge.target import detect_target
    from edge.trust import trusted_keys_in

    sys.setswitchinterval(0.0005)  # as the agent does
    opened = open_bundle(bundle, trusted_keys_in(keys))
    (model,) = opened.manifest.models
    variant = variant_of(model, name)
    means: Means = "ort-cpu" if variant.backend == "ort" else "build"
    choice = Choice(variant=variant, means=means, why="", refused=())
    assert variant.decoder is not None
    room = Room(lanes=variant.decoder.lanes or LANES, context=min(CONTEXT, variant.decoder.context))
    config = AgentConfig(cache=bundle.parent / "engines")
    prepare = DecoderPreparer(
        config, detect_target(), progress=lambda *_: True, stop=threading.Event()
    ).prepare
    candidate = Candidate(variant=variant, means=means, why="")
    chat = open_chat(
        opened,
        model,
        choice,
        room,
        config=config,
        open_decoder=prepare(opened, candidate),
        clock=time.monotonic,
    )
    print("ready", flush=True)
    for line in sys.stdin:
        streams, round_ = map(int, line.split())
        ears = [_Ear() for _ in range(streams)]
        began = time.perf_counter()
        for number, ear in enumerate(ears):
            prepared = chat.talker.chat(chat_request(body(model.name, number, round_)))
            chat.generator.submit(prepared.generations[0], ear)
        for ear in ears:
            ear.over.wait()
        elapsed = time.perf_counter() - began
        tokens = sum(ear.tokens for ear in ears)
        first = statistics.median(ear.first - began for ear in ears)
        print(json.dumps({"tokens_per_s": tokens / elapsed, "first_token_s": first}), flush=True)
    chat.generator.stop(5.0)


class _Ear:
    def __init__(self) -> None:
        self.tokens, self.first = 0, 0.0
        self.over = threading.Event()

    def on_piece(self, piece: Any) -> None:
        if not self.tokens:
            self.first = time.perf_counter()
        self.tokens += len(piece.tokens)

    def on_end(self, end: Any) -> None:
        self.over.set()


class Served:
    """An agent in a child; its streams are read here."""

    def __init__(self, bundle: str, keys: str, variant: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        command = [script("edge-agent"), "serve", "--port", str(self._port)]
        command += ["--bundle", bundle, "--trusted-keys", keys, "--log-level", "warning"]
        command += ["--chat-lanes", str(LANES), "--chat-context", str(CONTEXT)]
        command += ["--cache", str(Path(bundle).parent / "engines")]
        command += [] if variant is None else ["--variant", variant]
        self._child = subprocess.Popen(command)
        self._name = ""

    def __enter__(self) -> Served:
        url = f"http://127.0.0.1:{self._port}"
        while True:
            try:
                with urllib.request.urlopen(f"{url}/v2/health/ready"):
                    break
            except OSError:
                assert self._child.poll() is None
            time.sleep(0.2)
        with urllib.request.urlopen(f"{url}/v1/models") as models:
            self._name = json.load(models)["data"][0]["id"]
        return self

    def __exit__(self, *error: object) -> None:
        self._child.terminate()
        self._child.wait()

    def run(self, streams: int, round_: int) -> Rate:
        """Return the rate of so many streams at once, read without parsing them."""
        began = time.perf_counter()
        opened = [self._ask(number, round_) for number in range(streams)]
        waiting = selectors.DefaultSelector()
        found: dict[socket.socket, bytes] = {}
        first: list[float] = []
        for client in opened:
            client.setblocking(False)
            waiting.register(client, selectors.EVENT_READ)
            found[client] = b""
        left = set(opened)
        while left:
            for key, _ in waiting.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                had = found[client].count(b'"content":') > 1
                found[client] += client.recv(1 << 16)
                if not had and found[client].count(b'"content":') > 1:
                    first.append(time.perf_counter() - began)
                if b"data: [DONE]" in found[client]:
                    left.discard(client)
                    waiting.unregister(client)
        elapsed = time.perf_counter() - began
        tokens = 0
        for client in opened:
            usage = found[client].rpartition(b'"completion_tokens":')[2]
            tokens += int(usage.partition(b",")[0].strip(b" }"))
            client.close()
        return Rate(tokens_per_s=tokens / elapsed, first_token_s=statistics.median(first))

    def _ask(self, number: int, round_: int) -> socket.socket:
        content = body(self._name, number, round_)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            f"{len(content)}\r\n\r\n"
        )
        client = socket.create_connection(("127.0.0.1", self._port))
        client.sendall(head.encode() + content)
        return client


def body(model: str, number: int, round_: int) -> bytes:
    """Return a request that nobody has made before, so that no prefix is reused."""
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": f"{round_} {number} {QUESTION}"}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        bare(Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
    else:
        main(*sys.argv[1:])
