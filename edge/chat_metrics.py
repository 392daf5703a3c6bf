"""What chat models have done, under the names that dashboards made for vLLM ask for.

Source: vLLM's documentation, "Production metrics"; what has no name there begins with edge_chat.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from edge.chat.counters import BOUNDS_S, Counters, Histogram, Reason

_REASONS: dict[Reason, str] = {
    "stop": "stop",
    "length": "length",
    "cancelled": "abort",
    "error": "error",
}
_BOUNDS = (*map(floatToGoString, BOUNDS_S), "+Inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatState:
    """What is true of a served chat model at the moment of a scrape.

    cache_use: share of the cache that running generations have filled.
    """

    model: str
    lanes: int
    running: int
    waiting: int
    cache_use: float
    counters: Counters[Any]


def chat_metrics(states: Iterable[ChatState]) -> Iterable[Metric]:
    """Yield the metrics of all chat models; nothing where there is none."""
    families: dict[str, Metric] = {}

    def gauge(name: str, about: str, state: ChatState, value: float) -> None:
        family = families.setdefault(name, GaugeMetricFamily(name, about, labels=["model_name"]))
        assert isinstance(family, GaugeMetricFamily)  # noqa: S101 - for mypy
        family.add_metric([state.model], value)

    def count(name: str, about: str, state: ChatState, value: float, **labels: str) -> None:
        keys = ["model_name", *labels]
        family = families.setdefault(name, CounterMetricFamily(name, about, labels=keys))
        assert isinstance(family, CounterMetricFamily)  # noqa: S101 - for mypy
        family.add_metric([state.model, *labels.values()], value)

    def histogram(name: str, about: str, state: ChatState, value: Histogram) -> None:
        family = families.setdefault(
            name, HistogramMetricFamily(name, about, labels=["model_name"])
        )
        assert isinstance(family, HistogramMetricFamily)  # noqa: S101 - for mypy
        buckets = list(zip(_BOUNDS, itertools.accumulate(value.counts), strict=True))
        family.add_metric([state.model], buckets, value.sum_s)

    for state in states:
        c = state.counters
        gauge("vllm:num_requests_running", "Answers that have a lane.", state, state.running)
        gauge("vllm:num_requests_waiting", "Answers that wait for a lane.", state, state.waiting)
        about = "Share of the cache that running answers fill; 1 is all."
        gauge("vllm:kv_cache_usage_perc", about, state, state.cache_use)
        gauge("edge_chat_lanes", "Answers that can run at once.", state, state.lanes)
        about = "Tokens of prompts that got a lane"
        count("vllm:prompt_tokens", f"{about}.", state, c.prompt_tokens)
        count("vllm:prefix_cache_queries", f"{about}.", state, c.prompt_tokens)
        about = "Of these, tokens that were in the cache already."
        count("vllm:prefix_cache_hits", about, state, c.reused_tokens)
        count("vllm:generation_tokens", "Tokens of answers.", state, c.generated_tokens)
        for reason, ended in c.ended.items():
            about = "Answers that have ended, by reason."
            labels = {"finished_reason": _REASONS[reason]}
            count("vllm:request_success", about, state, ended, **labels)
        about = "Tokens of drafts."
        count("vllm:spec_decode_num_draft_tokens", about, state, c.drafted)
        about = "Tokens of drafts that came out."
        count("vllm:spec_decode_num_accepted_tokens", about, state, c.accepted)
        for kind, steps, seconds in (
            ("prefill", c.prefill_steps, c.prefill_s),
            ("decode", c.decode_steps, c.decode_s),
        ):
            count("edge_chat_steps", "Steps of the model, by kind.", state, steps, kind=kind)
            about = "Seconds in these steps."
            count("edge_chat_step_seconds", about, state, seconds, kind=kind)
        count("edge_chat_failed_steps", "Steps that failed.", state, c.failed_steps)
        about = "Time until the first token of an answer."
        histogram("vllm:time_to_first_token_seconds", about, state, c.first_token_s)
        about = "Time between two tokens of an answer."
        histogram("vllm:inter_token_latency_seconds", about, state, c.between_tokens_s)
        about = "Time from a request to the end of its answer."
        histogram("vllm:e2e_request_latency_seconds", about, state, c.total_s)
        about = "Time that an answer waited for a lane."
        histogram("vllm:request_queue_time_seconds", about, state, c.queue_s)
    return families.values()
