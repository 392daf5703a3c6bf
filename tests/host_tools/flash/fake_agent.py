"""An agent that keeps the promises that setting up a device relies on, and does nothing else.

It is put into a wheel (see `agent_wheels`) with another VERSION, and with FAULT for what it shall
do wrong. Its bundles are the folders of real ones; one whose version is "bad" is rolled back.
"""

import contextlib
import hashlib
import http.server
import json
import os
import sys
from pathlib import Path

VERSION = "1"
FAULT = ""


def main() -> int:
    verb, words = sys.argv[1], sys.argv[2:]
    if verb == "--version":
        return 0
    return {"doctor": doctor, "install-unit": install_unit, "install": install, "serve": serve}[
        verb
    ](words)


def doctor(words):
    problem = {"name": "cuda", "state": "problem", "detail": "no driver", "help": "install one"}
    findings = [problem] if FAULT == "doctor" else []
    tell({"ok": not findings, "findings": findings})
    return int(bool(findings))


def install_unit(words):
    root, program = Path(words[words.index("--root") + 1]), words[words.index("--executable") + 1]
    unit = root / "etc/systemd/system/edge-agent.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(f"[Service]\nType=notify\nExecStart={program} serve\n")
    return 0


def install(words):
    folder, root = Path(words[0]), Path(os.environ["EDGE_SLOTS"])
    assert Path(os.environ["EDGE_TRUSTED_KEYS"]).is_dir()
    content = (folder / "manifest.json").read_bytes()
    manifest, bundle = json.loads(content), hashlib.sha256(content).hexdigest()
    artifacts = {a["sha256"]: a["size"] for a in manifest["artifacts"]}
    blobs = root / "blobs/sha256"
    missing = [d for d in sorted(artifacts) if not (blobs / d).exists()]
    state = {"committed": None, "a": None, "refused": []}
    with contextlib.suppress(FileNotFoundError):
        state = json.loads((root / "state.json").read_text())
    unchanged = state["a"] is not None and state["a"]["id"] == bundle
    refused = bundle in state["refused"] and "--again" not in words
    if "--dry-run" in words:
        wanted = [{"sha256": d, "size": artifacts[d]} for d in missing]
        problem = "it was rolled back on this device" if refused else None
        tell({"missing": wanted, "is_unchanged": unchanged, "problem": problem})
        return int(refused)
    blobs.mkdir(parents=True, exist_ok=True)
    for digest in missing:
        blob = (folder / "blobs/sha256" / digest).read_bytes()
        assert hashlib.sha256(blob).hexdigest() == digest
        write(blobs / digest, blob)
    if unchanged:
        tell({"result": "unchanged"})
        return 0
    if manifest["version"] == "bad":
        state["refused"].append(bundle)
        write(root / "state.json", json.dumps(state).encode())
        tell({"result": "rolled-back", "reason": "p95 is 3.1 times as long"})
        return 1
    sys.stderr.write("gate: all checks passed\n")
    state.update(committed="a", a={"id": bundle, "version": manifest["version"]})
    write(root / "state.json", json.dumps(state).encode())
    tell({"result": "committed"})
    return 0


def tell(value):
    sys.stdout.write(json.dumps(value))


def write(path, content):
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(content)
    new.replace(path)


def serve(words):
    if FAULT == "serve":
        return 1
    config = json.loads(Path(os.environ["EDGE_CONFIG"]).read_text())
    state = Path(config["slots"]) / "state.json"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_ready = state.exists() and json.loads(state.read_text())["committed"] is not None
            self.send_response(200 if is_ready else 503)
            self.send_header("Agent", VERSION)
            self.end_headers()

        def log_message(self, *words):
            pass

    http.server.HTTPServer(("127.0.0.1", config["port"]), Handler).serve_forever()
    return 0
