"""Drift as Prometheus scrapes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from edge.drift.watch import DriftReport


def drift_metrics(reports: Mapping[str, DriftReport]) -> Iterable[Metric]:
    """Yield the gauges of the models that are watched."""
    active = GaugeMetricFamily(
        "edge_drift_active",
        "1 if the last window of a model's requests differs from its reference.",
        labels=("model",),
    )
    statistic = GaugeMetricFamily(
        "edge_drift_statistic",
        "How far the last window is from the reference, 0 for equal: the largest "
        "Kolmogorov-Smirnov distance of an input or output, the total variation of classes, the "
        "squared MMD of whole rows.",
        labels=("model", "kind"),
    )
    for model, report in reports.items():
        active.add_metric([model], int(report.state == "drifted"))
        for kind, value in report.largest.items():
            statistic.add_metric([model, kind], value)
    yield active
    yield statistic
