"""`edge-kit register`: notes a bundle in a model registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edge.console import print_json
from host_tools.terminal import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

registry_option = click.option(
    "--registry",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="Of MLflow, such as sqlite:///mlflow.db or https://HOST. [default: MLFLOW_TRACKING_URI]",
)


@click.command()
@click.argument("bundle", type=FOLDER)
@registry_option
@click.option("--name", help="Of the registered model. [default: the bundle's name]")
@click.option("--alias", help="Point this alias at the version.")
@click.option(
    "--training-run",
    metavar="RUN_ID",
    help="That the model comes from. [default: that of the model given to `pack --from-mlflow`]",
)
@click.option(
    "--trusted-keys", type=FOLDER, help="Folder of .pub files that may have signed BUNDLE."
)
@click.option("--allow-unsigned", is_flag=True, help="Register what nobody known has signed.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the registration as JSON.")
def register(bundle: Path, as_json: bool, **options: Any) -> None:
    """Note BUNDLE in a model registry: its digest, parameters, metrics, and where it comes from.

    A bundle that is there already is left as it is, so this may be repeated.
    """
    from host_tools.registry.register import RegisterRequest
    from host_tools.registry.register import register as note

    found = note(RegisterRequest(bundle=bundle, **options))
    if as_json:
        print_json(found)
        return
    if found.version is None:
        click.echo(
            f"would register {found.name}: sha256 {found.bundle_sha256}, {len(found.params)} "
            f"parameters, {len(found.metrics)} metrics, training run {found.training_run or '-'}"
        )
        return
    state = "registered" if found.is_new else "was there already"
    click.echo(f"models:/{found.name}/{found.version}: {state}, sha256 {found.bundle_sha256}")
