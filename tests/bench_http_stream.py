"""What a streamed chunk costs the event loop: processor time of its thread, system calls included.

    python -m tests.bench_http_stream

A child process has so many streams open and reads them; the chunks are as long as those of a chat.
Beside it what the transports cost alone, which is what an empty layer would.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import selectors
import socket
import statistics
import time
from collections.abc import Callable

from edge import http_server
from edge.http_answer import HttpAnswer
from edge.http_connection import Cancel, Reply
from edge.http_request import HttpRequest
from edge.http_server import HttpServer, Loop
from edge.http_stream import HttpStream

STREAMS = (8, 64, 400)
CHUNKS = 400  # written to each stream, at most
ROUNDS = 5
TURN_S = 0.002  # between two steps of a decoder, time in which the child reads
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1767225600'
    b',"model":"llama","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Streamer:
    """Begins a stream for every request."""

    def __init__(self) -> None:
        self.streams: list[HttpStream] = []

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        return None

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        stream = HttpStream(headers={"Content-Type": "text/event-stream"})
        reply(stream)
        self.streams.append(stream)
        return None

    def close(self) -> None:
        pass


def read_streams(port: int, count: int) -> None:
    """Open streams and read them until the server closes them; for a child process."""
    selector = selectors.DefaultSelector()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        selector.register(client, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            client = key.fileobj  # type: ignore[assignment]
            if not client.recv(1 << 18):
                selector.unregister(client)


def cpu_us(loop: Loop, step: Callable[[], object], steps: int) -> float:
    """Return the microseconds of the loop's thread for one step, the turns between included."""
    left = steps

    def turn() -> None:
        nonlocal left
        step()
        left -= 1
        if left:
            loop.events.call_later(TURN_S, turn)
        else:
            loop.stop()

    loop.events.call_soon(turn)
    begun = time.thread_time()
    loop.turn(600.0)
    return (time.thread_time() - begun) / steps * 1e6


def measure(count: int) -> str:
    loop, handler = Loop(), Streamer()
    server = HttpServer.open(handler, loop, host="127.0.0.1", port=0, max_body_bytes=1000)
    port = int(server.url.rsplit(":", 1)[1])
    child = multiprocessing.Process(target=read_streams, args=(port, count))
    child.start()
    while len(handler.streams) < count:
        server.turn(0.05)
    transports = [connection._transport for connection in server._connections]

    def send() -> None:
        for stream in handler.streams:
            stream.send(EVENT)

    def write() -> None:
        for transport in transports:
            transport.write(CHUNK)

    steps = max(50, CHUNKS // count)
    streamed, bare = [], []
    for _ in range(ROUNDS):
        idle = cpu_us(loop, lambda: None, steps)
        streamed.append((cpu_us(loop, send, steps) - idle) / count)
        bare.append((cpu_us(loop, write, steps) - idle) / count)
    server.close()
    child.join()
    return (
        f"{count} streams: {statistics.median(streamed):.1f} us for a chunk (best "
        f"{min(streamed):.1f}), the transport alone {statistics.median(bare):.1f} (best "
        f"{min(bare):.1f})"
    )


def main() -> None:
    """Measure on both event loops."""
    for name, new in (("uvloop", http_server._new_event_loop), ("asyncio", asyncio.new_event_loop)):
        http_server._new_event_loop = new
        for count in STREAMS:
            print(f"{name}, {measure(count)}", flush=True)


if __name__ == "__main__":
    main()
