import os
import re
import subprocess
import sys

import pytest

from convnn import __version__, cli
from convnn.errors import DivergedError, missing_extra

from .command_line import run


@pytest.mark.parametrize(("arguments", "words"), [((), ("demo", "train")), (("demo",), ("--seed", "--quick", "--out"))])
def test_help(capsys, arguments, words):
    status, out, _ = run(capsys, *arguments, "--help")
    assert status == 0
    assert all(word in out for word in words)


def test_help_of_train_lists_every_option(capsys):
    _, out, _ = run(capsys, "train", "--help")
    for option in (
        "--data",
        "--model",
        "--layer",
        "--epochs",
        "--batch-size",
        "--lr",
        "--seed",
        "--out",
        "--resume",
        "--config",
    ):
        assert option in out
    assert "_size" not in out.replace("IMAGE_SIZE", "").replace("BATCH_SIZE", "")


def test_help_imports_nothing_heavy():
    heavy = ("lightning", "timm", "sklearn", "matplotlib", "torchmetrics", "rich")
    code = "import sys, convnn.cli\ntry:\n    convnn.cli.main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]")


def test_version(capsys):
    assert run(capsys, "--version")[1].strip() == f"convnn {__version__}"


def test_without_a_command_it_says_what_it_can_do_and_what_to_try(capsys):
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert run(capsys, "--help") == (0, out, "")
    assert all(f"  {name}" in out for name in cli.COMMANDS)
    for call, _ in cli.FIRST:  # each is a call that can be made
        assert call in out
        name, *rest = call.split()[1:]
        assert name in cli.COMMANDS
        options = run(capsys, name, "--help")[1]
        assert all(word in options for word in rest if word.startswith("--"))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["dmo"]])
def test_what_needs_no_command_imports_no_pytorch(arguments):
    code = f"import sys\nfrom convnn.cli import main\nmain({arguments!r})\nprint(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "'torch'" not in done.stderr
    assert "'jsonargparse'" not in done.stderr


def test_a_missing_parser_is_named_with_what_to_install(tmp_path):
    code = "import sys\nsys.modules['jsonargparse'] = None\nfrom convnn.cli import main\nsys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("convnn demo: error: jsonargparse is not installed, and this needs it; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dmo",), "convnn: error: command: expected one of demo, train.*, got 'dmo'; did you mean demo?"),
        (("demo", "--sed", "1"), "--sed: expected an option of this command, got an unknown one; did you mean --seed?"),
        (
            ("train", "--batch_size", "1"),
            "--batch_size: expected an option of this command, .* did you mean --batch-size?",
        ),
        (("demo", "--seed", "x"), "convnn demo: error: --seed: expected a whole number, got 'x'"),
        (("demo", "--seed", "-1"), "convnn demo: error: --seed: expected a whole number of at least 0, got -1"),
        (("train",), "convnn train: error: --data: expected a folder of images or a dataset name of timm, got nothing"),
        (("train", "--lr", "fast"), "convnn train: error: --lr: expected a number, got 'fast'"),
        (("train", "--image-size", "1.5"), "--image-size: expected a whole number, got '1.5'"),
        (("train", "--data", "nowhere"), "--data: expected a folder that exists, got 'nowhere'"),
        (("train", "--data", ".", "--layer", "hybird"), "--layer: expected one of .*; did you mean 'hybrid'"),
        (("train", "--data", ".", "--batch-size", "0"), "--batch-size: expected a whole number of at least 1, got 0"),
        (("train", "--config", "nowhere.yaml"), "--config: expected a YAML file, got '.*nowhere.yaml'; check the path"),
    ],
)
def test_wrong_options_are_named_and_end_with_two(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert re.search(message.replace("?", r"\?"), err.strip())
    assert len(err.strip().splitlines()) == 1


def test_a_yaml_file_and_options_after_it(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda _, settings: seen.append(settings))
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {tmp_path}\nepochs: 7\nlayer: hybrid\nbatch_size: 5\n")
    assert run(capsys, "train", "--config", str(config), "--epochs", "2")[0] == 0
    assert (seen[0].epochs, seen[0].layer, seen[0].batch_size) == (2, "hybrid", 5)
    config.write_text("epoch: 7\n")
    status, _, err = run(capsys, "train", "--config", str(config))
    assert status == 2
    assert "epoch: expected an option of this command, got an unknown one; did you mean --epochs?" in err


def test_demo_options_arrive(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda _, settings: seen.append(settings))
    assert run(capsys, "demo", "--seed", "4", "--out", str(tmp_path), "--quick")[0] == 0
    assert (seen[0].seed, seen[0].out, seen[0].quick) == (4, str(tmp_path), True)


def test_interruptions_and_missing_packages_have_their_status(monkeypatch, capsys, tmp_path):
    def raise_(error):
        def stop(*_):
            raise error

        monkeypatch.setattr(cli, "_run", stop)

    raise_(KeyboardInterrupt())
    status, _, err = run(capsys, "train", "--data", str(tmp_path), "--out", "runs/x")
    assert (status, err) == (130, "convnn train: interrupted; go on with: convnn train --out runs/x --resume\n")
    raise_(missing_extra("lightning", "train"))
    status, _, err = run(capsys, "demo")
    assert status == 1
    assert 'pip install ".[train]"' in err


def test_train_from_the_command_line(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    for name, shade in (("dark", 30), ("light", 220)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(np.full((8, 8), shade + number, np.uint8)).save(
                tmp_path / "images" / name / f"{number}.png"
            )
    out = tmp_path / "run"
    options = ("--image-size", "8", "--epochs", "1", "--progress", "false", "--accelerator", "cpu")
    status, shown, _ = run(capsys, "train", "--data", str(tmp_path / "images"), "--out", str(out), *options)
    assert status == 0
    assert "2 classes: dark, light" in shown
    assert re.search(r"train  16 images: dark \d, light \d", shown)
    assert re.search(r"val    2 images \(cut from train\): dark \d, light \d", shown)
    assert "Best epoch by validation: 1 of 1" in shown
    assert "tested once" in shown
    assert (out / "result.json").exists()
    status, shown, _ = run(capsys, "train", "--out", str(out), "--resume")
    assert status == 0
    assert "Going on with the run in" in shown


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("train", "--help"), ("profile", "small_cnn", "--no-time")]
)
def test_output_that_nobody_reads_ends_the_command_quietly(monkeypatch, capsys, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(arguments) == 141
        print("what Python writes at its end", flush=True)
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_broken_pipe_of_something_else_is_not_hidden(monkeypatch):
    def broken(*_):
        raise BrokenPipeError(32, "a worker process is gone")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(BrokenPipeError, match="a worker process is gone"):
        cli.main(["table", "headline"])


def test_a_run_that_diverged_ends_with_one(monkeypatch, capsys, tmp_path):
    def diverged(*_):
        raise DivergedError("the training diverged: the training loss is nan at epoch 1, step 2; lower --lr")

    monkeypatch.setattr(cli, "_run", diverged)
    status, _, err = run(capsys, "train", "--data", str(tmp_path))
    assert status == 1
    assert (
        err == "convnn train: error: the training diverged: the training loss is nan at epoch 1, step 2; lower --lr\n"
    )
