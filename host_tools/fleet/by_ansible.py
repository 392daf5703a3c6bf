"""Devices set up by Ansible: a project folder that stands alone, and a Way that runs it.

    ansible.cfg rollout.yml roles/edge_kit   as they lie in `playbooks`
    inventory.json                           the devices, as Ansible names them
    payload/                                 what each of them is set up with

ansible-runner starts `ansible-playbook` and hands its events over; Ansible itself is not imported.
"""

from __future__ import annotations

import io
import json
import math
import os
import queue
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edge.errors import BackendUnavailableError
from edge.files import atomic_file, atomic_write, open_regular, storage_errors
from host_tools.flash.device.steps import DOCUMENT_NAME
from host_tools.flash.payload import Payload, Source
from host_tools.flash.script import SCRIPT_NAME
from host_tools.fleet.inventory import DEFAULT_PORT, Device
from host_tools.fleet.push import result_from_report
from host_tools.fleet.rollout import DeviceResult

PLAYBOOK, INVENTORY, PAYLOAD = "rollout.yml", "inventory.json", "payload"
_PLAYBOOKS = Path(__file__).with_name("playbooks")
_REPORT_TASK, _REPORT = "Report", "edge_kit_report"


def write_project(
    folder: Path,
    payload: Payload,
    devices: Sequence[Device],
    *,
    waves: Sequence[int | str] = ("100%",),
    ssh_config: Path | None = None,
    links: bool = False,
    **variables: object,
) -> None:
    """Write the project folder; what is there already is replaced.

    waves: as `serial` of the playbook. ssh_config: for `ssh -F`. links: lead to the files of the
    payload instead of copying them. variables: of the role, without their prefix.
    """
    with storage_errors("write", folder):
        shutil.copytree(_PLAYBOOKS, folder, dirs_exist_ok=True)
    inventory = inventory_document(devices, ssh_config=ssh_config)
    inventory["all"]["vars"] |= {"edge_kit_waves": list(waves)}
    inventory["all"]["vars"] |= {f"edge_kit_{name}": value for name, value in variables.items()}
    atomic_write(folder / INVENTORY, json.dumps(inventory, indent=1).encode() + b"\n")
    _write_payload(folder / PAYLOAD, payload, links=links)


def inventory_document(
    devices: Sequence[Device], *, ssh_config: Path | None = None
) -> dict[str, Any]:
    """Return the inventory for Ansible, with a group for each group."""
    hosts: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for device in devices:
        found: dict[str, object] = {"ansible_host": device.host}
        if device.port != DEFAULT_PORT:  # or else what --ssh-config says holds
            found["ansible_port"] = device.port
        if device.user is not None:
            found["ansible_user"] = device.user
        hosts[device.name] = {**found, "edge_kit_root": device.root}
        for group in device.groups:
            groups.setdefault(group, {"hosts": {}})["hosts"][device.name] = {}
    shared: dict[str, object] = {}
    if ssh_config is not None:
        shared["ansible_ssh_common_args"] = f"-F '{ssh_config.absolute()}'"
    return {"all": {"hosts": hosts, "children": groups, "vars": shared}}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsiblePush:
    """A Way by `ansible-playbook`, once for each wave. forks: devices at a time.

    deadline_s: for each task at each device; Ansible knows none for a device.
    say: gets the task that each device has come to.
    """

    payload: Payload
    forks: int
    deadline_s: float
    ssh_config: Path | None = None
    again: bool = False
    say: Callable[[str, str], None] = field(default=lambda device, line: None)

    def __call__(
        self, devices: Sequence[Device], wave: int, is_aborted: Callable[[], bool]
    ) -> Iterator[tuple[str, DeviceResult]]:
        """Yield what became of each device, in the order in which they end.

        A wave is one run of the playbook, which is_aborted does not cut.
        """
        with tempfile.TemporaryDirectory(prefix="edge-kit-ansible-") as name:
            project = Path(name) / "project"
            write_project(
                project,
                self.payload,
                devices,
                ssh_config=self.ssh_config,
                links=True,
                again=self.again,
            )
            left = {device.name for device in devices}
            last = "it ended without a word"
            for event in played(project, forks=self.forks, deadline_s=self.deadline_s):
                data = event.get("event_data", {})
                host, task = data.get("host"), data.get("task", "")
                if event["event"] == "runner_on_start":
                    self.say(host, task.lower())
                result = result_from_event(event)
                if host in left and result is not None:
                    left.discard(host)
                    yield host, result
                last = _line(event.get("stdout")) or last
            for host in sorted(left):
                yield host, DeviceResult(result="failed", reason=f"ansible-playbook: {last}")


def result_from_event(event: dict[str, Any]) -> DeviceResult | None:
    """Return what an event says of its device, None if it does not end there; pure."""
    data = event.get("event_data", {})
    told = data.get("res")
    told = told if isinstance(told, dict) else {}
    if event["event"] == "runner_on_unreachable":
        return DeviceResult(result="unreachable", reason=_line(told.get("msg")))
    if event["event"] == "runner_on_failed" and not data.get("ignore_errors"):
        words = (told.get("stderr"), told.get("module_stderr"), told.get("msg"))
        reason = next(filter(None, map(_line, words)), "it said no more")
        return DeviceResult(result="failed", reason=f"{data.get('task')}: {reason}")
    if event["event"] == "runner_on_ok" and data.get("task") == _REPORT_TASK:
        report = told.get(_REPORT)
        if isinstance(report, dict) and "state" in report:
            return result_from_report({"changed": False, **report})
        return DeviceResult(result="failed", reason="the device gave no report")
    return None


def played(project: Path, *, forks: int, deadline_s: float) -> Iterator[dict[str, Any]]:
    """Run the playbook of a project and yield its events; whoever stops reading stops it.

    Raises BackendUnavailableError if Ansible is not installed.
    """
    try:
        import ansible_runner
    except ImportError as error:
        raise BackendUnavailableError(
            "Ansible is not installed; pip install 'edge-kit[ansible]', or push with --by ssh"
        ) from error
    events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    is_over = threading.Event()

    def take(event: dict[str, Any]) -> bool:
        events.put(event)
        return False  # nothing of it is kept on disk

    thread, _ = ansible_runner.run_async(
        private_data_dir=str(project.parent),
        project_dir=str(project),
        playbook=PLAYBOOK,
        inventory=str(project / INVENTORY),
        cmdline=f"--forks {forks}",
        envvars={
            "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
            "ANSIBLE_TASK_TIMEOUT": str(math.ceil(deadline_s)),
            # That of this environment, whether it is activated or not.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        },
        event_handler=take,
        finished_callback=lambda runner: events.put(None),
        cancel_callback=is_over.is_set,
        quiet=True,
    )
    try:
        while (event := events.get()) is not None:
            yield event
    finally:
        is_over.set()
        thread.join()


def _line(text: object) -> str:
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _write_payload(folder: Path, payload: Payload, *, links: bool) -> None:
    """Write a payload; but for its blobs in two archives, as a task for each file takes minutes."""
    wheels = [name for name in payload.sources if name.startswith("wheels/")]
    blobs = [name for name in payload.sources if name.startswith("bundle/blobs/")]
    first = sorted({*payload.sources, DOCUMENT_NAME} - {*wheels, *blobs})
    payload.write(folder, (*blobs, SCRIPT_NAME), links=links)
    sources: dict[str, Source] = {**payload.sources, DOCUMENT_NAME: payload.content}
    for archive, names in (("first.tar", first), ("wheels.tar", sorted(wheels))):
        with storage_errors("write", folder / archive), atomic_file(folder / archive) as file:
            _write_tar(file, {name: sources[name] for name in names})


def _write_tar(out: IO[bytes], files: Mapping[str, Source]) -> None:
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, source in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o644
            if isinstance(source, bytes):
                entry.size = len(source)
                archive.addfile(entry, io.BytesIO(source))
                continue
            with open_regular(source, follow_links=True) as file:
                entry.size = source.stat().st_size
                archive.addfile(entry, file)
