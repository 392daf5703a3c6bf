"""The steps that set up a device, each of them safe to repeat and to cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import List, Optional, Tuple

from host_tools.flash.device.facts import (
    AGENTS,
    CURRENT,
    PAYLOAD,
    SCHEMA,
    SLOTS,
    current_agent,
    described,
    facts,
    refusal,
)
from host_tools.flash.device.files import (
    NEEDS,
    USAGE,
    Json,
    StopError,
    inside,
    is_digest,
    is_whole,
    link,
    linked,
    received_bytes,
    remove,
    resolved,
    text_of,
    write,
)
from host_tools.flash.device.machine import CONFIG, KEYS, READY_S, Answer, Machine, Say
from host_tools.flash.device.pending import PENDING, note_pending, settle

UNITS = "etc/systemd/system"
BOOT_UNIT = "edge-setup.service"
SCRIPT_NAME = "device_setup.pyz"
DOCUMENT_NAME = "payload.json"
MAX_DOCUMENT_BYTES = 8 << 20
# Kept beside the payload: how it was before.
BEFORE = "before.json"
_UNIT = """\
# Finishes what `edge-kit flash` began: at the first boot of an image, or after a power cut.
[Unit]
Description=Edge Kit: install the agent and the bundle in {payload}
ConditionPathExists={payload}/{pending}
After=local-fs.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {payload}/{script} apply {payload} --boot
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""


class Setup:
    """One run: what is wanted, of which system, and what was done so far."""

    def __init__(
        self, payload: Path, document: bytes, root: Path, *, say: Say, dry_run: bool = False
    ) -> None:
        self.payload, self.root, self.dry_run, self._say = payload, root, dry_run, say
        self.document, self.wanted = document, _wanted(document)
        self.machine = Machine(root, say)
        self.steps: List[Json] = []
        self.gate: Optional[Json] = None  # how the trial was judged, if there was one
        self.folder = root / AGENTS / self.wanted["agent"]
        self.program = self.folder / "bin/edge-agent"

    @property
    def changed(self) -> bool:
        """Whether a step has changed something, or would."""
        return any(step["changed"] for step in self.steps)

    def apply(
        self, *, again: bool = False, ignore_doctor: bool = False, ready_s: float = READY_S
    ) -> None:
        """Take every step; raises StopError where one cannot be taken."""
        device = facts(self.root)
        reason = refusal(device, self.wanted)
        if reason is not None:
            raise StopError("refused", reason)
        self._config()  # one that cannot be merged with is refused before anything is written
        self._step("check", False, described(device))
        if not self.dry_run:
            self._need(self._missing_files())
        self._place_keys()
        self._place_boot_unit(self.root)
        self._make_agent(device)
        if self.dry_run:
            self._plan(device)
            return
        self._examine(ignore=ignore_doctor)
        self._need(self._missing_blobs(again=again))
        self._note(again=again, ignore_doctor=ignore_doctor)
        self._switch(ready_s)
        self._install_bundle(again=again, ready_s=ready_s)
        self._clean()
        if self.machine.manager is None:
            reason = "there is no systemd here, so that nothing serves or tries the bundle"
            raise StopError("staged", reason + "; run edge-agent serve and edge-agent gate")

    def place(self) -> None:
        """Write what needs no program of the device; the rest is left to its first boot."""
        blobs = [_file_of(blob) for blob in self.wanted["blobs"]]
        if not self.dry_run:
            self._need(self._missing_files() + [b for b in blobs if not is_whole(self.payload, b)])
        self._place_keys()
        self._place_boot_unit(Path("/"))
        if not self.dry_run:
            self._note(again=False, ignore_doctor=False)
        self._step("first boot", False, BOOT_UNIT + " makes the agent and installs the bundle")

    def _note(self, **flags: bool) -> None:
        note_pending(self.payload, self.document, self.machine.slots(), **flags)

    def _place_keys(self) -> None:
        """Add the keys that may sign; those that are there already stay."""
        new = []
        for file in self.wanted["files"]:
            folder, _, name = file["path"].partition("/")
            if folder != "keys" or self._has_key(name, file):
                continue
            # Another key of this name may have signed what the device goes back to.
            if os.path.lexists(str(resolved(self.root, KEYS) / name)):
                name = _second_name(name, file)
            new.append(name)
            if not self.dry_run:
                write(resolved(self.root, KEYS) / name, (self.payload / file["path"]).read_bytes())
        self._step("keys", bool(new), ", ".join(new))

    def _has_key(self, name: str, file: Json) -> bool:
        paths = [resolved(self.root, KEYS) / one for one in (name, _second_name(name, file))]
        return any(path.is_file() and is_digest(path, file) for path in paths)

    def _place_boot_unit(self, runtime_root: Path) -> None:
        """Write and enable the unit that finishes a setup at boot."""
        path = resolved(self.root, UNITS) / BOOT_UNIT
        payload = runtime_root / PAYLOAD
        text = _UNIT.format(payload=payload, pending=PENDING, script=SCRIPT_NAME)
        enabled = resolved(self.root, UNITS + "/multi-user.target.wants") / BOOT_UNIT
        new = text_of(path) != text.rstrip("\n") or linked(enabled) != "../" + BOOT_UNIT
        if new and not self.dry_run:
            write(path, text.encode())
            link(enabled, "../" + BOOT_UNIT)
        self._step("boot unit", new, BOOT_UNIT)

    def _make_agent(self, device: Json) -> None:
        """Make the agent's venv, beside the one that is in use."""
        complete = self.folder / ".complete"
        if complete.exists() or self.dry_run:
            return self._step("agent", not complete.exists(), self.folder.name)
        self._say("agent: making " + str(self.folder))
        remove(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        listed = [f["path"] for f in self.wanted["files"] if f["path"].startswith("wheels/")]
        wheels = [str(self.payload / path) for path in listed]
        pip = next((path for path in wheels if "/pip-" in path), None)
        if pip is None:
            raise StopError("refused", "there is no pip among the wheels; make a wheelhouse", USAGE)
        # apt installs JetPack's TensorRT for the system's own Python.
        site = ["--system-site-packages"] if device["jetpack"] else []
        python = device["pythons"][self.wanted["python"]]
        self.machine.run([python, "-m", "venv", "--without-pip", *site, str(self.folder)])
        self.machine.run(
            [str(self.folder / "bin/python"), "-m", "pip", "--isolated", "install", "--quiet"]
            + ["--no-index", "--no-deps", "--ignore-installed", "--no-cache-dir"]
            + ["--disable-pip-version-check", "--root-user-action=ignore"]
            + [path for path in wheels if path != pip],
            PYTHONPATH=pip,
        )
        self.machine.agent(self.program, "--version")
        os.sync()
        write(complete, b"")
        return self._step("agent", True, self.folder.name)

    def _examine(self, *, ignore: bool) -> None:
        """Let the new agent look for what would keep this device from serving."""
        told = self.machine.agent(self.program, "doctor", "--json", may_fail=True).json()
        problems = [f for f in told.get("findings", ()) if f["state"] == "problem"]
        lines = ["{name}: {detail}; {help}".format(**finding) for finding in problems]
        for line in lines:
            self._say("doctor: " + line)
        if lines and not ignore:
            raise StopError("refused", "doctor: {}; --ignore-doctor goes on".format(lines[0]))
        self._step("doctor", False, "{} problems".format(len(lines)))

    def _switch(self, ready_s: float) -> None:
        """Let the new agent serve what is committed, or the old one again if it cannot."""
        before = self.payload / BEFORE
        config, is_new = self._config()
        target = "agents/" + self.folder.name
        if not is_new and linked(self.root / CURRENT) == target and not before.exists():
            return self._step("switch", False)
        if not before.exists():
            # Written once, so that a second try knows the way back as well.
            old = {
                "target": linked(self.root / CURRENT),
                "config": _exact_text(self.root / CONFIG),
                "ready": self.machine.is_ready(),
            }
            write(before, json.dumps(old).encode())
        old = json.loads(before.read_text())
        try:
            write(self.root / CONFIG, config.encode())
            link(self.root / CURRENT, target)
            self.machine.install_units()
            if self._served() is not None:
                self.machine.start_agent("restart")
            # Who served nothing before is judged by the trial of the bundle.
            if old["ready"]:
                self.machine.wait_ready(ready_s)
        except (StopError, OSError) as error:
            self._switch_back(old)
            remove(before)
            raise StopError("rolled-back", "{}; the agent is as before".format(error)) from error
        remove(before)
        return self._step("switch", True, "from {}".format(old["target"] or "nothing"))

    def _switch_back(self, old: Json) -> None:
        if old["target"] is None:
            remove(self.root / CURRENT)
        else:
            link(self.root / CURRENT, old["target"])
        if old["config"] is not None:
            write(self.root / CONFIG, old["config"].encode())
        if old["target"] is not None:
            self.machine.install_units()
            self.machine.start_agent("restart")

    def _missing_blobs(self, *, again: bool) -> List[Json]:
        """Return the blobs that this device needs and has neither installed nor here."""
        answer = self._install("--dry-run", *["--again"] * again)
        told = answer.json()
        if told.get("problem"):
            raise StopError("refused", told["problem"])
        if "missing" not in told:
            raise StopError("failed", "edge-agent install --dry-run: {}".format(answer.last_line))
        files = [_file_of(blob) for blob in told["missing"]]
        return [file for file in files if not is_whole(self.payload, file)]

    def _install_bundle(self, *, again: bool, ready_s: float) -> None:
        """Stage, try and commit the bundle; the gate decides, and its report says why not."""
        words = ["--again"] * again
        if self.machine.manager is None:
            # Nothing here could start an agent for the trial.
            words.append("--stage-only")
        with self.machine.starting_at_trial():
            answer = self._install(*words, heard=True)
        told = answer.json()
        self.gate = told.get("report")
        name = "{name} {version}".format(**self.wanted["bundle"])
        if answer.status:
            went_back = told.get("result") == "rolled-back"
            reason = told.get("reason") or answer.last_line
            if self._served() is not None:
                reason += self._back_in_service(ready_s)
            raise StopError(
                "rolled-back" if went_back else "failed", "{}: {}".format(name, reason), report=told
            )
        # Whatever comes now, a later boot must not install this bundle over a newer one.
        settle(self.payload)
        if self.machine.manager is not None:
            self.machine.start_agent()
            self.machine.wait_ready(ready_s)
        self._step("bundle", told.get("result") != "unchanged", name)

    def _back_in_service(self, ready_s: float) -> str:
        """Wait for the bundle from before; return what to add to the reason if it is not back."""
        self.machine.start_agent()
        try:
            self.machine.wait_ready(ready_s)
        except StopError as error:
            return "; and then {}".format(error)
        return ""

    def _install(self, *words: str, heard: bool = False) -> Answer:
        bundle = str(self.payload / "bundle")
        return self.machine.agent(
            self.program, "install", bundle, *words, "--json", may_fail=True, heard=heard
        )

    def _plan(self, device: Json) -> None:
        """Tell what would follow, without asking an agent that may not be there yet."""
        config_is_new = self._config()[1]
        is_new = config_is_new or device["agent"] != self.folder.name
        self._step("switch", is_new, "from {}".format(device["agent"] or "nothing"))
        there = set(device["blobs"])
        blobs = [blob for blob in self.wanted["blobs"] if blob["sha256"] not in there]
        size = sum(blob["size"] for blob in blobs) / (1 << 20)
        detail = "at most {} blobs, {:.1f} MiB to send".format(len(blobs), size)
        self._step("bundle", self._served() != self.wanted["bundle"]["id"], detail)

    def _served(self) -> Optional[str]:
        """Return the id of the bundle that is committed here."""
        state = self.machine.slots()
        committed = state.get(state.get("committed", ""))
        return None if committed is None else str(committed["id"])

    def _config(self) -> Tuple[str, bool]:
        """Return the configuration, wanted keys above those there, and whether it is new."""
        path = self.root / CONFIG
        remedy = "mend it or move it away, and flash again"
        try:
            there = json.loads(_exact_text(path) or "{}")
        except ValueError as error:
            reason = "{} is not JSON in UTF-8: {}; {}".format(path, error, remedy)
            raise StopError("refused", reason) from error
        if not isinstance(there, dict):
            raise StopError("refused", "{} does not hold an object; {}".format(path, remedy))
        own = {"slots": str(self.root / SLOTS), "trusted_keys": str(self.root / KEYS)}
        config = {**there, **self.wanted["config"], **own}
        return json.dumps(config, indent=1, sort_keys=True) + "\n", config != there

    def _clean(self) -> None:
        """Remove what has its place elsewhere now, and agents that nobody goes back to."""
        agents = sorted((self.root / AGENTS).iterdir(), key=lambda path: path.stat().st_mtime)
        for path in agents[:-2]:
            if path.name != current_agent(self.root):
                remove(path)
        for name in ("wheels", "bundle/blobs"):
            remove(self.payload / name)

    def _need(self, missing: List[Json]) -> None:
        if missing:
            needs = [{**f, "received": received_bytes(self.payload / f["path"])} for f in missing]
            raise StopError("needs", "{} files".format(len(needs)), NEEDS, needs=needs)

    def _missing_files(self) -> List[Json]:
        """Return the files of the payload that later steps need and that are not whole here."""
        made = (self.folder / ".complete").exists()
        files = [f for f in self.wanted["files"] if not (made and f["path"].startswith("wheels/"))]
        return [file for file in files if not is_whole(self.payload, file)]

    def _step(self, name: str, changed: bool, detail: str = "") -> None:
        self.steps.append({"step": name, "changed": changed, "detail": detail})
        word = ("would change" if self.dry_run else "changed") if changed else "unchanged"
        self._say("{}: {}{}".format(name, word, detail and " (" + detail + ")"))


def _wanted(document: bytes) -> Json:
    """Return the content of payload.json; raises StopError if it is none that is known here."""
    try:
        wanted = json.loads(document.decode())
        schema = wanted["schema"]
        paths = [f["path"] for f in wanted["files"]] + [
            _file_of(b)["path"] for b in wanted["blobs"]
        ]
        paths.append(wanted["agent"])
    except (ValueError, KeyError, TypeError) as error:
        raise StopError(
            "refused", "payload.json is malformed: {!r}".format(error), USAGE
        ) from error
    if schema != SCHEMA:
        raise StopError("refused", "payload.json has schema {!r}, not 1".format(schema), USAGE)
    for path in paths:
        inside(Path(), path)
    return dict(wanted)


def _exact_text(path: Path) -> Optional[str]:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _file_of(blob: Json) -> Json:
    return {
        "path": "bundle/blobs/sha256/" + blob["sha256"],
        "size": blob["size"],
        "sha256": blob["sha256"],
    }


def _second_name(name: str, file: Json) -> str:
    """Return the name of a key whose own is taken by another key."""
    stem, dot, ending = name.rpartition(".")
    return "{}-{}{}{}".format(stem, file["sha256"][:16], dot, ending)
