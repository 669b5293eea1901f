"""Make .venv ready, or see that it is: `python3 tools/venv.py`. The Makefile calls this before every target.

Ready means: a stamp, written last, holds the hash of requirements.lock, pyproject.toml and this folder's path.
An install that was cut off leaves a mark instead of a stamp, and the next run starts over. The native library is
compiled by the install, and again here where its sources have changed since. Standard library only, and syntax that an
old Python reads, so that it can say that it is too old.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ".[vision,train,study,export,dev]"
NEEDED = (3, 11)
FREE_GB = 8
SMOKE = "import torch, torchvision, timm, lightning, pytest; from importlib.metadata import version; version('convnn')"


def say(text):
    """Print one line at once."""
    print(text, flush=True)


def digest(root):
    """Hash of everything that decides what belongs into .venv."""
    parts = [(root / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
    return hashlib.sha256(b"\0".join([*parts, str(root).encode()])).hexdigest()


def is_ready(root):
    """Whether .venv holds exactly what the lock asks for."""
    stamp = root / ".venv" / "convnn.stamp"
    return (root / ".venv/bin/python").exists() and stamp.is_file() and stamp.read_text() == digest(root)


def wanted_python():
    """This interpreter if it is new enough, else the newest one on PATH that is; None where there is none."""
    if sys.version_info >= NEEDED:
        return sys.executable
    found = (shutil.which("python3.%d" % minor) for minor in range(14, NEEDED[1] - 1, -1))
    return next((path for path in found if path), None)


def create(root, python):
    """Create an empty .venv, with its own pip where this Python has ensurepip (Debian packs it apart)."""
    command = [python, "-m", "venv", "--clear", str(root / ".venv")]
    if subprocess.run(command, check=False, **QUIET).returncode:
        subprocess.run([*command, "--without-pip"], check=True)


def pip_command(root, python):
    """The command that installs into .venv: its own pip, or the one outside."""
    inside = str(root / ".venv" / "bin" / "python")
    for command in ([inside, "-m", "pip"], [python, "-m", "pip", "--python", inside]):
        if subprocess.run([*command, "--version"], check=False, **QUIET).returncode == 0:
            return command
    raise SystemExit("There is no pip: install it (Debian: apt install python3-pip python3-venv), then run make again.")


def progress(words):
    """What a line of pip's output says that it is doing, in short; None if it says nothing new."""
    if words[:2] == ["Installing", "collected"]:
        return "unpacking %d packages" % (len(words) - 3)
    if len(words) > 1 and words[0] == "Downloading":
        name = "-".join(words[1].split("/")[-1].split("-")[:2])
        return " ".join(["downloading", name, *words[2:4]])
    return "looking for " + words[1] if len(words) > 1 and words[0] == "Collecting" else None


def run_with_heartbeat(command, root, log_path):
    """Run the command, log its output and show every few seconds what it is doing. Returns its exit status."""
    terminal = sys.stdout.isatty()
    state = {"line": "starting"}
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=str(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def follow():
        with open(str(log_path), "wb") as log:
            for raw in process.stdout:
                log.write(raw)
                log.flush()
                state["line"] = progress(raw.decode(errors="replace").split()) or state["line"]

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        while True:
            reader.join(1 if terminal else 15)
            if not reader.is_alive():
                break
            text = "  %3d s  %s" % (time.monotonic() - start, state["line"])
            if terminal:
                print("\r\033[K" + text, end="", flush=True)
            else:
                say(text)
    finally:
        if terminal:
            print("\r\033[K", end="", flush=True)
        if process.poll() is None and reader.is_alive():
            process.terminate()
    return process.wait()


def install(root, python):
    """Create or complete .venv; the stamp is written when everything is there."""
    venv = root / ".venv"
    stamp, building = venv / "convnn.stamp", venv / "convnn.building"
    if (venv / "bin/python").exists() and not building.exists():
        say("Bringing .venv up to date with requirements.lock and pyproject.toml (seconds, if little has changed) ...")
    else:
        free = shutil.disk_usage(str(root)).free / 1e9
        if free < FREE_GB:
            say("Careful: %.1f GB of disk are free here; .venv and the downloads want about %d GB." % (free, FREE_GB))
        say("Creating .venv with %s (a few seconds) ..." % python)
        create(root, python)
        say("Installing PyTorch and the rest into .venv (about 6 GB on Linux, 2 to 5 minutes) ...")
    if stamp.exists():
        stamp.unlink()
    building.touch()
    log = venv / "install.log"
    options = ["--disable-pip-version-check", "--progress-bar", "off", "-c", "requirements.lock", "-e", EXTRAS]
    start = time.monotonic()
    if run_with_heartbeat([*pip_command(root, python), "install", *options], root, log):
        say("\n".join(log.read_text(errors="replace").splitlines()[-25:]))
        raise SystemExit("pip could not install everything (whole log: .venv/install.log). Run make again to retry.")
    if subprocess.run([str(venv / "bin/python"), "-c", SMOKE], check=False, cwd=str(root)).returncode:
        raise SystemExit(
            "The packages are installed but do not import. Remove .venv (make clean-venv) and run make again."
        )
    building.unlink()
    stamp.write_text(digest(root))
    say(".venv is ready (%d s)." % (time.monotonic() - start))


def compile_native(root):
    """Compile the native library unless it is there, made of the sources as they are; without a compiler say so."""
    script = root / "src" / "convnn" / "native" / "build.py"
    if subprocess.run([str(root / ".venv/bin/python"), str(script), "--if-changed"], check=False).returncode:
        say("The native library could not be compiled; convnn runs in plain PyTorch.")


def main():
    """Check, wait for another make that is installing, install if needed."""
    if is_ready(ROOT):
        say("Using .venv (it is up to date).")
        compile_native(ROOT)
        return
    python = wanted_python()
    if python is None:
        raise SystemExit(
            "convnn needs Python %d.%d or newer; %s is Python %d.%d. Name another one: make PYTHON=/path/to/python3 ..."
            % (*NEEDED, sys.executable, *sys.version_info[:2])
        )
    import fcntl

    with (ROOT / "pyproject.toml").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("Waiting for another make that is setting up .venv ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(ROOT):
            install(ROOT, python)
        compile_native(ROOT)


if __name__ == "__main__":
    os.chdir(str(ROOT))
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted: .venv is not ready. Run make again to start over.") from None
