"""Write requirements.lock from what is installed: `.venv/bin/python tools/lock.py` (make lock)."""

import re
from importlib.metadata import distributions
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
LEFT_OUT = re.compile(r"^(nvidia-.*|cuda-.*|triton|convnn|pip)$")
HEADER = """\
# Constraints for .venv, written by `make lock`: the versions that the tests pass with.
# Only the Makefile uses it (as pip's constraints); a plain `pip install` does not.
# CUDA libraries (nvidia-*, cuda-*, triton) are left out: torch pins them itself, for the platforms that have them.
"""


def main() -> None:
    """Freeze the current environment."""
    found = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version.partition("+")[0] for d in distributions()}
    rows = [f"{name}=={version}" for name, version in sorted(found.items()) if not LEFT_OUT.match(name)]
    LOCK.write_text(HEADER + "\n".join(rows) + "\n")
    print(f"requirements.lock: {len(rows)} packages.")


if __name__ == "__main__":
    main()
