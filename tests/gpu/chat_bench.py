"""TensorRT's chat decoder with a Llama-3-8B shape and random weights in fp16.

python -m tests.gpu.chat_bench FOLDER READ_TB_S LAYERS

READ_TB_S: the card's measured read bandwidth (chat_peers bandwidth). With fewer than all layers
the logits of a text are kept in FOLDER/logits.npz, for chat_peers to compare.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from edge.chat.layered import layered_model_from_folder
from edge.chat.trt_decoder import TrtDecoder
from edge.tensorrt_library import load_tensorrt
from tests.gpu.chat_weights import CAPACITY, CHUNK, CONFIG, LANES, RandomWeights, shape_of, text

TEXT, PREFILLED = 48, 40
PROMPT = 512
STEPS = 200


def main(folder: Path, read_tb_s: float, layers: int) -> None:
    model = layered_model_from_folder(folder)
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, layers=layers))
    have = tuple(p for p in model.pieces if (folder / p.file).with_suffix(".engine").exists())
    model = dataclasses.replace(model, pieces=have)
    plans = {p: (folder / p.file).with_suffix(".engine").read_bytes() for p in have}
    begun = time.perf_counter()
    decoder = TrtDecoder.open(model, RandomWeights(), plans, library=load_tensorrt("trt"))
    with decoder._device:
        free, total = decoder._cuda.mem_get_info()
    print(
        f"{layers} layers, {decoder.lanes} lanes of {CAPACITY}: opened in "
        f"{time.perf_counter() - begun:.1f} s, {(total - free) / 1e9:.2f} GB of the card in use",
        flush=True,
    )
    if layers < CONFIG["num_hidden_layers"]:
        _keep_logits(decoder, folder / "logits.npz")
    else:
        _measure(decoder, read_tb_s)
    decoder.close()


def _keep_logits(decoder: TrtDecoder, out: Path) -> None:
    """Run a text in a chunk and then token by token, in another lane all in one chunk."""
    tokens, lane = text(TEXT), decoder.lanes - 1
    every = np.arange(TEXT)[None]
    parts = [
        decoder.step(lane, tokens[None, :PREFILLED], np.array([0]), every[:, :PREFILLED])[0].copy()
    ]
    for place in range(PREFILLED, TEXT):
        step = tokens[None, place : place + 1], np.array([place]), np.array([[0]])
        parts.append(decoder.step(lane, *step)[0].copy())
    found = np.concatenate(parts)
    whole = decoder.step(0, tokens[None], np.array([0]), every)[0]
    print(
        f"  token by token against one chunk: cosine {_cosine(found, whole):.6f}, same likeliest "
        f"{(found.argmax(-1) == whole.argmax(-1)).mean():.3f}, finite {np.isfinite(found).all()}"
    )
    few = decoder.step(0, tokens[None], np.array([0]), every, top=1)[0]
    print(f"  the likeliest alone: same {(few.argmax(-1) == whole.argmax(-1)).mean():.3f}")
    np.savez(out, logits=found)


def _measure(decoder: TrtDecoder, read_tb_s: float) -> None:
    spec, rng = decoder.spec, np.random.default_rng(6)
    prompt = rng.integers(0, spec.vocabulary, (1, PROMPT))
    last = np.array([[PROMPT - 1]])
    times = []
    for _ in range(12):
        begun = time.perf_counter()
        decoder.step(0, prompt, np.array([0]), last, top=1)
        times.append(time.perf_counter() - begun)
    print(f"  TTFT of {PROMPT} tokens: {1e3 * np.median(times[2:]):.1f} ms", flush=True)
    weights = _weight_bytes()
    for lanes in (1, decoder.lanes):
        for lane in range(lanes):
            decoder.step(lane, prompt, np.array([0]), last, top=1)
        for top in (1, None):
            wall = _steps(decoder, lanes, top)
            device = _device_ms(decoder, lanes, top)
            moved = weights + lanes * PROMPT * spec.position_bytes
            share = moved / (1e9 * wall) / read_tb_s
            print(
                f"  {lanes} lanes, {'likeliest' if top else 'all logits'}: {wall:.3f} ms a step "
                f"({device:.3f} on the device, host {wall - device:.3f}), "
                f"{1e3 * lanes / wall:.1f} tokens/s, {moved / 1e9 / wall:.2f} TB/s, "
                f"{100 * share:.1f} % of {read_tb_s} TB/s",
                flush=True,
            )
        if decoder.lanes == 1:
            break


def _steps(decoder: TrtDecoder, lanes: int, top: int | None) -> float:
    """Return the median wall time of a greedy step in ms, behind a prompt of 512."""
    tokens, times = np.zeros((lanes, 1), np.int64), []
    rows = np.zeros((lanes, 1), np.int64)
    for step in range(STEPS):
        begun = time.perf_counter()
        logits = decoder.step(0, tokens, np.full(lanes, PROMPT + step), rows, top=top)
        times.append(time.perf_counter() - begun)
        tokens = logits[:, 0].argmax(axis=-1)[:, None]
    return 1e3 * float(np.median(times[20:]))


def _device_ms(decoder: TrtDecoder, lanes: int, top: int | None) -> float:
    """Return what the graph of a step and the copies behind it take, by CUDA events."""
    cuda, stream, times = decoder._cuda, decoder._stream, []
    width = 1 if lanes == 1 else decoder.lanes
    graph = decoder._graphs[width, 0, top is not None]
    inputs = decoder._inputs[width, 1]
    with decoder._device:
        ends = [cuda.Event(), cuda.Event()]
        for _ in range(60):
            ends[0].record(stream)
            graph.launch()
            for lane in range(lanes):
                decoder._cache.store(
                    inputs.heads, width=width, row=lane, tokens=1, count=1, lane=lane, start=PROMPT
                )
            ends[1].record(stream)
            ends[1].synchronize()
            times.append(ends[0].time_till(ends[1]))
    return float(np.median(times[10:]))


def _weight_bytes() -> int:
    """Return the bytes of all weights that a step of one token must read: no embedding."""
    names = ("input_norm", "qkv", "output", "mlp_norm", "gate", "up", "down")
    layer = sum(int(np.prod(shape_of(name))) for name in names)
    return 2 * (CONFIG["num_hidden_layers"] * layer + int(np.prod(shape_of("head"))))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


if __name__ == "__main__":
    assert CHUNK == PROMPT
    assert LANES > 1
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
