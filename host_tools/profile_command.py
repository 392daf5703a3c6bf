"""`edge-kit profile`: where the time of the original torch module goes."""

from __future__ import annotations

import click


@click.command()
@click.argument("source")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Of a run.")
@click.option(
    "--runs", type=click.IntRange(1, 10_000), default=50, show_default=True, help="To average."
)
@click.option("--threads", type=click.IntRange(1), help="Of torch. [default: its own choice]")
@click.option("--json", "as_json", is_flag=True, help="Print the times and the advice as JSON.")
def profile(source: str, rows: int, runs: int, threads: int | None, as_json: bool) -> None:
    """Time the operators of SOURCE in PyTorch, before anything is exported.

    SOURCE is package.module:factory or a Hugging Face model folder. `edge-agent profile` shows the
    layers of what a device runs.
    """
    from edge.bench.profile_command import print_times
    from host_tools.torch_profile import profile_source

    times = profile_source(source, rows=rows, runs=runs, threads=threads)
    print_times(times, as_json=as_json)
