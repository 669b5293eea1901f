"""Make the wheels of a release: `python tools/wheels.py [--out dist] [PLATFORM ...]`, by default all of them.

Wanted are the packages hatchling and ziglang, whose C compiler compiles for every platform. Each wheel is checked: its
name, its library, and that the library asks for no newer glibc than its name says and for no other runtime.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PURE = "any"
FOLDER = "convnn/native"
LEVELS = {
    "manylinux_2_17_x86_64": ["baseline", "avx2", "avx512"],
    "manylinux_2_17_aarch64": ["baseline", "neon"],
    "macosx_11_0_arm64": ["baseline", "neon"],
}
PLATFORMS = (*LEVELS, PURE)
UNWANTED = re.compile(rb"libgomp|libomp|libiomp|libstdc\+\+|libc\+\+|libgcc_s")


def make(platform: str, out: Path) -> Path:
    """Build the wheel of a platform; return its path."""
    environment = {**os.environ, "CC": f"{sys.executable} -m ziglang cc", "CONVNN_BUILD_PLATFORM": platform}
    if platform == PURE:
        environment.update(CONVNN_BUILD_NATIVE="0", CONVNN_BUILD_PLATFORM="")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out.resolve())]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    found = sorted(out.glob(f"convnn-*-py3-none-{platform}.whl"), key=lambda path: path.stat().st_mtime)
    if done.returncode or not found:
        raise SystemExit(f"{platform}: there is no such wheel.\n{done.stdout}{done.stderr}")
    return found[-1]


def faults(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    platform = wheel.stem.split("-", 4)[-1]
    with zipfile.ZipFile(wheel) as content:
        names = [name for name in content.namelist() if name.startswith(f"{FOLDER}/_convnn.")]
        record = json.loads(content.read(f"{FOLDER}/build.json"))
        if platform == PURE:
            return [f"a pure wheel has {name}" for name in names]
        if len(names) != 1:
            return [f"expected one library, got {names}"]
        library = content.read(names[0])
    same = record["levels"] == LEVELS[platform]
    bad = [] if same else [f"expected the levels {LEVELS[platform]}, got {record['levels']}"]
    bad += [f"it needs {name.decode()}" for name in sorted(set(UNWANTED.findall(library)))]
    allowed = re.match(r"manylinux_(\d+)_(\d+)_", platform)
    if allowed:
        wanted = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"GLIBC_(\d+\.\d+)", library)}
        newer = sorted(version for version in wanted if version > (int(allowed[1]), int(allowed[2])))
        bad += [f"it needs glibc {major}.{minor}" for major, minor in newer]
    return bad


def main() -> None:
    """Make the wheels and check them."""
    parser = argparse.ArgumentParser(description="Make the wheels of a release, and check them.")
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"of {', '.join(PLATFORMS)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder that they go into")
    given = parser.parse_args()
    unknown = [name for name in given.platforms if name not in PLATFORMS]
    if unknown:
        parser.error(f"PLATFORM: expected some of {', '.join(PLATFORMS)}, got {unknown[0]!r}")
    missing = [name for name in ("hatchling", "ziglang") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} is not installed; run: pip install {' '.join(missing)}")
    bad = []
    for platform in given.platforms or PLATFORMS:
        wheel = make(platform, given.out)
        found = faults(wheel)
        bad += found
        print(f"{wheel.name}: {'; '.join(found) or 'made and checked'}", flush=True)
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
