"""The command line, run in this process by the tests of its commands."""

from convnn import cli


def run(capsys, *arguments):
    """Run the command line; return its exit status and what it wrote to the two outputs."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
