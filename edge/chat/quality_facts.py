"""How close a chat graph is to the model that it was made from: numbers in the Manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatQuality:
    """Measured on text that no calibration has seen, each token predicted from those before it.

    tokens: how many were predicted. perplexity, fp32_perplexity: of the graph, and of the model in
    float32. kl_mean, kl_p99: Kullback-Leibler divergence of the graph's prediction from the
    model's, in nats per token, its mean and its 99th percentile. top1_agreement_percent: how often
    both find the same token the likeliest.
    """

    tokens: int
    perplexity: float
    fp32_perplexity: float
    kl_mean: float
    kl_p99: float
    top1_agreement_percent: float

    @property
    def perplexity_rise_percent(self) -> float:
        """By how much the perplexity is above that of the model; below it is negative."""
        return 100.0 * (self.perplexity / self.fp32_perplexity - 1.0)
