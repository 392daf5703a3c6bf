"""The commands of `edge-kit` that make, sign and look at bundles."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.console import print_json, say
from edge.errors import UsageError
from host_tools.registry.command import register, registry_option
from host_tools.terminal import ANY_PATH, FILE, FOLDER, console

if TYPE_CHECKING:
    from edge.manifest import Manifest


@click.command()
@click.argument("name")
@click.option("--out", type=FOLDER, default=".", show_default=True, help="Folder for both files.")
@click.option("--json", "as_json", is_flag=True, help="Print paths and key id as JSON.")
def keygen(name: str, out: Path, as_json: bool) -> None:
    """Make the signing key NAME.key and its public part NAME.pub."""
    from host_tools.keys import generate_keys, key_id

    private, public = generate_keys(name, out)
    if as_json:
        print_json({"private": private, "public": public, "key_id": key_id(public)})
        return
    click.echo(f"wrote {private} (keep it secret) and {public} (install it on the devices)")
    click.echo(f"key id {key_id(public)}")


@click.command()
@click.argument("model", type=ANY_PATH, required=False)
@click.option(
    "--from-mlflow",
    metavar="models:/NAME@ALIAS",
    help="In place of MODEL: a version in a model registry, or models:/NAME/VERSION.",
)
@registry_option
@click.option("--int8", type=FILE, help="Quantized model that `calibrate` wrote from MODEL.")
@click.option("--table", type=FILE, help="Its calibration table, if it is not beside it.")
@click.option("--engines", type=FOLDER, help="Folder that `build` wrote from MODEL.")
@click.option(
    "--golden",
    type=ANY_PATH,
    help="Real samples for the self-test, as for `calibrate --data`; a chat model brings its own.",
)
@click.option(
    "--drift-data",
    type=ANY_PATH,
    help="Samples as the model will be asked, that it was not trained on: the agent compares "
    "requests with them. [default: those of --golden]",
)
@click.option(
    "--tokenizer",
    type=ANY_PATH,
    help="Model folder or tokenizer.json: reads text samples, and goes into the bundle if MODEL "
    "carries none; /predict then takes texts.",
)
@click.option(
    "--class-names",
    type=FILE,
    help="Of a classifier or detector: a line a class; /predict then answers with names.",
)
@click.option(
    "--detection",
    metavar="BOXES",
    help="Of a detector: yolo, yolo-end2end, yolov5, detr, rtdetr or ssd, each with ,KEY=VALUE "
    "changes, or a .json file; /predict then answers with boxes.",
)
@click.option(
    "--embedding",
    metavar="OUTPUT",
    help="Of an encoder: the output with a vector a text, for /v1/embeddings. The export of a "
    "sentence-transformers folder says so itself.",
)
@click.option("--name", required=True, help="Name of the bundle and of the model in it.")
@click.option(
    "--bundle-version",
    "version",
    default="1",
    show_default=True,
    help="A short text, for people.",
)
@click.option(
    "--model-version",
    default="1",
    show_default=True,
    help="That clients may ask for, as in /v2/models/NAME/versions/VERSION.",
)
@click.option("--key", type=FILE, help="Private key; without it the bundle stays unsigned.")
@click.option("--threads", type=click.IntRange(1), help="For the measurement; default: all CPUs.")
@click.option(
    "--force",
    is_flag=True,
    help="Pack a chat model that does not fit the devices its engines are for as well.",
)
@click.option("--out", type=FOLDER, required=True, help="Bundle folder; must not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def pack(
    model: Path | None,
    from_mlflow: str | None,
    registry: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Pack MODEL, and its INT8 form, into a bundle.

    MODEL is an .onnx file that `export` wrote, or a folder that `export-chat` wrote.
    """
    from host_tools.pack import PackRequest
    from host_tools.pack import pack as pack_bundle

    if (model is None) == (from_mlflow is None):
        raise UsageError("give either MODEL or --from-mlflow models:/NAME@ALIAS")
    with contextlib.ExitStack() as stack:
        if from_mlflow is not None:
            from host_tools.registry.fetch import fetch_model

            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found = fetch_model(from_mlflow, scratch, registry=registry)
            say(f"fetched {found.reference}")
            model, options["source"] = found.path, found.reference
        assert model is not None  # noqa: S101 - one of both was given
        packed = pack_bundle(PackRequest(fp32=model, **options), say=say)
    if as_json:
        print_json(packed.manifest)
        return
    click.echo(_written(packed.out, packed.manifest, signed=packed.signed))


@click.command()
@click.argument("bundles", type=FOLDER, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--out", type=FOLDER, required=True, help="Bundle folder; must not exist.")
@click.option("--name", required=True, help="Name of the new bundle; models keep theirs.")
@click.option(
    "--bundle-version",
    "version",
    default="1",
    show_default=True,
    help="A short text, for people.",
)
@click.option("--key", type=FILE, help="Private key; without it the bundle stays unsigned.")
@click.option(
    "--trusted-keys", type=FOLDER, help="Folder of .pub files that may have signed each BUNDLE."
)
@click.option(
    "--allow-unsigned",
    is_flag=True,
    help="Take bundles that are unsigned or of an unknown signer; --key then vouches for them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def combine(as_json: bool, **options: Any) -> None:
    """Combine the models of each BUNDLE into one, with one signature, for one agent."""
    from host_tools.combine import CombineRequest
    from host_tools.combine import combine as combine_bundles

    made = combine_bundles(CombineRequest(**options))
    if as_json:
        print_json(made.manifest)
        return
    click.echo(_written(made.root, made.manifest, signed=made.signed_by is not None))


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--key", type=FILE, required=True, help="Private key that `keygen` wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print bundle and key as JSON.")
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign BUNDLE, replacing an earlier signature."""
    from host_tools.keys import sign_bundle

    sign_bundle(bundle, key)
    if as_json:
        print_json({"bundle": bundle, "key": key})
        return
    click.echo(f"signed {bundle} with {key}")


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option(
    "--trusted-keys", type=FOLDER, required=True, help="Folder of .pub files that may sign."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def verify(bundle: Path, trusted_keys: Path, as_json: bool) -> None:
    """Check BUNDLE as a device does: signature, then every byte."""
    from edge.bundle import open_bundle
    from edge.errors import EdgeError
    from edge.trust import trusted_keys_in

    try:
        opened = open_bundle(bundle, trusted_keys_in(trusted_keys))
    except EdgeError as error:
        if as_json:
            print_json({"ok": False, "code": error.code, "error": str(error)})
        raise
    manifest, signer = opened.manifest, opened.signed_by
    assert signer is not None  # noqa: S101 - open_bundle refuses unsigned bundles here
    if as_json:
        facts = {"name": manifest.name, "version": manifest.version, "signed_by": signer.keyid}
        print_json({"ok": True, **facts})
        return
    click.echo(
        f"{bundle}: {manifest.name} {manifest.version}, {len(manifest.artifacts)} files intact, "
        f"signed by {signer.keyid[:12]} ({signer.name})"
    )


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest itself.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds, without judging its signature (see `verify`)."""
    from host_tools.describe import print_manifest, read_manifest

    content, manifest, signature = read_manifest(bundle)
    if as_json:
        click.echo(content, nl=False)
        return
    print_manifest(manifest, signature, console())


def _written(root: Path, manifest: Manifest, *, signed: bool) -> str:
    from host_tools.describe import stored_bytes

    models = ", ".join(f"{model.name} {model.version}" for model in manifest.models)
    files = f"{len(manifest.artifacts)} files, {stored_bytes(manifest):,} bytes"
    state = "signed" if signed else "unsigned: sign it with `edge-kit sign`"
    return f"wrote {root}: {models}; {files}, {state}"


BUNDLE_COMMANDS = (keygen, pack, register, combine, sign, verify, inspect)
