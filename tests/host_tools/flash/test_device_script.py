"""The device script: one file that old Pythons run, and what it tells and takes."""

import ast
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge.target import detect_target
from host_tools.flash import device
from host_tools.flash.device.files import StopError, receive, received_bytes
from host_tools.flash.script import device_script
from tests.edge.device_trees import DEVICE_TREES

SOURCES = sorted(Path(device.__file__).parent.glob("*.py"))
# What came to the library after 3.8, of all that such a script might like to use.
LATER = {
    "removeprefix", "removesuffix", "is_relative_to", "readlink", "hardlink_to", "with_stem",
    "cache", "pairwise", "batched", "bit_count", "to_thread", "file_digest", "tomllib", "zoneinfo",
}  # fmt: skip


def python38():
    """Return a real Python 3.8, if there is one."""
    places = [shutil.which("python3.8"), *Path.home().glob(".pyenv/versions/3.8*/bin/python")]
    for place in filter(None, places):
        code = "import sys; sys.exit(sys.version_info[:2] != (3, 8))"
        if subprocess.run([place, "-c", code], capture_output=True).returncode == 0:
            return str(place)
    return None


PYTHONS = [pytest.param(sys.executable, id="this")]
if python38() is not None:
    PYTHONS.append(pytest.param(python38(), id="3.8"))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "device_setup.pyz"
    path.write_bytes(device_script())
    return path


def run(python, script, *words, stdin=b""):
    command = [python, "-I", "-W", "error", str(script), *map(str, words)]
    environment = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, input=stdin, env=environment)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_script_has_no_syntax_or_name_that_python_3_8_lacks(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in node.names
    }
    assert not (used - {"readlink"} | imported) & LATER
    # os.readlink is old; pathlib's is not.
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "readlink":
            assert isinstance(node.value, ast.Name)
            assert node.value.id == "os"


def test_the_script_imports_nothing_but_the_library_and_itself(script):
    with zipfile.ZipFile(script) as archive:
        names = set(archive.namelist())
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                own = f"{module.replace('.', '/')}.py"
                assert own in names or module.partition(".")[0] in sys.stdlib_module_names, module


def test_the_same_sources_give_the_same_script():
    device_script.cache_clear()
    first = device_script()
    device_script.cache_clear()
    assert device_script() == first


@pytest.mark.parametrize("python", PYTHONS)
def test_facts_are_told_without_writing_anything(python, script, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    result = run(python, script, "facts", "--root", root, "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    told = json.loads(result.stdout)
    assert told["arch"] == os.uname().machine
    assert told["pythons"]
    assert (told["agent"], told["l4t"], told["blobs"]) == (None, None, [])
    assert not list(root.iterdir())


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("words", [(), ("flash",), ("apply",), ("facts", "--what")])
def test_misuse_ends_with_status_2(python, script, words):
    assert run(python, script, *words).returncode == 2


@pytest.mark.parametrize("python", PYTHONS)
def test_apply_without_a_list_of_files_asks_for_one(python, script, tmp_path):
    result = run(python, script, "apply", tmp_path / "payload", "--root", tmp_path, "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["state"] == "refused"
    assert "send it first" in json.loads(result.stdout)["reason"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"schema":2,"files":[],"blobs":[],"agent":"x"}', b"\xff",
                b'{"schema":1,"files":[{"path":"../x"}],"blobs":[],"agent":"x"}',
                b'{"schema":1,"files":[],"blobs":[],"agent":"../../x"}',
                b'{"schema":1,"files":[{"path":7}],"blobs":[],"agent":"x"}'],
)  # fmt: skip
def test_a_malformed_list_of_files_is_refused(script, tmp_path, content):
    (tmp_path / "payload.json").write_bytes(content)
    result = run(sys.executable, script, "apply", tmp_path, "--root", tmp_path / "r", "--json")
    assert (result.returncode, json.loads(result.stdout)["state"]) == (2, "refused")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", DEVICE_TREES)
def test_release_and_name_of_a_device_are_those_that_the_agent_finds(script, tmp_path, name):
    device = DEVICE_TREES[name]
    root = device.write(tmp_path / "root")
    told = json.loads(run(sys.executable, script, "facts", "--root", root, "--json").stdout)
    target = detect_target(root, query=lambda: None, problem=lambda: "", versions=dict)
    assert told["l4t"] == target.l4t
    jetpack = target.jetpack.partition(".")[0] if target.jetpack else None
    assert told["jetpack"] == ("?" if target.l4t and jetpack is None else jetpack)
    assert told["gpus"] == ([target.name] if target.kind == "jetson" else [])


def stream_of(content, *, path="wheels/a.whl", offset=0, digest=None, size=None):
    head = {"path": path, "size": len(content) if size is None else size, "offset": offset}
    head["sha256"] = digest or hashlib.sha256(content).hexdigest()
    return json.dumps(head).encode() + b"\n" + content[offset:]


def take(payload, content):
    return receive(payload, io.BytesIO(content), spare_bytes=0)


def test_files_of_a_stream_arrive_whole(tmp_path):
    contents = {"wheels/a.whl": b"a" * 3_000_000, "payload.json": b"", "keys/k.pub": b"k"}
    stream = b"".join(stream_of(content, path=path) for path, content in contents.items())
    assert take(tmp_path, stream) == 3
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert len(list(tmp_path.rglob("*.part"))) == 0


@pytest.mark.parametrize("cut", [0, 1, 999_999, 1_000_000, 2_500_000])
def test_a_file_that_was_cut_goes_on_where_it_ended(tmp_path, cut):
    content = random.Random(cut).randbytes(2_500_001)
    path = tmp_path / "wheels/a.whl"
    stream = stream_of(content)
    with pytest.raises(StopError, match=f"cut at byte {cut}"):
        take(tmp_path, stream[: len(stream) - len(content) + cut])
    assert not path.exists()
    assert received_bytes(path) == cut
    assert take(tmp_path, stream_of(content, offset=cut)) == 1
    assert path.read_bytes() == content


def test_bytes_that_do_not_match_the_digest_are_thrown_away(tmp_path):
    with pytest.raises(StopError, match="other bytes"):
        take(tmp_path, stream_of(b"content", digest="0" * 64))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_goes_on_only_where_it_ends(tmp_path):
    with pytest.raises(StopError, match="does not end at byte 3"):
        take(tmp_path, stream_of(b"content", offset=3))


@pytest.mark.parametrize(
    "path",
    ["../a", "/etc/passwd", "wheels/../../a", "", ".", "a//b", "a/./b", "a\\b", "a b", "a\0"],
)
def test_no_file_is_written_outside_of_the_payload(tmp_path, path):
    with pytest.raises(StopError, match="no path of a payload"):
        take(tmp_path / "payload", stream_of(b"content", path=path))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("head", [b"{}\n", b"[]\n", b"\xff\n", b"x" * 100_000])
def test_a_stream_without_heads_is_refused(tmp_path, head):
    with pytest.raises(StopError, match="head of a file"):
        take(tmp_path, head)


def test_a_file_that_the_disk_has_no_space_for_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(StopError, match="no space"):
        take(tmp_path, stream_of(b"", size=1 << 60, digest="0" * 64))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
