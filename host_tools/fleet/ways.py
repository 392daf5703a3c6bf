"""Which Way a command line asks for, and what each of them needs to be given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from edge.console import say
from edge.errors import UsageError
from host_tools.flash.payload import config_from_file, make_payload
from host_tools.fleet.rollout import Rollout, Way
from host_tools.fleet.waves import channel_shares
from host_tools.terminal import user_name

By = Literal["ssh", "ansible", "channel"]
_PUSH_FLAGS = {"wheelhouse": "--wheelhouse", "keys": "--key", "config": "--config",
               "again": "--again"}  # fmt: skip
_PULL_FLAGS = {"channel": "--channel", "channel_keys": "--channel-keys"}


def way_maker(by: By, bundle: Path, given: Mapping[str, Any]) -> Callable[[Rollout], Way]:
    """Return what makes the Way of a plan; raises UsageError if a flag is missing, or of another.

    given: the flags wheelhouse, keys, config, again of the pushes; channel, channel_keys, follow,
    wait_minutes of the channel; deadline_minutes of the pushes; forks, ssh_config of all.
    """
    is_pull = by == "channel"
    for name, flag in (_PUSH_FLAGS if is_pull else _PULL_FLAGS).items():
        if given[name]:
            raise UsageError(f"--by {by} does not use {flag}; leave it out")
    needed = _PULL_FLAGS if is_pull else {n: _PUSH_FLAGS[n] for n in ("wheelhouse", "keys")}
    for name, flag in needed.items():
        if not given[name]:
            raise UsageError(f"--by {by} needs {flag}")
    if is_pull:
        return lambda planned: _pull(planned, given)
    payload = make_payload(
        bundle,
        wheelhouse=given["wheelhouse"],
        keys=given["keys"],
        config=config_from_file(given["config"]),
    )
    shared: dict[str, Any] = {
        "payload": payload,
        "forks": given["forks"],
        "deadline_s": 60.0 * given["deadline_minutes"],
        "ssh_config": given["ssh_config"],
        "again": given["again"],
        "say": _say,
    }
    if by == "ansible":
        from host_tools.fleet.by_ansible import AnsiblePush

        return lambda planned: AnsiblePush(**shared)
    from host_tools.fleet.push import FlashPush

    return lambda planned: FlashPush(**shared)


def _pull(planned: Rollout, given: Mapping[str, Any]) -> Way:
    from host_tools.channel.document import find_release, with_wave_reached
    from host_tools.channel.operations import redocumented
    from host_tools.channel.repository import Repository, read_repository
    from host_tools.channel.signing import Signers
    from host_tools.channel.write_change import Done, make_change
    from host_tools.fleet.pull import ChannelPull, ask_over_ssh

    folder, to = given["channel"], given["follow"]
    shares = planned.shares or channel_shares(planned.waves, planned.bundle)
    find_release(read_repository(folder).channel, planned.bundle)  # it must have been published

    def open_wave(wave: int) -> None:
        now = datetime.now(tz=timezone.utc)

        def plan(repository: Repository, signers: Signers) -> Done:
            document = with_wave_reached(repository.channel, planned.bundle, to, shares, wave)
            facts = {"release": planned.bundle, "to": to, "percent": shares[wave]}
            change = redocumented(repository, document, signers, now)
            return Done(verb="promote", change=change, facts=facts)

        before = read_repository(folder).channel
        if with_wave_reached(before, planned.bundle, to, shares, wave) != before:
            done = make_change(folder, given["channel_keys"], plan, now=now, user=user_name())
            say(done.summary())

    return ChannelPull(
        bundle=planned.bundle,
        open_wave=open_wave,
        ask=lambda device: ask_over_ssh(device, planned.bundle, given["ssh_config"]),
        wait_s=60.0 * given["wait_minutes"],
        forks=given["forks"],
        say=_say,
    )


def _say(name: str, line: str) -> None:
    say(f"{name}: {line}")
