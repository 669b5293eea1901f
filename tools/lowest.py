"""Run tests with the lowest versions that pyproject.toml allows: `python tools/lowest.py [pytest's arguments]`.

The versions go into an environment of their own, .venv-lowest (about 6 GB on Linux), which is made anew when
pyproject.toml changes. What only runs the tests has the versions of requirements.lock.
"""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-lowest"
EXTRAS = ("cli", "vision", "train", "study", "export")
RUNNERS = ("pytest", "pytest-xdist", "hypothesis")


def lowest(requirement: str) -> str | None:
    """Return the constraint to the lowest version of a requirement; None for one without a version.

    >>> lowest("jsonargparse[signatures]>=4.36"), lowest("convnn[cli]")
    ('jsonargparse==4.36', None)
    """
    found = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?\s*>=\s*([\w.]+)", requirement)
    return f"{found[1]}=={found[2]}" if found else None


def constraints(project: dict, lock: str) -> list[str]:
    """Return the exact versions to install: the lowest of what the library needs, the locked ones of the rest."""
    needed = [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]
    rows = {row.partition("==")[0]: row for row in lock.splitlines() if "==" in row}
    return sorted({row for row in map(lowest, needed) if row} | {rows[name] for name in RUNNERS})


def install(wanted: list[str]) -> None:
    """Make .venv-lowest, unless it holds these versions already."""
    stamp, text = VENV / "stamp", "\n".join(wanted) + "\n"
    digest = hashlib.sha256((text + str(ROOT)).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    print("Installing the lowest versions into .venv-lowest (about 6 GB on Linux):\n" + text, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    (VENV / "constraints.txt").write_text(text)
    options = ["--quiet", "--disable-pip-version-check", "-c", str(VENV / "constraints.txt")]
    packages = [*RUNNERS, "-e", f"{ROOT}[{','.join(EXTRAS)}]"]
    subprocess.run([str(VENV / "bin/python"), "-m", "pip", "install", *options, *packages], check=True)
    stamp.write_text(digest)


def main() -> None:
    """Install the lowest versions and run pytest in them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(constraints(project, (ROOT / "requirements.lock").read_text(encoding="utf-8")))
    command = [str(VENV / "bin/python"), "-m", "pytest", *sys.argv[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    raise SystemExit(subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
