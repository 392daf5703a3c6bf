"""What TensorRT's chat decoder is compared with: torch and transformers on the same GPU.

python -m tests.gpu.chat_peers bandwidth | logits FOLDER LAYERS | rows | generate
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.gpu.chat_weights import CONFIG, LANES, RandomWeights, text

PROMPT, TOKENS = 512, 64


def bandwidth() -> None:
    """Print the read bandwidth alone, in TB/s."""
    x = torch.empty(2 << 30, dtype=torch.float32, device="cuda").normal_()
    seconds = min(_seconds(lambda: x.sum()) for _ in range(3))
    print(f"{x.nbytes / seconds / 1e12:.3f}")


def logits(folder: Path, layers: int) -> None:
    """Compare kept logits with those of torch in float32, and torch in fp16 with the same."""
    kept = torch.tensor(np.load(folder / "logits.npz")["logits"])
    tokens = torch.tensor(text(len(kept)), device="cuda")[None]
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = _model(layers, dtype)
        with torch.no_grad():
            found[dtype] = model(tokens).logits[0].float().cpu()
        del model
    for name, one in (("TensorRT fp16", kept), ("torch fp16", found[torch.float16])):
        exact = found[torch.float32]
        cosines = torch.nn.functional.cosine_similarity(one.double(), exact.double(), dim=-1)
        same = (one.argmax(-1) == exact.argmax(-1)).double().mean()
        print(
            f"{name} against torch fp32, {layers} layers: least cosine {cosines.min():.6f}, "
            f"largest difference {(one - exact).abs().max():.4f} of {exact.std():.3f}, same "
            f"likeliest {same:.3f}",
            flush=True,
        )


def rows() -> None:
    """Print the feed-forward block of one layer in torch."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    for dtype in (torch.float32, torch.float16):
        torch.cuda.empty_cache()
        _rows(dtype, hidden, inner)


def _rows(dtype: torch.dtype, hidden: int, inner: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    gate, up = (torch.randn(inner, hidden, device="cuda", dtype=dtype) * 0.02 for _ in "ab")
    down = torch.randn(hidden, inner, device="cuda", dtype=dtype) * 0.02
    for count in (1, 512):
        x = torch.randn(1, count, hidden, device="cuda", dtype=dtype)

        def block(x: Any = x) -> Any:
            f = torch.nn.functional
            return x + f.linear(f.silu(f.linear(x, gate)) * f.linear(x, up), down)

        with torch.no_grad():
            eager = _seconds(block, 100)
            torch.cuda.empty_cache()
            used = free - torch.cuda.mem_get_info()[0]
            replayed = _seconds(_graph(block).replay, 200)
        print(
            f"torch {str(dtype)[6:]} {count}: eager {1e6 * eager:.1f} us, as a CUDA graph "
            f"{1e6 * replayed:.1f} us, {1 / replayed:.0f} requests/s, {used / 1e6:.0f} MB of "
            "device memory",
            flush=True,
        )


def generate() -> None:
    """Print transformers.generate with its caches, weights random."""
    import transformers

    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        config = transformers.LlamaConfig(**_config())
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    torch.set_default_dtype(torch.float32)
    model = model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    for lanes in (1, LANES):
        ids = torch.randint(3, 128000, (lanes, PROMPT), device="cuda")
        for name, options in (
            ("dynamic", {}),
            ("static", {"cache_implementation": "static", "disable_compile": True}),
            ("static, compiled", {"cache_implementation": "static"}),
        ):
            if lanes > 1 and name != "dynamic":
                continue
            first, both = (
                _generated(model, ids, 1, options),
                _generated(model, ids, TOKENS + 1, options),
            )
            rate = lanes * TOKENS / (both - first)
            print(
                f"transformers.generate, {name} cache, {lanes} lanes: TTFT {1e3 * first:.1f} ms, "
                f"{rate:.1f} tokens/s",
                flush=True,
            )


def _generated(model: Any, ids: torch.Tensor, count: int, options: dict[str, Any]) -> float:
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, **options,
        )  # fmt: skip
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _model(layers: int, dtype: torch.dtype) -> Any:
    """Return a model with the weights of `RandomWeights`."""
    import transformers

    weights = RandomWeights()
    config = transformers.LlamaConfig(**_config() | {"num_hidden_layers": layers})
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager"
        ).eval()
    torch.set_default_dtype(torch.float32)

    def put(target: torch.nn.Module, name: str, begin: int = 0, end: int | None = None) -> None:
        matrix = torch.tensor(weights.tensor(name)).cuda()
        target.weight.data = matrix[:, begin:end].T.contiguous().to(dtype)

    model.model.embed_tokens.weight.data = (
        torch.tensor(weights.tensor("embedding")).cuda().to(dtype)
    )
    put(model.lm_head, "head")
    query = CONFIG["hidden_size"]
    every = query + query // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    for index, layer in enumerate(model.model.layers):
        name = f"layers.{index}"
        put(layer.self_attn.q_proj, f"{name}.qkv", 0, query)
        put(layer.self_attn.k_proj, f"{name}.qkv", query, every)
        put(layer.self_attn.v_proj, f"{name}.qkv", every)
        put(layer.self_attn.o_proj, f"{name}.output")
        for part in ("gate", "up", "down"):
            put(getattr(layer.mlp, f"{part}_proj"), f"{name}.{part}")
    return model


def _config() -> dict[str, Any]:
    return {k: v for k, v in CONFIG.items() if k not in {"architectures", "model_type"}}


def _graph(call: Callable[[], Any]) -> Any:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _seconds(call: Callable[[], Any], runs: int = 20) -> float:
    """Return the median of runs, by CUDA events."""
    times = []
    for _ in range(runs + 5):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended))
    return float(np.median(times[5:])) / 1e3


if __name__ == "__main__":
    what = {"bandwidth": bandwidth, "rows": rows, "generate": generate}
    if sys.argv[1] == "logits":
        logits(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        what[sys.argv[1]]()
