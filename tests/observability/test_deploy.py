"""Rules, dashboards and the pair of Prometheus and Grafana: what they name is there."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import fields

import httpx
import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from edge.chat.counters import Counters
from edge.chat_metrics import ChatState, chat_metrics
from edge.machine_metrics import machine_metrics
from edge.metrics import Metrics, State
from edge.probes.sample import GpuSample, Sample
from edge.slots.watching import SlotFacts
from tests.agents import make_config, running_agent
from tests.edge.test_agent import BODY
from tests.fakes import wait_until
from tests.observability.promql import (
    DEPLOY,
    RULE_TESTS,
    dashboard_exprs,
    dashboards,
    metrics_of,
    rules,
)

DATASOURCES = DEPLOY / "grafana" / "provisioning" / "datasources"


def full(kind, **known):
    """Return a record in which every field can be told."""
    hints = typing.get_type_hints(kind)

    def value(hint):
        if typing.get_origin(hint) is Mapping:
            return {"zone": 1.0}
        if "throttle" in str(hint) or "tuple[str" in str(hint):
            return ("thermal",)
        return "x" if hint == str | None else 1

    named = {key.name: value(hints[key.name]) for key in fields(kind)}
    return kind(**{**named, **known})


def sample_names(families: typing.Iterable[Metric]) -> set[str]:
    return {sample.name for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> set[str]:
    config = make_config(tmp_path_factory.mktemp("agent"))
    with running_agent(config) as agent, httpx.Client(base_url=agent.url) as client:
        assert client.post("/v2/models/affine/infer", json=BODY).status_code == 200
        wait_until(lambda: bool(agent.serving.alarms))
        return sample_names(text_string_to_metric_families(client.get("/metrics").text))


def needing_hardware() -> set[str]:
    """Names that only a device with all sensors, a chat model or slots has, asked of the code."""
    gpu = full(GpuSample, memory="device")
    chat = ChatState(model="m", lanes=1, running=0, waiting=0, cache_use=0.0, counters=Counters())
    state = State(
        bundle="b",
        signed=True,
        models=(),
        sample=Sample(),
        slots=SlotFacts(slot="a", phase="committed"),
    )
    text = Metrics(lambda: state).exposition().decode()
    return (
        sample_names(machine_metrics(full(Sample, gpus=(gpu,))))
        | sample_names(chat_metrics([chat]))
        | sample_names(text_string_to_metric_families(text))
    )


def test_every_metric_of_rules_and_dashboards_is_one_that_an_agent_has(scraped) -> None:
    used = set().union(*map(metrics_of, dashboard_exprs()))
    used |= set().union(*(metrics_of(r["expr"]) for r in (*rules("record"), *rules("alert"))))
    recorded = {rule["record"] for rule in rules("record")}
    assert len(used) > 30
    assert used - scraped - needing_hardware() - recorded - {"up"} == set()
    # What a device without sensors tells as well comes from the scrape, not from the code.
    assert {"edge_inference_requests_total", "edge_alarm_active", "edge_bundle_info"} <= scraped


def test_names_are_found_in_expressions_as_prometheus_reads_them() -> None:
    expr = (
        'histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{x="b{c}"}[5m]))) > 0 '
        "and on (device) level:d:avg1h unless avg_over_time(e[1h] offset 5m) or vector(1)"
    )
    assert metrics_of(expr) == {"a_bucket", "level:d:avg1h", "e"}


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for alert in rules("alert"):
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}, alert
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert "$labels.device" in alert["annotations"]["summary"]


def test_the_thresholds_are_those_that_were_asked_for() -> None:
    exprs = {alert["alert"]: alert["expr"] for alert in rules("alert")}
    assert exprs["EdgeLatencyHigh"].endswith("p99_rate5m > 0.1")
    assert exprs["EdgeSuccessLow"].endswith("< 0.9995")
    assert exprs["EdgeGpuOverloaded"].endswith("> 0.8")
    assert "< 0.6 and" in exprs["EdgeGpuIdle"]


def test_every_alert_is_tried_by_a_unit_test() -> None:
    tests = [case for path in RULE_TESTS for case in yaml.safe_load(path.read_text())["tests"]]
    fired = {
        alert["alertname"]
        for case in tests
        for alert in case.get("alert_rule_test", ())
        if alert["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in rules("alert")}


def test_dashboards_have_ids_of_their_own_and_a_data_source_that_is_provisioned() -> None:
    files = [yaml.safe_load(path.read_text()) for path in DATASOURCES.glob("*.yml")]
    known = {source["uid"] for file in files for source in file["datasources"]}
    uids = [board["uid"] for board in dashboards()]
    assert len(uids) == len(set(uids)) == 3
    for board in dashboards():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        titles = [panel["title"] for panel in board["panels"]]
        assert len(titles) == len(set(titles))
        parts = [*board["panels"], *board["templating"]["list"]]
        parts += [target for panel in board["panels"] for target in panel["targets"]]
        assert {part["datasource"]["uid"] for part in parts} <= known
        linked = {link["url"].removeprefix("/d/") for link in board["links"]}
        assert linked <= set(uids) - {board["uid"]}
        variables = {variable["name"] for variable in board["templating"]["list"]}
        exprs = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        assert set(re.findall(r"\$(\w+)", " ".join(exprs))) == variables


def test_panels_neither_overlap_nor_leave_the_page() -> None:
    for board in dashboards():
        taken = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            assert 0 <= at["x"] <= 24 - at["w"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells


def test_the_pair_listens_on_loopback_and_its_versions_are_named() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"prometheus", "grafana"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        mounts = [volume.split(":")[0] for volume in service["volumes"]]
        assert all((DEPLOY / m).exists() for m in mounts if m.startswith("."))
