"""A disk in memory that keeps no more than POSIX promises when its power is cut.

Written bytes are durable once their file was synced, names once their directory was. What was not
may be lost, or be there all the same: each write, and each change of a name, on its own. A write
may be torn at any sector. A rename is whole; across two directories it is one change until one of
them was synced, and the other half stands alone then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

SECTOR_BYTES = 512
DISK_BYTES = 1 << 30
# Of each path: the bytes of a file, where a link leads, or None for a directory.
Tree = dict[str, bytes | str | None]
LOOKING = frozenset(
    {"read", "chunks", "size", "names", "link_target", "free_bytes", "lock", "close"}
)


@dataclass(eq=False)
class Write:
    offset: int
    content: bytes


@dataclass(eq=False)
class Cut:
    size: int


@dataclass(eq=False)
class Node:
    """A file or a link: what it holds, and how that came about since it was synced."""

    content: bytearray | str = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[Write | Cut] = field(default_factory=list)


@dataclass(eq=False)
class Change:
    """A name that was set, or removed. whole: what it shares with the other half of a rename."""

    name: str
    node: Node | Directory | None
    whole: object


@dataclass(eq=False)
class Directory:
    entries: dict[str, Node | Directory] = field(default_factory=dict)
    durable: dict[str, Node | Directory] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def set(self, name: str, node: Node | Directory | None, whole: object = None) -> None:
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node
        self.pending.append(Change(name=name, node=node, whole=whole or object()))


# Of a change: whether it survives; of a write: which of its sectors do, by number.
Survives = Callable[[object], bool]
Sectors = Callable[[Write], Callable[[int], bool]]


class SimulatedDisk:
    """A Filesystem.

    before_call: called with the number and the name of each call; may raise. after_change: called
    behind each call that may have changed what a cut leaves.
    """

    def __init__(self, tree: Tree | None = None) -> None:
        self.root = Directory()
        self.calls = 0
        self.before_call: Callable[[int, str], None] = lambda number, name: None
        self.after_change: Callable[[str], None] = lambda name: None
        self.last_write: Write | None = None
        self.locks: set[Path] = set()
        self.free = DISK_BYTES
        for path, content in sorted((tree or {}).items()):
            parent, name = self._directory(Path(path).parent), PurePath(path).name
            if content is None:
                parent.entries[name] = parent.durable[name] = Directory()
            elif isinstance(content, str):
                parent.entries[name] = parent.durable[name] = Node(content=content)
            else:
                node = Node(content=bytearray(content), durable=content)
                parent.entries[name] = parent.durable[name] = node

    # The calls.

    def read(self, path: Path, *, max_bytes: int) -> bytes:
        with self._call("read"):
            return bytes(self._file(path).content[: max_bytes + 1])

    def chunks(self, path: Path) -> Iterator[memoryview]:
        with self._call("chunks"):
            content = bytes(self._file(path).content)
        for at in range(0, len(content), 1000):
            yield memoryview(content[at : at + 1000])

    def size(self, path: Path) -> int | None:
        with self._call("size"):
            node = self._node(path)
            if node is None:
                return None
            return len(self._file(path).content)

    def names(self, directory: Path) -> tuple[str, ...]:
        with self._call("names"):
            return tuple(sorted(self._directory(directory).entries))

    def link_target(self, path: Path) -> str | None:
        with self._call("link_target"):
            node = self._node(path)
            return (
                node.content if isinstance(node, Node) and isinstance(node.content, str) else None
            )

    def free_bytes(self, directory: Path) -> int:
        with self._call("free_bytes"):
            return self.free

    def make_directory(self, path: Path) -> None:
        with self._call("make_directory"):
            if self._node(path) is None:
                self._directory(path.parent).set(path.name, Directory())

    def make_link(self, target: str, path: Path) -> None:
        with self._call("make_link"):
            if self._node(path) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._directory(path.parent).set(path.name, Node(content=target))

    def append_to(self, path: Path, *, offset: int) -> SimulatedFile:
        with self._call("append_to"):
            if self._node(path) is None:
                self._directory(path.parent).set(path.name, Node())
            node = self._file(path)
            if len(node.content) != offset:
                _apply(node.content, Cut(offset))
                node.pending.append(Cut(offset))
        return SimulatedFile(self, path, node)

    def rename(self, source: Path, destination: Path) -> None:
        with self._call("rename"):
            node, whole = self._file(source), object()
            self._directory(destination.parent).set(destination.name, node, whole)
            self._directory(source.parent).set(source.name, None, whole)

    def remove(self, path: Path) -> None:
        with self._call("remove"):
            if self._node(path) is not None:
                self._directory(path.parent).set(path.name, None)

    def sync_directory(self, directory: Path) -> None:
        with self._call("sync_directory"):
            self.sync_names(directory, self._directory(directory))

    @contextlib.contextmanager
    def lock(self, path: Path, *, wait: bool, note: str) -> Iterator[str | None]:
        with self._call("lock"):
            if path in self.locks:
                assert not wait, "this would wait for ever"
                is_held = True
            else:
                is_held = False
                self.locks.add(path)
        try:
            yield "another process" if is_held else None
        finally:
            if not is_held:
                self.locks.discard(path)

    def sync_file(self, path: Path, node: Node) -> None:
        node.durable, node.pending = bytes(node.content), []

    def sync_names(self, path: Path, directory: Directory) -> None:
        directory.durable, directory.pending = dict(directory.entries), []

    # What is left of it.

    def as_is(self) -> Tree:
        """The tree as running processes see it."""
        return self.after_cut(lambda _: True)

    def after_cut(
        self, survives: Survives, sectors: Sectors = lambda write: lambda sector: True
    ) -> Tree:
        """The tree after the power was cut, if these changes have survived."""
        tree: Tree = {}
        _collect(self.root, "", tree, survives, sectors)
        return tree

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[None]:
        self.calls += 1
        self.before_call(self.calls, name)
        yield
        if name not in {*LOOKING, "write"}:
            self.last_write = None
        if name not in LOOKING:
            self.after_change(name)

    def _node(self, path: Path) -> Node | Directory | None:
        node: Node | Directory | None = self.root
        for part in path.parts[1:]:
            if not isinstance(node, Directory):
                return None
            node = node.entries.get(part)
        return node

    def _directory(self, path: Path) -> Directory:
        node = self._node(path)
        if not isinstance(node, Directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def _file(self, path: Path) -> Node:
        node = self._node(path)
        if not isinstance(node, Node) or isinstance(node.content, str):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node


class SimulatedFile:
    def __init__(self, disk: SimulatedDisk, path: Path, node: Node) -> None:
        self._disk = disk
        self._path = path
        self._node = node

    def write(self, content: bytes) -> None:
        write = Write(offset=len(self._node.content), content=bytes(content))
        try:
            with self._disk._call("write"):
                self._add(write)
                self._disk.last_write = write
        except OSError:
            # A disk that gets full takes what still fits.
            self._add(Write(offset=write.offset, content=write.content[: len(content) // 2]))
            raise

    def sync(self, mode: int) -> None:
        with self._disk._call("sync"):
            self._disk.sync_file(self._path, self._node)

    def close(self) -> None:
        with self._disk._call("close"):
            pass

    def _add(self, write: Write) -> None:
        _apply(self._node.content, write)
        self._node.pending.append(write)


def random_cut(rng: random.Random) -> tuple[Survives, Sectors]:
    """Return what survives one cut: a random share of everything, and torn writes among it."""
    share, torn = rng.choice((0.1, 0.5, 0.9)), rng.choice((0.0, 0.3, 1.0))
    verdicts: dict[int, bool] = {}

    def survives(change: object) -> bool:
        return verdicts.setdefault(id(change), rng.random() < share)

    def sectors(write: Write) -> Callable[[int], bool]:
        if rng.random() >= torn:
            return lambda sector: True
        count = len(write.content) // SECTOR_BYTES + 1
        if rng.random() < 0.5:
            end = rng.randrange(count + 1)
            return lambda sector: sector < end
        kept = {sector for sector in range(count) if rng.random() < 0.5}
        return kept.__contains__

    return survives, sectors


def _apply(
    content: bytearray | str, change: Write | Cut, survives: Callable[[int], bool] | None = None
) -> None:
    assert isinstance(content, bytearray)
    if isinstance(change, Cut):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    for sector, at in enumerate(range(0, len(change.content), SECTOR_BYTES)):
        if survives is None or survives(sector):
            start, piece = change.offset + at, change.content[at : at + SECTOR_BYTES]
            content.extend(bytes(max(0, start + len(piece) - len(content))))
            content[start : start + len(piece)] = piece


def _collect(
    directory: Directory, path: str, tree: Tree, survives: Survives, sectors: Sectors
) -> None:
    entries = dict(directory.durable)
    for change in directory.pending:
        if not survives(change.whole):
            continue
        if change.node is None:
            entries.pop(change.name, None)
        else:
            entries[change.name] = change.node
    for name, node in entries.items():
        below = f"{path}/{name}"
        if isinstance(node, Directory):
            tree[below] = None
            _collect(node, below, tree, survives, sectors)
        elif isinstance(node.content, str):
            tree[below] = node.content
        else:
            content = bytearray(node.durable)
            for written in node.pending:
                if survives(written):
                    _apply(
                        content, written, sectors(written) if isinstance(written, Write) else None
                    )
            tree[below] = bytes(content)
