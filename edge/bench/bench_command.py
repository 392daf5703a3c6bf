"""`edge-agent bench`: load on an agent, or every variant of a bundle side by side."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.config import DEFAULT_URL, AgentConfig, flag_from_key
from edge.config_options import config_options, flags_from_config, given_only
from edge.config_sources import load_config, read_config_file
from edge.console import configure_logging, print_json, say, stop_on_sigterm
from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.bench.measure import BenchPlan, Subject
    from edge.bundle import Bundle

# An agent that bench starts listens where there is room; these keys also say what a bundle is.
_NOT_OFFERED = frozenset({"host", "port", "log_level"})
_OF_A_BUNDLE = frozenset({"bundle", "trusted_keys", "allow_unsigned", "config"})
_KEYS = tuple(key.name for key in fields(AgentConfig) if key.name not in _NOT_OFFERED)
MAX_CONNECTIONS = 1000  # that an agent takes


class _Numbers(click.ParamType):  # type: ignore[type-arg] # not generic in older releases
    """Positive numbers, separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], most: float) -> None:
        self._kind = kind
        self._most = most

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number <= self._most for number in numbers):
            words = "whole numbers" if self._kind is int else "numbers"
            self.fail(f"{value!r} is not {words} up to {self._most:g}, separated by commas")
        return numbers


@click.command()
@click.option(
    "--url",
    metavar="URL",
    help=f"A running agent; without it and without --bundle, {DEFAULT_URL}.",
)
@click.option("--model", metavar="NAME", help="Model to measure, where there are several.")
@click.option(
    "--connections",
    type=_Numbers(int, MAX_CONNECTIONS),
    metavar="N,...",
    help="Closed loops, one after the other: each of N connections sends its next request when it "
    "has its answer. [default: 1,8,32]",
)
@click.option(
    "--rate",
    "rates",
    type=_Numbers(float, 1e6),
    metavar="R,...",
    help="Open loops: R requests a second, as a Poisson process. Latency counts from the moment a "
    "request is due, so a stall hides nothing.",
)
@click.option(
    "--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of a request."
)
@click.option(
    "--duration",
    type=click.FloatRange(0.1, 86400),
    default=10.0,
    show_default=True,
    help="Seconds of each load; with --compare, of each row and batch size.",
)
@click.option(
    "--warm-up-time",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Seconds of the same load before, which do not count.",
)
@click.option(
    "--tensors",
    type=click.Choice(["binary", "json"]),
    default="binary",
    show_default=True,
    help="How tensors travel.",
)
@click.option(
    "--length",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Of dimensions that vary, besides the batch, where no bundle gives inputs.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Also draw latency over throughput.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Instead of an agent, measure every variant of the bundle that this device can open, each "
    "in a process of its own.",
)
@click.option(
    "--framework",
    metavar="SOURCE",
    help="With --compare: the original model as well, from package.module:factory or a Hugging "
    "Face folder; needs edge-kit[host].",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@config_options(*_KEYS)
def bench(
    *,
    url: str | None,
    model: str | None,
    compare: bool,
    framework: str | None,
    plot: Path | None,
    as_json: bool,
    connections: tuple[int, ...] | None,
    rates: tuple[float, ...] | None,
    rows: int,
    duration: float,
    warm_up_time: float,
    tensors: str,
    length: int,
    **flags: object,
) -> int:
    """Measure an agent under load: latency, throughput, batches, shares; and say what to change.

    With --bundle and without --url, an agent is started for it, with all the flags of `serve`, and
    stopped afterwards. With both, the bundle only gives real inputs.
    """
    given = given_only(flags)
    _check(given, url=url, compare=compare, framework=framework, plot=plot)
    configure_logging("warning", os.environ)
    stop_on_sigterm()
    if compare:
        return _compare(given, model, framework, duration, as_json=as_json)
    from edge.bench.measure import BenchPlan

    plan = BenchPlan(
        connections=connections or (() if rates else (1, 8, 32)),
        rates=rates or (),
        rows=rows,
        seconds=duration,
        warm_up_s=warm_up_time,
        binary=tensors == "binary",
        length=length,
    )
    with _subject(given, url, model) as subject:
        return _measure(subject, plan, plot, as_json=as_json)


def _check(
    given: dict[str, object],
    *,
    url: str | None,
    compare: bool,
    framework: str | None,
    plot: Path | None,
) -> None:
    if framework is not None and not compare:
        raise UsageError("--framework goes with --compare")
    if compare and url is not None:
        raise UsageError("--compare opens a bundle itself; leave out --url")
    if compare and plot is not None:
        raise UsageError("--plot draws loads on an agent; leave it out with --compare")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {plot}: there is no folder {plot.parent}")
    starts = compare or (url is None and "bundle" in given)
    if not starts:
        wrong = sorted(key for key in given if key not in _OF_A_BUNDLE)
        if wrong:
            raise UsageError(
                f"{flag_from_key(wrong[0])} is for an agent that bench starts; give --bundle and "
                "leave out --url, or start yours with it"
            )


def _compare(
    given: dict[str, object],
    model: str | None,
    framework: str | None,
    seconds: float,
    *,
    as_json: bool,
) -> int:
    config = load_config(given, os.environ, read_config_file)
    from edge.bench.compare import compare, compare_tables

    rows = compare(config, model=model, framework=framework, seconds=seconds, say=say)
    print_json({"rows": rows}) if as_json else click.echo(compare_tables(rows))
    return 0


def _measure(subject: Subject, plan: BenchPlan, plot: Path | None, *, as_json: bool) -> int:
    from edge.bench.advice import advise
    from edge.bench.measure import bench as measure
    from edge.bench.measure import served_by
    from edge.bench.measurements import Measurements
    from edge.bench.plot import svg_from_points
    from edge.bench.report import advice_lines, agent_table, batch_lines, latency_table
    from edge.files import storage_errors

    served = served_by(subject)
    points = measure(subject, plan, say=say)
    measured = Measurements(served=served, points=points)
    advice = advise(measured)
    title = f"{served.model}, variant {served.variant}, {plan.rows} rows a request"
    if plot is not None:
        with storage_errors("write", plot):
            plot.write_text(svg_from_points(points, title), encoding="utf-8")
    if as_json:
        print_json({"served": served, "points": points, "advice": advice})
    else:
        where = "GPU" if served.on_gpu else "CPU"
        how = "binary" if plan.binary else "JSON"
        click.echo(f"{title}, {served.backend} on the {where}, tensors in {how}\n")
        parts = (latency_table(points), agent_table(points), batch_lines(points))
        click.echo("\n\n".join(filter(None, (*parts, advice_lines(advice)))))
    return 0 if any(point.answers for point in points) else 1


@contextlib.contextmanager
def _subject(given: dict[str, object], url: str | None, name: str | None) -> Iterator[Subject]:
    """Yield the agent to measure; one that was started here is stopped afterwards."""
    from edge.bench.measure import Subject, model_named
    from edge.http_client import address_from_url

    if url is not None or "bundle" not in given:
        address = address_from_url(url or DEFAULT_URL)
        if address.scheme != "http" or address.prefix:
            raise UsageError(f"--url {url!r} is not http://HOST:PORT, and a load goes nowhere else")
        name = model_named(address, name)
        yield Subject(address=address, name=name, **_inputs(_bundle(given), name))
        return
    import psutil

    from edge.agent_process import agent_process

    config = load_config(given, os.environ, read_config_file)
    bundle = _bundle(given)
    started = replace(config, host="127.0.0.1", port=0)
    flags = flags_from_config(started)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        say("starting an agent")
        with agent_process(Path(folder), flags, timeout_s=config.build_timeout_s) as (here, child):
            address = address_from_url(here)
            name = model_named(address, name)
            yield Subject(
                address=address,
                name=name,
                process=psutil.Process(child.pid),
                config=config,
                **_inputs(bundle, name),
            )


def _bundle(given: dict[str, object]) -> Bundle | None:
    if "bundle" not in given:
        return None
    from edge.bench.opened import verified_bundle

    known = {key: value for key, value in given.items() if key in _OF_A_BUNDLE}
    return verified_bundle(load_config(known, os.environ, read_config_file))


def _inputs(bundle: Bundle | None, name: str) -> dict[str, Any]:
    """Return the model of a bundle at hand, and what reads its files."""
    if bundle is None:
        return {}
    from edge.bench.opened import model_in, reader

    return {"model": model_in(bundle, name), "read": reader(bundle)}
