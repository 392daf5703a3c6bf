"""The page at / in a real browser, served by a real agent under load; skipped without Chromium."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edge.agent import Agent
from edge.classes import Classes
from edge.history.history import Point
from edge.probes.sample import GpuSample, Sample
from edge.text import MAX_CHARACTERS
from edge.update.status import PassStatus
from tests.agents import make_config, running_agent
from tests.browser import Browser, found_browser
from tests.detectors import SIDE, detector_parts, photo
from tests.digit_model import digit_parts, scans
from tests.edge.drift.test_served import ask, content_of_reference, parts_with
from tests.encoders import encoder_parts, ids_of, vector_of

pytestmark = pytest.mark.slow
LABELS = ("cat", "dog")
NAMES = tuple("abcdef")
BEST_GUESS = "document.querySelector('#answer .guess span')?.innerText"
CARD = "[...document.querySelectorAll('#models .card')]"
ORIN = GpuSample(
    name="Orin",
    memory="unified",
    memory_used_bytes=6_400_000_000,
    memory_total_bytes=32_000_000_000,
    utilization_percent=62.5,
    clock_hz=918_000_000,
    temperature_celsius=57.5,
    throttle_reasons=("over-current-3",),
)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with an encoder, a classifier of texts and a detector."""
    (encoder, files), (detector, others) = encoder_parts(), detector_parts(LABELS)
    classes = Classes(output="embedding", labels=NAMES, softmax=False, top=2)
    classifier = replace(encoder.models[0], name="classifier", classes=classes)
    models = (*encoder.models, classifier, *detector.models)
    config = make_config(
        tmp_path_factory.mktemp("page"), (replace(encoder, models=models), {**files, **others})
    )
    with running_agent(config) as agent:
        yield agent


@pytest.fixture
def page() -> Iterator[Browser]:
    executable = found_browser()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with Browser(executable) as browser:
        browser.look(1440, 900)
        yield browser
        assert browser.problems == []


@pytest.fixture
def load(agent: Agent) -> Iterator[None]:
    """Somebody asks all the while."""
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=agent.url) as client:
            while not over.is_set():
                client.post("/predict/encoder", json={"text": "the cat"}).raise_for_status()

    thread = threading.Thread(target=ask, name="load")
    thread.start()
    yield
    over.set()
    thread.join()


def opened(page: Browser, agent: Agent) -> None:
    page.open(f"{agent.url}/")
    page.wait_for(f"{CARD}.length === 3")


def told(agent: Agent) -> dict[str, Any]:
    report: dict[str, Any] = httpx.get(f"{agent.url}/telemetry").json()
    return report


def try_file(page: Browser, file: Path) -> None:
    """Choose a file in "Try it", and ask."""
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)
    page.wait_for("!document.querySelector('#go').disabled")
    page.click("#go")


def tile(page: Browser, name: str) -> str:
    text: str = page.evaluate(f"document.querySelector('#tile-{name} .value').innerText")
    return " ".join(text.split())


def test_numbers_under_load_are_those_of_telemetry(page: Browser, agent: Agent, load: None) -> None:
    opened(page, agent)
    page.wait_for("!document.querySelector('#tile-requests').hidden")
    before = told(agent)
    count = f"Number(/(\\d[\\d,]*) ok/.exec({CARD}[0].innerText)?.[1].replaceAll(',', ''))"
    asked = before["models"][0]["requests"]["ok"]
    shown = page.wait_for(f"{count} > {asked} && {count}")
    assert asked < shown <= told(agent)["models"][0]["requests"]["ok"]
    assert float(tile(page, "requests").split()[0].replace(",", "")) > 0
    bundle = page.evaluate("document.querySelector('#bundle').innerText")
    assert before["bundle"]["manifest_sha256"] in bundle
    assert before["bundle"]["signed_by"]["keyid"][:12] in bundle
    machine = page.evaluate("document.querySelector('#machine').innerText")
    assert before["target"]["onnxruntime"] in machine
    state = page.evaluate("document.querySelector('#state').innerText")
    assert re.fullmatch(r"ready for \d+ (s|min.*)", state), state


def test_the_log_and_the_sizes_of_batches_are_shown(page: Browser, agent: Agent) -> None:
    batches = {"encoder": 8, "detector": 1}
    for name, rows in batches.items():
        agent.serving.served[name].statistics.record_run(rows, 0.001)
    logging.getLogger("edge.test").warning("a fan has stopped zone=%s", "<b>cpu</b>")
    opened(page, agent)
    lines = page.wait_for("document.querySelector('#log .is-warning')?.innerText")
    assert "a fan has stopped zone=<b>cpu</b>" in lines
    told_lines = httpx.get(f"{agent.url}/telemetry/log").json()["lines"]
    assert page.evaluate("document.querySelectorAll('#log li').length") == len(told_lines)
    runs = {int(rows): count for rows, count in told(agent)["models"][0]["run_rows"].items()}
    mean = sum(rows * count for rows, count in runs.items()) / sum(runs.values())
    card = page.evaluate(f"{CARD}[0].innerText")
    assert float(re.search(r"Batches: ([\d.]+) rows", card)[1]) == pytest.approx(mean, abs=0.051)
    assert "Batches" not in page.evaluate(f"{CARD}[2].innerText")


def test_the_last_update_is_shown(
    page: Browser, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = PassStatus(
        at="2026-03-01T12:00:00Z", verdict="failed", reason="the channel is stale",
        good_at="2026-02-28T12:00:00Z",
    )  # fmt: skip
    monkeypatch.setattr(agent.serving, "update", lambda: update)
    opened(page, agent)
    bundle = page.wait_for(
        "((text) => text.includes('Last update') && text)"
        "(document.querySelector('#bundle').innerText)"
    )
    assert "1 Mar 2026" in bundle
    assert "failed, the channel is stale" in bundle
    assert "28 Feb 2026" in bundle


def test_drift_is_shown_and_is_an_alarm(page: Browser, tmp_path: Path) -> None:
    config = make_config(tmp_path, parts_with(content_of_reference()), drift_window=50)
    with running_agent(config) as agent:
        ask(agent.url, np.random.default_rng(0).normal(size=(50, 4)) + 3.0)
        page.open(f"{agent.url}/")
        note = page.wait_for(
            "((note) => !note.hidden && note.innerText)(document.querySelector('#alarms'))"
        )
        report = told(agent)
        (alarm,) = report["alarms"]
        assert note.startswith("drift of affine since")
        assert alarm["detail"] in note
        drift = report["models"][0]["drift"]
        card = page.evaluate(f"{CARD}[0].innerText")
        assert "Drift: drifted" in card
        assert drift["detail"] in card
        rows = page.evaluate(
            f"[...{CARD}[0].querySelectorAll('details tr')].slice(1).map((row) =>"
            " [...row.cells].map((cell) => cell.textContent))"
        )
        assert [row[0] for row in rows] == [one["name"] for one in drift["features"]]
        assert [float(row[2]) for row in rows] == pytest.approx(
            [one["statistic"] for one in drift["features"]], rel=0.05
        )


def test_every_stage_of_a_models_latency_is_shown(page: Browser, agent: Agent) -> None:
    httpx.post(f"{agent.url}/predict/encoder", json={"text": "dog"}).raise_for_status()
    stages = told(agent)["models"][0]["latency"]["stages"]
    opened(page, agent)
    table = page.evaluate(
        f"[...{CARD}[0].querySelectorAll('tr')].map((row) =>"
        " [...row.cells].map((cell) => cell.innerText))"
    )
    assert table[0] == ["ms", "p50", "p95", "p99"]
    assert [row[0] for row in table[1:]] == list(stages)
    for name, *cells in table[1:]:
        expected = [stages[name][key] for key in ("p50_ms", "p95_ms", "p99_ms")]
        np.testing.assert_allclose([float(cell) for cell in cells], expected, atol=0.051)


def test_a_jetsons_gpu_memory_heat_and_power_are_shown(page: Browser, agent: Agent) -> None:
    sample = Sample(
        memory_total_bytes=32_000_000_000,
        memory_available_bytes=20_000_000_000,
        cpu_percent=12.25,
        power_watts=14.5,
        rails_watts={"VDD_GPU_SOC": 6.25},
        power_mode="MODE_30W",
        temperatures_celsius={"cpu": 51.0},
        gpus=(ORIN,),
    )
    agent._sampler.stop()
    agent.serving.sample = sample
    for number in range(30):
        agent.serving.history.add(1e9 + 10 * number, Point(power_watts=10.0 + number % 7))
    opened(page, agent)
    page.wait_for("!document.querySelector('#tile-power').hidden")
    assert tile(page, "gpu") == "62.5 % · 918 MHz"
    assert tile(page, "gpu-memory") == "6.4 GB of 32 GB shared"
    assert tile(page, "memory") == "12 GB of 32 GB"
    assert tile(page, "heat") == "57.5 °C · gpu"
    assert tile(page, "power") == "14.5 W"
    machine = page.evaluate("document.querySelector('#machine').innerText")
    for fact in ("MODE_30W", "VDD_GPU_SOC 6.25 W", "over-current-3", "cpu 51 °C"):
        assert fact in machine
    # The clock of this history is years behind: it is drawn all the same.
    label = "document.querySelector('#tile-power canvas').getAttribute('aria-label')"
    assert page.wait_for(f"{label}?.includes('max') && {label}") == "Power: max 16"


def test_a_text_is_tried_and_its_time_is_broken_down(page: Browser, agent: Agent) -> None:
    opened(page, agent)
    page.evaluate(
        "document.querySelector('#model').value = 'classifier';"
        "document.querySelector('#model').dispatchEvent(new Event('change'));"
        "document.querySelector('#text').focus()"
    )
    page.type("dog ran far")
    page.click("#go")
    answer = page.wait_for("document.querySelector('#answer .guess')?.innerText")
    best = np.argsort(-vector_of(ids_of("dog", "ran", "far")).ravel())[:2]
    assert re.findall(r"^[a-f]$", answer, re.MULTILINE) == [NAMES[number] for number in best]
    times = page.evaluate("document.querySelector('#answer .small').innerText")
    found = {
        name: float(ms) for name, ms in re.findall(r"(read|queue|compute|write) ([\d.]+)", times)
    }
    assert set(found) == {"read", "queue", "compute", "write"}
    assert sum(found.values()) <= float(times.split()[0]) + 0.1


def test_an_image_is_tried_and_its_boxes_are_told(
    page: Browser, agent: Agent, tmp_path: Path
) -> None:
    file = tmp_path / "dog.png"
    file.write_bytes(photo([[0.25, 0.25, 0.75, 0.75, 0.1, 0.9]], (SIDE, SIDE)))
    opened(page, agent)
    page.evaluate(
        "document.querySelector('#model').value = 'detector';"
        "document.querySelector('#model').dispatchEvent(new Event('change'))"
    )
    try_file(page, file)
    answer = page.wait_for("document.querySelector('#answer li')?.innerText")
    assert answer.startswith("dog 9")


def test_handwritten_digits_are_read(page: Browser, tmp_path: Path) -> None:
    # The first scan of each digit; least squares reads all of them but for the 8.
    first = {scan.digit: scan for scan in reversed(scans())}
    with running_agent(make_config(tmp_path, digit_parts())) as agent:
        page.open(f"{agent.url}/")
        page.wait_for(f"{CARD}.length === 1")
        for digit in (0, 1, 2, 3, 4, 5, 6, 7, 9):
            file = tmp_path / f"{digit}.png"
            file.write_bytes(first[digit].png)
            page.evaluate("document.querySelector('#answer').replaceChildren()")
            try_file(page, file)
            assert page.wait_for(BEST_GUESS) == str(digit)


def test_a_refusal_is_told_in_the_agents_words(page: Browser, agent: Agent) -> None:
    opened(page, agent)
    page.evaluate("document.querySelector('#text').focus()")
    page.type("x" * (MAX_CHARACTERS + 1))
    page.click("#go")
    answer = page.wait_for(
        "document.querySelector('#answer').innerText.startsWith('Refused')"
        " && document.querySelector('#answer').innerText"
    )
    assert "characters" in answer
    page.problems.clear()  # the browser notes the status 400


def test_nothing_comes_from_elsewhere_and_the_page_is_small(page: Browser, agent: Agent) -> None:
    opened(page, agent)
    asked = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked
    assert [name for name in asked if not name.startswith(agent.url)] == []
    answer = httpx.get(f"{agent.url}/")
    assert len(answer.content) < 150_000
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_the_page_fits_its_screen(page: Browser, agent: Agent, width: int, scheme: str) -> None:
    page.look(width, 844, scheme=scheme)
    opened(page, agent)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelector('summary').click()")
    page.wait_for("document.querySelector('details').open")


def test_keys_reach_everything(page: Browser, agent: Agent) -> None:
    opened(page, agent)
    reached = []
    for _ in range(30):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    for wanted in ("BUTTON", "model", "text", "SUMMARY", "A"):
        assert wanted in reached


def test_an_agent_that_goes_is_noticed(page: Browser, tmp_path: Path) -> None:
    with running_agent(make_config(tmp_path, detector_parts(LABELS))) as agent:
        page.open(f"{agent.url}/")
        page.wait_for(f"{CARD}.length === 1")
    page.wait_for("!document.querySelector('#lost').hidden")
    assert page.evaluate("document.querySelector('#state').innerText") == "no answer"
    page.problems.clear()  # the browser notes what it could not fetch
