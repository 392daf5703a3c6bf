"""Which release a device takes: waves, downgrades, refusals; and the document that says so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge.errors import ChannelError
from edge.update.channel import (
    Channel,
    Offer,
    Override,
    Release,
    bytes_from_channel,
    channel_from_bytes,
    share_of,
)
from edge.update.decision import Decision, Device, decide

OLD, NEW = "a" * 64, "b" * 64


def release(number: int, release_id: str) -> Release:
    return Release(
        id=release_id, name="camera", version=str(number), sequence=number,
        published="2026-01-01T00:00:00Z", signed_by="c" * 64,
    )  # fmt: skip


CHANNEL = Channel(
    schema=1,
    product="camera",
    revoked_keys={},
    releases=(release(1, OLD), release(2, NEW)),
    offers={"stable": Offer(release=NEW, waves=(10.0, 50.0, 100.0), wave=2, previous=OLD)},
)
DEVICE = Device(
    identity="d2", serving=OLD, product="camera", sequence=1, refused=(),
    now="2026-02-01T00:00:00Z",
)  # fmt: skip


def offering(**changes: object) -> Channel:
    return replace(CHANNEL, offers={"stable": replace(CHANNEL.offers["stable"], **changes)})  # type: ignore[arg-type]


def decided(channel: Channel = CHANNEL, **changes: object) -> Decision:
    return decide(channel, "stable", replace(DEVICE, **changes))  # type: ignore[arg-type]


def test_the_waves_hold_their_shares_of_ten_thousand_devices() -> None:
    shares = sorted(share_of(f"device-{n}", NEW) for n in range(10_000))
    for percent in (1, 10, 50):
        # The binomial's standard deviation is at most 50 devices: four of them.
        assert abs(sum(s < percent for s in shares) - 100 * percent) < 200
    assert shares[0] >= 0
    assert shares[-1] < 100


def test_who_is_in_a_wave_is_in_the_next_and_another_release_begins_with_others() -> None:
    first = {n for n in range(2000) if share_of(f"device-{n}", NEW) < 10}
    second = {n for n in range(2000) if share_of(f"device-{n}", NEW) < 50}
    other = {n for n in range(2000) if share_of(f"device-{n}", OLD) < 10}
    assert first < second
    assert len(first & other) < len(first) / 2


def test_a_share_is_the_same_for_ever() -> None:
    # By sha256sum of 64 times "b", a newline and "d2": its first 16 digits, over 2**64.
    assert share_of("d2", NEW) == pytest.approx(97.61715999664423)


def test_a_device_of_a_later_wave_keeps_what_was_offered_before() -> None:
    assert decided(offering(wave=0)).verdict == "current"
    assert decided(offering(wave=0), serving=None, sequence=0).release == CHANNEL.releases[0]
    assert decided(offering(wave=0, previous=None), serving=None).release is None
    assert decided().verdict == "install"


def test_a_device_outside_the_wave_that_serves_the_offer_already_is_left_alone() -> None:
    found = decided(offering(wave=0), serving=NEW, sequence=2)
    assert (found.verdict, found.release) == ("current", CHANNEL.releases[1])


def test_an_older_release_is_refused_without_an_override_and_after_its_end() -> None:
    back = offering(release=OLD, previous=NEW)
    serving_new = {"serving": NEW, "sequence": 2}
    assert decided(back, **serving_new).verdict == "refused"
    override = Override(by="ops", reason="it sees ghosts", until="2026-02-01T12:00:00Z")
    allowed = offering(release=OLD, previous=NEW, override=override)
    found = decided(allowed, **serving_new)
    assert found.verdict == "install"
    assert found.override is not None
    assert "ops" in found.override
    assert decided(allowed, **serving_new, now="2026-02-02T00:00:00Z").verdict == "refused"


def test_a_release_that_was_rolled_back_here_is_offered_again_only_when_asked_for() -> None:
    assert decided(refused={NEW}).verdict == "refused"
    assert (
        decide(CHANNEL, "stable", replace(DEVICE, refused={NEW}), again=True).verdict == "install"
    )


def test_a_revoked_release_is_refused_with_its_reason() -> None:
    old, new = CHANNEL.releases
    found = decided(replace(CHANNEL, releases=(old, replace(new, revoked="it burns"))))
    assert (found.verdict, "it burns" in found.reason) == ("refused", True)


def test_an_unknown_channel_names_those_that_there_are() -> None:
    with pytest.raises(ChannelError, match="there are: stable"):
        decide(CHANNEL, "nightly", DEVICE)


def test_the_document_reads_as_it_was_written() -> None:
    assert channel_from_bytes(bytes_from_channel(CHANNEL)) == CHANNEL


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("product",), "../x"),
        (("releases",), []),
        (("offers", "stable", "wave"), 3),
        (("offers", "stable", "wave"), -1),
        (("offers", "stable", "waves"), [50.0, 10.0, 100.0]),
        (("offers", "stable", "waves"), [0.0, 50.0, 100.0]),
        (("offers", "stable", "waves"), [10.0, 50.0, 101.0]),
        (("offers", "stable", "release"), "../../etc/passwd"),
        (("offers", "stable", "previous"), "e" * 64),
        (("releases", 0, "sequence"), 2),
        (("releases", 0, "sequence"), 2**53 + 1),
        (("releases", 0, "id"), NEW),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(path: tuple, value: object) -> None:  # type: ignore[type-arg]
    document = json.loads(bytes_from_channel(CHANNEL))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ChannelError):
        channel_from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"schema":1'])
def test_what_is_no_document_is_refused(content: bytes) -> None:
    with pytest.raises(ChannelError):
        channel_from_bytes(content)
