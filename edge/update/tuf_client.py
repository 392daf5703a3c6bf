"""The channel's metadata, verified by python-tuf; imported only where an update runs.

python-tuf does what the TUF specification's client workflow says. Here: how it reaches files
(through an Origin), what its errors mean for a device, and targets read under the caps they name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge.errors import ChannelError, EdgeError, FreshnessError, first_line
from edge.files import storage_errors, sync_directory
from edge.update.channel import MAX_TARGETS_BYTES, METADATA_FOLDER, stored_path
from edge.update.channel_keys import BundleKey, bundle_keys_in
from edge.update.origin import Origin

MAX_ROOT_BYTES = 256 << 10
_CONFIG = UpdaterConfig(
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=16 << 10,
    snapshot_max_length=64 << 10,
    targets_max_length=MAX_TARGETS_BYTES,
)


class OriginFetcher(FetcherInterface):
    """Gives python-tuf the files of an Origin, by their path below the repository."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def _fetch(self, url: str) -> Iterator[bytes]:
        body = self._origin.open(url)
        if body is None:
            raise DownloadHTTPError(f"there is no {url}", 404)
        return body.chunks


class ChannelClient:
    """What a device may believe of a channel. `refresh` comes first, once.

    folder: keeps the verified metadata between two runs. anchor: content of the root.json that
    this device trusts from the start; later roots are reached from it by their signatures.
    """

    def __init__(self, origin: Origin, folder: Path, anchor: bytes) -> None:
        self._origin, self._folder, self._anchor = origin, folder, anchor
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetch and verify what is new.

        Raises FreshnessError if the channel does not answer or what it says has expired, else
        ChannelError; the metadata kept here is then what was verified so far.
        """
        with storage_errors("write", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._updater = Updater(
                    metadata_dir=str(self._folder),
                    metadata_base_url=METADATA_FOLDER,
                    fetcher=OriginFetcher(self._origin),
                    config=_CONFIG,
                    bootstrap=self._anchor,
                )
                self._updater.refresh()
            except (RepositoryError, DownloadError) as error:
                raise _refusal(error) from error
            finally:
                _sync(self._folder)

    @property
    def fresh_until(self) -> datetime:
        """When the timestamp expires, after which nothing of this is believed."""
        timestamp: Metadata[Timestamp] = Metadata.from_file(str(self._folder / "timestamp.json"))
        return timestamp.signed.expires

    @property
    def targets_keys(self) -> tuple[str, ...]:
        """Ids of the keys that may sign what the channel offers, sorted."""
        root: Metadata[Root] = Metadata.from_file(str(self._folder / "root.json"))
        return tuple(sorted(root.signed.roles["targets"].keyids))

    @property
    def bundle_keys(self) -> tuple[BundleKey, ...]:
        """The keys that the root lets sign bundles; raises ChannelError if one is none."""
        root: Metadata[Root] = Metadata.from_file(str(self._folder / "root.json"))
        return bundle_keys_in(root.signed.unrecognized_fields)

    def target(self, path: str) -> TargetFile:
        """Return length and digest of a target; raises ChannelError if there is none."""
        assert self._updater is not None, "refresh first"  # noqa: S101
        try:
            found = self._updater.get_targetinfo(path)
        except (RepositoryError, DownloadError) as error:
            raise _refusal(error) from error
        if found is None or "sha256" not in found.hashes:
            raise ChannelError(f"the channel's metadata lists no {path}; publish the release again")
        return found

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Return the verified content of a target that is at most max_bytes long."""
        found = self.target(path)
        if found.length > max_bytes:
            raise ChannelError(f"{path} is larger than the cap of {max_bytes} bytes")
        body = self._origin.open(stored_path(path, found.hashes["sha256"]))
        if body is None:
            raise FreshnessError(f"the channel is incomplete: it has no {path}; try again later")
        content = b"".join(capped(body.chunks, found.length, path))
        if len(content) != found.length or _digest(content) != found.hashes["sha256"]:
            raise ChannelError(f"{path} is not what the metadata says; something altered it")
        return content


def capped(chunks: Iterator[bytes], max_bytes: int, what: str) -> Iterator[bytes]:
    """Yield chunks until they are more than max_bytes, which is a ChannelError."""
    taken = 0
    for chunk in chunks:
        taken += len(chunk)
        if taken > max_bytes:
            raise ChannelError(f"{what} goes on behind the {max_bytes} bytes that it may have")
        yield chunk


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _refusal(error: Exception) -> EdgeError:
    cause = error.__cause__
    if isinstance(cause, EdgeError):
        return cause
    text = first_line(error)
    if isinstance(error, ExpiredMetadataError):
        return FreshnessError(
            f"the channel's metadata has expired ({text}); what is served stays; run "
            "`edge-kit channel refresh` there, or look whether somebody holds back newer files"
        )
    if isinstance(error, DownloadLengthMismatchError):
        return ChannelError(f"the channel sends more than its metadata may have: {text}")
    if isinstance(error, DownloadError):
        return FreshnessError(f"the channel is incomplete: {text}; what is served stays")
    return ChannelError(f"the channel's metadata was refused: {text}; what is served stays")


def _sync(folder: Path) -> None:
    """Make durable what python-tuf wrote: it is the memory against replayed metadata."""
    for path in (*folder.glob("*.json"), *folder.glob("root_history/*.json")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for place in (folder, folder / "root_history"):
        if place.is_dir():
            sync_directory(place)
