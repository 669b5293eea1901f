"""What pip runs: the native library is compiled where there is a C compiler, and nothing fails where there is none.

`pip install .` puts it into the wheel, `pip install -e .` into the source tree. Environment variables:
`CONVNN_BUILD_NATIVE=0` leaves it out; `CONVNN_BUILD_PLATFORM`, a platform of a wheel, compiles for another system
with `CC="python -m ziglang cc"` (tools/wheels.py). `pip install -v` shows what was done; `convnn info` tells it later.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "convnn/native"


class NativeLibraryHook(BuildHookInterface):
    """Compiles the native library, and names the wheel by what it holds."""

    scratch = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the library and its record to the wheel."""
        source = Path(self.root, "src", PACKAGE)
        build = load(source / "build.py")
        editable = version == "editable"
        platform = os.environ.get("CONVNN_BUILD_PLATFORM", "")
        if platform and platform not in build.PLATFORMS:
            allowed = ", ".join(build.PLATFORMS)
            raise ValueError(f"CONVNN_BUILD_PLATFORM: expected one of {allowed}, got {platform!r}; or leave it out")
        self.scratch = "" if editable else tempfile.mkdtemp(prefix="convnn-")
        folder = source if editable else Path(self.scratch)
        try:
            built = build.build(folder, target=build.PLATFORMS.get(platform))
        except OSError as error:  # a full disk, a folder that cannot be written
            self.app.display_warning(f"The native library was not compiled ({error}): convnn runs in plain PyTorch.")
            return
        self.app.display_info(str(built))
        if editable:
            return
        for name in filter(None, (built.library, build.RECORD)):
            build_data["force_include"][str(folder / name)] = f"{PACKAGE}/{name}"
        if built.library:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform or this_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder that the library was compiled in."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def load(path: Path) -> ModuleType:
    """Import a module by its path: convnn itself is not installed yet."""
    spec = importlib.util.spec_from_file_location("convnn_native_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def this_platform() -> str:
    """Return the tag of this system, whose libraries need not run on an older one."""
    from packaging.tags import platform_tags

    tags = (tag for tag in platform_tags() if "linux" not in tag or tag.startswith("linux"))
    return next(tags, sysconfig.get_platform().replace("-", "_").replace(".", "_"))
