"""The configuration: precedence, and errors that name key, source and nearest key."""

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from edge.config import DEFAULT_CONFIG_FILE, DEFAULT_URL, AgentConfig
from edge.config_sources import MAX_CONFIG_BYTES, describe_config, load_config, read_config_file
from edge.errors import ConfigError


def load(flags=None, environ=None, files=None):
    return load_config(flags or {}, environ or {}, lambda path: (files or {}).get(str(path)))


def test_nothing_given_gives_the_defaults():
    assert load() == AgentConfig()


def test_the_default_url_is_where_a_default_agent_listens():
    config = AgentConfig()
    assert f"http://{config.host}:{config.port}" == DEFAULT_URL


def test_each_place_wins_over_the_one_before():
    files = {str(DEFAULT_CONFIG_FILE): b'{"port": 1, "queue_size": 1, "intra_op_threads": 1}'}
    environ = {"EDGE_PORT": "2", "EDGE_QUEUE_SIZE": "2"}
    config = load({"port": "3"}, environ, files)
    assert (config.port, config.queue_size, config.intra_op_threads) == (3, 2, 1)


def test_every_key_can_be_given_in_every_place():
    values = {
        "bundle": "/b",
        "slots": "/s",
        "trusted_keys": "/k",
        "allow_unsigned": True,
        "host": "::1",
        "port": 9,
        "allowed_hosts": "edge.example",
        "intra_op_threads": 2,
        "max_body_bytes": 4096,
        "max_per_client": 3,
        "max_connections_per_client": 30,
        "queue_size": 5,
        "queue_bytes": 4096,
        "batching": False,
        "max_batch_rows": 4,
        "batch_window_ms": 0.5,
        "chat_lanes": 2,
        "chat_context": 1024,
        "chat_timeout_s": 60,
        "request_timeout_s": 0.5,
        "shutdown_timeout_s": 0,
        "stall_timeout_s": 7,
        "cache": "/c",
        "cache_bytes": 1 << 20,
        "build_on_device": False,
        "build_timeout_s": 60,
        "open_timeout_s": 5,
        "ready_on_cpu": True,
        "models": "a,b",
        "isolate": True,
        "history": "/h",
        "otlp_endpoint": "http://127.0.0.1:4318",
        "jtop": True,
        "warm_up": False,
        "memory_reserve_bytes": 1 << 20,
        "variant": "int8",
        "allow_capture": True,
        "drift_window": 500,
        "drift_window_s": 60.0,
        "drift_level": 0.01,
        "drift_webhook": "http://127.0.0.1:9/hook",
        "drift_keep_inputs": 100,
        "drift_keep_bytes": 1 << 26,
        "drift_keep_redact": "image",
        "drift_keep_folder": "/tmp/kept",
        "log_level": "debug",
    }
    assert set(values) == {field.name for field in fields(AgentConfig)}
    texts = {key: str(value) for key, value in values.items()}
    from_file = load(files={str(DEFAULT_CONFIG_FILE): json.dumps(values).encode()})
    from_environ = load(environ={f"EDGE_{key.upper()}": text for key, text in texts.items()})
    assert from_file == from_environ == load(flags=texts)
    assert from_file.bundle == Path("/b")
    assert from_file.request_timeout_s == 0.5
    assert isinstance(from_file.stall_timeout_s, float)
    assert from_file.allow_unsigned is True


def test_the_flag_names_the_file_before_the_variable_does():
    files = {"/a": b'{"port": 1}', "/b": b'{"port": 2}'}
    assert load({"config": "/a"}, {"EDGE_CONFIG": "/b"}, files).port == 1
    assert load({}, {"EDGE_CONFIG": "/b"}, files).port == 2


def test_null_in_the_file_unsets_an_optional_key_only():
    assert load(files={str(DEFAULT_CONFIG_FILE): b'{"variant": null}'}).variant is None
    with pytest.raises(ConfigError, match=r"'port': None is not a whole number"):
        load(files={str(DEFAULT_CONFIG_FILE): b'{"port": null}'})


def test_variables_of_other_programs_are_left_alone():
    assert load(environ={"PATH": "/bin", "PORT": "1"}) == AgentConfig()


@pytest.mark.parametrize(
    ("flags", "environ", "content", "message"),
    [
        ({}, {"EDGE_PROT": "1"}, b"{}", "variable EDGE_PROT: .* nearest is 'EDGE_PORT'"),
        ({"prot": "1"}, {}, b"{}", "flag --prot: .* nearest is '--port'"),
        ({}, {}, b'{"prot": 1}', "/etc/edge/agent.json: 'prot' .* nearest is 'port'"),
        ({}, {}, b'{"config": "/x"}', "/etc/edge/agent.json: 'config' is not a key"),
        ({"port": "x"}, {}, b"{}", "flag --port: 'x' is not a whole number"),
        ({}, {"EDGE_PORT": "70000"}, b"{}", "EDGE_PORT: '70000' is not in 0..65535"),
        ({}, {"EDGE_PORT": ""}, b"{}", "EDGE_PORT: '' is not a whole number"),
        ({}, {}, b'{"port": "80"}', "agent.json: key 'port': '80' is not a whole number"),
        ({}, {}, b'{"port": true}', "key 'port': True is not a whole number"),
        ({}, {}, b'{"port": 80.0}', "key 'port': 80.0 is not a whole number"),
        ({}, {}, b'{"request_timeout_s": NaN}', "'request_timeout_s': nan is not in 0.01..3600"),
        ({"request_timeout_s": "inf"}, {}, b"{}", "--request-timeout-s: 'inf' is not in"),
        ({"allow_unsigned": "maybe"}, {}, b"{}", "'maybe' is not true or false"),
        ({}, {}, b'{"allow_unsigned": 1}', "'allow_unsigned': 1 is not true or false"),
        ({"log_level": "loud"}, {}, b"{}", "'loud' is not one of debug, info, warning, error"),
        ({"host": ""}, {}, b"{}", "flag --host: '' is not a text"),
        ({}, {}, b'{"bundle": 3}', "'bundle': 3 is not a path"),
        ({}, {}, b'{"port": {"a": 1}}', "'port': .* is not a whole number"),
        ({}, {}, b'{"port": 1, "port": 2}', "key 'port' is given twice"),
        ({}, {}, b"[1]", "does not hold an object"),
        ({}, {}, b"3", "does not hold an object"),
        ({}, {}, b"{", "agent.json is not JSON"),
        ({}, {}, b"\xff", "agent.json is not JSON"),
        ({}, {}, b"[" * 100_000, "agent.json is not JSON"),
        ({"config": "/no"}, {}, b"{}", "flag --config: there is no file /no"),
        ({}, {"EDGE_CONFIG": "/no"}, b"{}", "EDGE_CONFIG: there is no file /no"),
    ],
)
def test_a_mistake_is_named_with_its_place(flags, environ, content, message):
    with pytest.raises(ConfigError, match=message):
        load(flags, environ, {str(DEFAULT_CONFIG_FILE): content})


@pytest.mark.parametrize("key", [f.name for f in fields(AgentConfig) if f.metadata["low"]])
def test_bounds_are_inclusive(key):
    about = next(field for field in fields(AgentConfig) if field.name == key).metadata
    for bound in (about["low"], about["high"]):
        assert getattr(load({key: str(bound)}), key) == bound
    for outside in (about["low"] - 1, about["high"] + 1):
        with pytest.raises(ConfigError, match=r"is not in"):
            load({key: str(outside)})


def test_the_description_has_every_value_and_where_it_comes_from():
    files = {str(DEFAULT_CONFIG_FILE): b'{"queue_size": 9}'}
    described = describe_config({"port": "1"}, {"EDGE_HOST": "::1"}, lambda p: files.get(str(p)))
    assert list(described) == [field.name for field in fields(AgentConfig)]
    assert described["port"] == {"value": 1, "source": "flag --port"}
    assert described["host"] == {"value": "::1", "source": "environment variable EDGE_HOST"}
    assert described["queue_size"] == {"value": 9, "source": str(DEFAULT_CONFIG_FILE)}
    assert described["bundle"] == {"value": "/var/lib/edge/bundle", "source": "default"}
    json.dumps(described)


def test_reading_a_file_tells_absent_from_unreadable(tmp_path):
    present = tmp_path / "agent.json"
    present.write_bytes(b"{}")
    link = tmp_path / "link.json"
    link.symlink_to(present)
    assert read_config_file(present) == read_config_file(link) == b"{}"
    assert read_config_file(tmp_path / "absent") is None
    with pytest.raises(ConfigError, match=rf"cannot read {tmp_path}: is a directory"):
        read_config_file(tmp_path)


def test_a_file_beyond_the_cap_is_refused(tmp_path):
    path = tmp_path / "agent.json"
    path.touch()
    os.truncate(path, MAX_CONFIG_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than the cap"):
        read_config_file(path)
