"""The device script: `device/` as one file that any Python from 3.8 on runs."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib import resources

SCRIPT_NAME = "device_setup.pyz"
_PACKAGE = "host_tools/flash/device"
_MAIN = b"import sys\n\nfrom host_tools.flash.device.main import main\n\nsys.exit(main())\n"


@cache
def device_script() -> bytes:
    """Return the zip file; the same sources give the same bytes."""
    modules = {
        f"{_PACKAGE}/{file.name}": file.read_bytes()
        for file in resources.files("host_tools.flash.device").iterdir()
        if file.name.endswith(".py")
    }
    empty = {"host_tools/__init__.py": b"", "host_tools/flash/__init__.py": b""}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in sorted({"__main__.py": _MAIN, **empty, **modules}.items()):
            archive.writestr(zipfile.ZipInfo(name), source, zipfile.ZIP_DEFLATED)
    return content.getvalue()
