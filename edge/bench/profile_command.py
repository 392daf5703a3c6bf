"""`edge-agent profile`: where the time of one run goes, layer by layer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from edge.config_options import config_options, given_only
from edge.config_sources import load_config, read_config_file
from edge.console import configure_logging, print_json, say

if TYPE_CHECKING:
    from edge.bench.measurements import LayerTimes

_KEYS = (
    "bundle", "slots", "trusted_keys", "allow_unsigned", "intra_op_threads", "cache",
    "cache_bytes", "build_on_device", "build_timeout_s", "open_timeout_s", "variant",
)  # fmt: skip


@click.command()
@config_options(*_KEYS)
@click.option("--model", metavar="NAME", help="Model to profile, where the bundle has several.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Rows of a run. [default: what the profile was made for]",
)
@click.option(
    "--runs", type=click.IntRange(1, 10_000), default=100, show_default=True, help="To average."
)
@click.option("--json", "as_json", is_flag=True, help="Print the times and the advice as JSON.")
def profile(
    *, model: str | None, rows: int | None, runs: int, as_json: bool, **flags: object
) -> None:
    """Time every layer of the variant that this device would serve, and say what to change.

    Opens the model of a bundle without an agent, and feeds it rows of the golden set.
    """
    config = load_config(given_only(flags), os.environ, read_config_file)
    configure_logging("warning", os.environ)
    from edge.bench.layer_times import profile_model
    from edge.bench.opened import model_in, verified_bundle

    bundle = verified_bundle(config)
    times = profile_model(bundle, model_in(bundle, model), config, rows=rows, runs=runs, say=say)
    print_times(times, as_json=as_json)


def print_times(times: LayerTimes, *, as_json: bool) -> None:
    """Print where the time of a run goes, and what to change."""
    from edge.bench.advice import advise
    from edge.bench.measurements import Measurements
    from edge.bench.report import advice_lines, layer_tables

    advice = advise(Measurements(profile=times))
    if as_json:
        print_json({"profile": times, "advice": advice})
        return
    click.echo(layer_tables(times))
    click.echo("\n" + advice_lines(advice))
