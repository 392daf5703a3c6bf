"""The report is one well-formed file, needs no network, and shows what the table says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibration.budget import REASON, Budget
from calibration.calibrate import Calibrated, calibrate
from calibration.errors import GateError
from calibration.gate import Gate
from calibration.samples import open_samples
from edge.errors import UsageError
from host_tools.calibrate import calibrate_file
from host_tools.report import report_from
from tests.calibration.nets import conv_net, write_samples
from tests.host_tools.packing import calibrate_request

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Fails on tags that do not match; collects text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.classes: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.classes += [value or "" for name, value in attrs if name == "class"]
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += [value or "" for name, value in attrs if name == "class"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    samples = open_samples(write_samples(tmp_path_factory.mktemp("r") / "s.npz", 100))
    budget = Budget(metric="sqnr", limit=45.0)
    return calibrate(conv_net(), samples, budget=budget, explain=True, improve=False)


def test_the_page_is_well_formed_and_needs_no_network(result: Calibrated) -> None:
    page = report_from(result, Path("net.onnx"))
    assert checked(page).links == []
    assert "http" not in page
    assert "<script" not in page


def test_every_method_and_layer_is_shown_with_its_figure(result: Calibrated) -> None:
    text = "\n".join(checked(report_from(result, Path("net.onnx"))).text)
    for figures in (result.sqnr_db, result.sensitivity_db):
        for name, db in figures.items():
            assert name in text
            assert f"{db:.1f} dB" in text
    assert f"{result.tensorrt.accuracy.sqnr_db:.1f} dB" in text
    assert f"{result.ort.accuracy.sqnr_db:.1f} dB" in text


def test_layers_that_stay_float_are_grey(result: Calibrated) -> None:
    kept = [name for name, why in result.kept_float.items() if why == REASON]
    page = report_from(result, Path("net.onnx"))
    assert len(kept) == checked(page).classes.count("float") == 1
    assert f"{len(kept)} of {len(result.sensitivity_db)}" in page


def test_a_histogram_has_a_bar_for_every_bin_and_the_clip_inside(result: Calibrated) -> None:
    page = report_from(result, Path("net.onnx"))
    paths = re.findall(r'<path class="bar" d="([^"]*)"', page)
    assert len(paths) == len(result.worst)
    for path, view in zip(paths, result.worst, strict=True):
        assert path.count("M") == len(view.counts)
        assert 0 < view.clip <= view.amax * 1.01
    assert sum(result.worst[0].counts) > 0


def test_names_cannot_break_out_of_the_page(result: Calibrated) -> None:
    page = report_from(result, Path("<script>alert(1)</script>.onnx"))
    assert "<script" not in page
    checked(page)


def test_the_report_is_written_even_if_the_gate_refuses(tmp_path: Path) -> None:
    strict = Gate(max_top1_drop=-1.0, min_cosine=2.0)
    request = calibrate_request(tmp_path, gate=strict, report=tmp_path / "report.html")
    with pytest.raises(GateError):
        calibrate_file(request, say=lambda _: None)
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "model.int8.onnx").exists()


def test_the_table_keeps_the_sensitivities(tmp_path: Path) -> None:
    request = calibrate_request(tmp_path, report=tmp_path / "report.html")
    table, _ = calibrate_file(request, say=lambda _: None)
    kept = json.loads((tmp_path / "model.int8.calibration.json").read_text())
    assert set(table.sensitivity_db) == {"conv1", "conv2"}
    assert kept["sensitivity_db"] == table.sensitivity_db


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    request = calibrate_request(tmp_path, report=tmp_path / "no" / "report.html")
    with pytest.raises(UsageError, match="--report"):
        calibrate_file(request, say=lambda _: None)
