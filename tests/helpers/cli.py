"""Commands that must fail in one line."""

from __future__ import annotations

from neuralfuse.cli.main import run


def fails(capsys, arguments, *texts):
    """The command must exit with 2 and print one line with these texts, and nothing on standard output."""
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if not line.startswith("loading")]
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("neuralfuse: ")
    for text in texts:
        assert text in lines[0]
