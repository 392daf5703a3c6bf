"""The cache of engines: what it returns was written by this device, whole, for this very key."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.engine_cache import KEY_NAME, EngineCache, cache_key

KEY, OTHER = cache_key("a"), cache_key("b")


@dataclass(frozen=True)
class Facts:
    seconds: float


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", max_bytes=1000)


def content(cache: EngineCache, key: str = KEY) -> bytes | None:
    entry = cache.get(key, Facts)
    return None if entry is None else bytes(entry.content.view())


def test_an_entry_comes_back_with_its_facts(cache: EngineCache) -> None:
    assert content(cache) is None
    cache.put(KEY, b"engine", Facts(1.5))
    assert content(cache) == b"engine"
    entry = cache.get(KEY, Facts)
    assert entry is not None
    assert entry.facts == Facts(1.5)


def test_everything_is_private_to_its_user(cache: EngineCache) -> None:
    cache.put(KEY, b"engine", Facts(1.5))
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.root.iterdir()} == {0o600}


def test_every_flipped_byte_makes_the_entry_vanish(cache: EngineCache) -> None:
    cache.put(KEY, b"engine", Facts(1.5))
    for path in cache.root.glob(f"{KEY}.*"):
        original = path.read_bytes()
        for position in range(len(original)):
            altered = bytearray(original)
            altered[position] ^= 1
            path.write_bytes(bytes(altered))
            assert content(cache) is None, f"{path.name} byte {position}"
        path.write_bytes(original)
    assert content(cache) == b"engine"


def test_every_truncation_makes_the_entry_vanish(cache: EngineCache) -> None:
    cache.put(KEY, b"engine", Facts(1.5))
    for path in cache.root.glob(f"{KEY}.*"):
        original = path.read_bytes()
        for length in range(len(original)):
            path.write_bytes(original[:length])
            assert content(cache) is None
        path.write_bytes(original)


def test_an_entry_of_another_device_is_not_returned(cache: EngineCache, tmp_path: Path) -> None:
    foreign = EngineCache(tmp_path / "foreign", max_bytes=1000)
    foreign.put(KEY, b"evil", Facts(1.5))
    cache.put(OTHER, b"engine", Facts(1.5))
    for path in foreign.root.glob(f"{KEY}.*"):
        (cache.root / path.name).write_bytes(path.read_bytes())
    assert content(cache) is None
    assert content(cache, OTHER) == b"engine"


def test_an_entry_renamed_to_another_key_is_not_returned(cache: EngineCache) -> None:
    cache.put(KEY, b"engine", Facts(1.5))
    for path in list(cache.root.glob(f"{KEY}.*")):
        path.rename(path.with_name(OTHER + path.suffix))
    assert content(cache, OTHER) is None


def test_without_its_key_nothing_of_the_past_is_returned(cache: EngineCache) -> None:
    cache.put(KEY, b"engine", Facts(1.5))
    (cache.root / KEY_NAME).unlink()
    assert content(cache) is None
    cache.put(KEY, b"engine", Facts(1.5))
    assert content(cache) == b"engine"


def test_a_link_in_place_of_an_entry_is_not_followed(cache: EngineCache, tmp_path: Path) -> None:
    cache.put(KEY, b"engine", Facts(1.5))
    path = cache.root / f"{KEY}.bin"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert content(cache) is None


def test_the_least_recently_used_goes_first(cache: EngineCache) -> None:
    keys = [cache_key(number) for number in range(3)]
    for age, key in enumerate(keys):
        cache.put(key, bytes(400), Facts(0.0))
        if age < 2:
            os.utime(cache.root / f"{key}.json", (age, age))
    assert [content(cache, key) is not None for key in keys] == [False, True, True]
    os.utime(cache.root / f"{keys[2]}.json", (0, 0))
    cache.put(keys[0], bytes(400), Facts(0.0))
    assert [content(cache, key) is not None for key in keys] == [True, True, False]


def test_an_orphan_of_a_killed_write_is_the_first_to_go(cache: EngineCache) -> None:
    cache.put(KEY, bytes(400), Facts(0.0))
    (cache.root / f"{OTHER}.bin").write_bytes(bytes(500))
    cache.put(cache_key("c"), bytes(300), Facts(0.0))
    assert content(cache) is not None
    assert not (cache.root / f"{OTHER}.bin").exists()


def test_an_entry_larger_than_the_cap_is_kept_alone(cache: EngineCache) -> None:
    cache.put(OTHER, bytes(400), Facts(0.0))
    cache.put(KEY, bytes(2000), Facts(0.0))
    assert content(cache) == bytes(2000)
    assert content(cache, OTHER) is None


def test_keys_differ_in_every_part() -> None:
    assert len({cache_key("a", 1), cache_key("a", 2), cache_key("b", 1), cache_key("a1")}) == 4
