"""The command line of the device, run as a user runs it: in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from edge import __version__
from edge.bundle import MANIFEST_NAME
from edge.config import AgentConfig, flag_from_key
from tests.bundles import affine_parts, make_key, write_bundle

HEAVY = {
    "cryptography",
    "flask",
    "msgspec",
    "numpy",
    "onnxruntime",
    "prometheus_client",
    "psutil",
    "httptools",
}
MODULES_OF_HELP = """
import json, sys
from edge.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def clean_environ(**extra):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_")}
    return kept | extra


def run(*arguments, environ=None, code="from edge.cli import main; main()"):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=clean_environ(**(environ or {})),
    )


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["serve"],
        ["verify"],
        ["install-unit"],
        ["bench"],
        ["profile"],
        ["capture"],
        ["replay"],
        ["install"],
        ["rollback"],
        ["slots"],
        ["slots", "status"],
    ],
)
def test_help_imports_nothing_heavy(verb):
    done = run(*verb, "--help", code=MODULES_OF_HELP)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: edge-agent")
    assert HEAVY.isdisjoint(json.loads(done.stderr))


def test_every_key_is_a_flag_of_serve():
    words = run("serve", "--help").stdout.split()
    for field in fields(AgentConfig):
        assert flag_from_key(field.name) in words


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout.split()[-1] == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--prot", "1"], "--port"),
        (["serve", "--port", "x"], "flag --port: 'x' is not a whole number"),
        (["sevre"], "sevre"),
        ([], "Missing command"),
        (["serve", "--config", "/nonexistent.json"], "there is no file /nonexistent.json"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_debug_adds_the_traceback_and_keeps_the_code():
    done = run("--debug", "serve", "--port", "x")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: flag --port")


def test_print_config_shows_value_and_source_of_every_key(tmp_path):
    file = tmp_path / "agent.json"
    file.write_text('{"queue_size": 7}')
    done = run(
        "serve", "--print-config", "--no-allow-unsigned",
        environ={"EDGE_CONFIG": str(file), "EDGE_PORT": "9"},
    )  # fmt: skip
    described = json.loads(done.stdout)
    assert set(described) == {field.name for field in fields(AgentConfig)}
    assert described["queue_size"] == {"value": 7, "source": str(file)}
    assert described["port"] == {"value": 9, "source": "environment variable EDGE_PORT"}
    assert described["allow_unsigned"] == {"value": False, "source": "flag --allow-unsigned"}


def test_verify_refuses_with_exit_code_1_and_says_so_in_json(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text("{}")
    done = run("verify", "--bundle", tmp_path, "--trusted-keys", tmp_path, "--json")
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert (verdict["ok"], verdict["code"]) == (False, "trust")
    assert "manifest.sig" in verdict["error"]
    assert done.stderr == f"error: {verdict['error']}\n"


def signed_bundle(tmp_path):
    """A signed bundle and the folder with the key that signed it."""
    key = make_key()
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "lab.pub").write_bytes(key.public_pem)
    return write_bundle(tmp_path / "bundle", *affine_parts(), key), keys


def test_verify_names_what_it_accepted_and_who_signed_it(tmp_path):
    bundle, keys = signed_bundle(tmp_path)
    done = run("verify", "--bundle", bundle, "--trusted-keys", keys, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    verdict = json.loads(done.stdout)
    assert (verdict["ok"], verdict["name"], verdict["models"]) == (
        True,
        "affine-bundle",
        ["affine"],
    )
    blobs = list((bundle / "blobs/sha256").iterdir())
    assert verdict["bytes"] >= sum(blob.stat().st_size for blob in blobs)
    line = run("verify", "--bundle", bundle, "--trusted-keys", keys).stdout
    assert line.startswith("ok: affine-bundle 2026.1")
    assert verdict["signed_by"][:12] in line


def test_verify_accepts_an_unknown_signer_only_on_request(tmp_path):
    bundle, _ = signed_bundle(tmp_path)
    arguments = ["verify", "--bundle", bundle, "--trusted-keys", tmp_path]
    assert run(*arguments).returncode == 1
    accepted = run(*arguments, "--allow-unsigned")
    assert accepted.returncode == 0
    assert "NO TRUSTED SIGNATURE" in accepted.stdout


def test_install_unit_prints_by_default_and_writes_with_yes(tmp_path):
    arguments = ["install-unit", "--root", tmp_path, "--executable", "/opt/kit/bin/edge-agent"]
    printed = run(*arguments)
    assert "ExecStart=/opt/kit/bin/edge-agent serve\n" in printed.stdout
    assert list(tmp_path.iterdir()) == []
    first, second = run(*arguments, "--yes"), run(*arguments, "--yes")
    path = tmp_path / "etc/systemd/system/edge-agent.service"
    assert path.read_text() == printed.stdout
    assert first.stdout.startswith(f"installed: {path}\n")
    assert second.stdout == first.stdout.replace("installed: ", "unchanged: ")
    assert "systemctl daemon-reload" in first.stderr
    report = json.loads(run(*arguments, "--yes", "--json").stdout)
    assert report["files"][str(path)] == "unchanged"
    assert len(report["files"]) == 5
    planned = json.loads(run(*arguments, "--json").stdout)
    assert (planned["unit"], planned["files"]) == (printed.stdout, {})


def test_the_unit_starts_the_installed_executable_by_default():
    done = run("install-unit")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ExecStart=")]
    assert Path(line.removeprefix("ExecStart=").split()[0]).name == "edge-agent"


LOG_TWO_LINES = """
import logging, os
from edge.console import configure_logging
configure_logging("info", os.environ)
logging.getLogger("edge.x").debug("hidden")
logging.getLogger("edge.x").warning("first\\nsecond value=%d", 3)
"""


def test_a_log_record_is_one_line_with_a_time():
    (line,) = run(code=LOG_TWO_LINES).stderr.splitlines()
    assert line.endswith("Z WARNING edge.x: first | second value=3")


def test_journald_gets_the_priority_and_no_time():
    done = run(code=LOG_TWO_LINES, environ={"JOURNAL_STREAM": "8:1"})
    assert done.stderr == "<4>edge.x: first | second value=3\n"
