"""A channel made by `edge-kit`, and devices that follow it with `edge-agent`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from edge.bundle import open_bundle
from edge.cli import cli as edge_agent
from edge.errors import EdgeError
from edge.slots.store import Store
from edge.target import Target
from edge.trust import trusted_keys_in
from edge.update.one_pass import Outcome, Surroundings, Wishes, run_pass
from edge.update.origin import Origin
from edge.update.place import origin_from_url
from edge.update.settings import Followed
from host_tools.cli import cli as edge_kit
from tests.bundles import TestKey, affine_parts, make_key, write_bundle

PRODUCT = "affine-bundle"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended: exit code, its JSON if it printed any, its error."""

    code: int
    said: Any
    error: EdgeError | None


def run(command: Any, *words: object, is_json: bool = True) -> Ran:
    """Run a command line in this process, as its console script would."""
    texts = [str(word) for word in words]
    result = CliRunner().invoke(command, texts, standalone_mode=False)
    if isinstance(result.exception, EdgeError):
        printed = json.loads(result.stdout) if is_json and result.stdout else None
        return Ran(code=result.exception.exit_code, said=printed, error=result.exception)
    if result.exception is not None:
        raise result.exception
    said = json.loads(result.stdout) if is_json else result.stdout
    return Ran(code=result.return_value or 0, said=said, error=None)


class Site:
    """A publisher: a folder with the channel, the keys of its roles, and keys for bundles."""

    def __init__(self, root: Path, *options: object, product: str = PRODUCT) -> None:
        self.root, self.channel, self.keys = root, root / "channel", root / "keys"
        self.product = product
        self.release_key = self.new_bundle_key("release")
        made = self.run("init", self.channel, "--product", product, "--keys", self.keys,
                        "--bundle-key", root / "release.pub", *options)  # fmt: skip
        assert made.code == 0, made.error
        self.anchor = root / "anchor.json"
        self.anchor.write_bytes((self.channel / "metadata/1.root.json").read_bytes())

    def run(self, verb: str, *words: object) -> Ran:
        return run(edge_kit, "channel", verb, *words, "--json")

    def change(self, verb: str, *words: object) -> Ran:
        """Run a verb that changes the channel with all its keys; it must succeed."""
        ran = self.run(verb, self.channel, *words, "--keys", self.keys)
        assert ran.code == 0, ran.error
        return ran

    def new_bundle_key(self, name: str) -> TestKey:
        key = make_key()
        (self.root / f"{name}.pub").write_bytes(key.public_pem)
        return key

    def new_role_key(self, name: str) -> Path:
        """Make a key beside the others and return its public file."""
        assert run(edge_kit, "keygen", name, "--out", self.keys, is_json=False).code == 0
        return self.keys / f"{name}.pub"

    def bundle(
        self,
        version: str,
        *,
        files: dict[str, bytes] | None = None,
        key: TestKey | None = None,
        name: str | None = None,
        scale: float | None = None,
    ) -> Path:
        """Write a signed bundle of the affine model, with more files, and return its folder."""
        manifest, parts = affine_parts(scale=scale or float(len(version) + sum(map(ord, version))))
        values: dict[str, Any] = {"version": version, "name": name or self.product}
        folder = self.root / f"bundle-{version}-{len(list(self.root.iterdir()))}"
        return write_bundle(
            folder, replace(manifest, **values), {**parts, **(files or {})}, key or self.release_key
        )

    def release(self, version: str, *words: object, **options: Any) -> str:
        """Publish a bundle, promote it, and return its id."""
        published = self.change("publish", self.bundle(version, **options))
        self.change("promote", published.said["release"], *words)
        return str(published.said["release"])


class Device:
    """A device with an empty store; follows a channel by an address or a folder."""

    def __init__(self, root: Path, anchor: Path, channel: str | Path) -> None:
        self.root, self.slots, self.keys = root, root / "slots", root / "trusted-keys"
        self.anchor, self.channel = anchor, channel
        root.mkdir(parents=True)

    def update(self, *words: object) -> Ran:
        return run(edge_agent, "update", *self._flags(), *words, "--json")

    def _flags(self) -> tuple[object, ...]:
        return ("--channel", self.channel, "--channel-root", self.anchor, "--slots", self.slots,
                "--trusted-keys", self.keys, "--device", self.root.name)  # fmt: skip

    def install(self, *words: object) -> Ran:
        """Do a pass, and commit what it staged, as a gate that is content would."""
        ran = self.update("--stage-only", *words)
        if ran.said["verdict"] == "staged":
            store = Store.open(self.slots)
            with store.changing("test"):
                store.begin_trial()
                assert store.state.coming is not None
                store.commit(store.state.coming.id)
        return ran

    def roll_back(self) -> None:
        store = Store.open(self.slots)
        store.begin_trial()
        store.roll_back("it does not see")

    @property
    def served(self) -> str | None:
        """The version of the bundle in service, every byte of which was just verified."""
        state = Store.open(self.slots).state
        if state.serving is None:
            return None
        path = Store.open(self.slots).slot_path(state.serving)
        opened = open_bundle(path, trusted_keys_in(self.keys), is_slot=True)
        return opened.manifest.version


def passed(
    follower: Device,
    target: Target,
    gate: Callable[[Store], bool],
    origin: Origin | None = None,
) -> Outcome:
    """Do a pass as a machine that this one is not, or with an origin of one's own."""
    wishes = Wishes(
        slots=follower.slots,
        trusted_keys=follower.keys,
        followed=Followed(
            channel=str(follower.channel), channel_root=follower.anchor, follow="stable",
            device=follower.root.name, bytes_per_s=None,
        ),
    )  # fmt: skip
    around = Surroundings(
        origin=origin or origin_from_url(str(follower.channel)), target=target,
        now=datetime.now(tz=timezone.utc), gate=gate, say=lambda line: None,
    )  # fmt: skip
    return run_pass(wishes, around)


def content_gate(store: Store) -> bool:
    """A gate that is content with everything."""
    store.begin_trial()
    assert store.state.coming is not None
    store.commit(store.state.coming.id)
    return True
