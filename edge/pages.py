"""Pages for a browser: one file each, that fetches nothing from elsewhere."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from edge.http_answer import HttpAnswer

_INLINE = re.compile(rb"<(style|script)[^>]*>(.*?)</\1>", re.DOTALL)


@functools.cache
def page_answer(file: Path) -> HttpAnswer:
    """Return a page; its policy lets run and look what the file holds, and nothing else.

    Text of a model that passed for markup would still be no script, no style and no way out.
    """
    content = file.read_bytes()
    sources: dict[str, list[str]] = {"style": [], "script": []}
    for kind, inside in _INLINE.findall(content):
        digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
        sources[kind.decode()].append(f"'sha256-{digest}'")
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(sources["script"]),
        "style-src": " ".join(sources["style"]),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HttpAnswer(status=200, body=content, headers=headers)
