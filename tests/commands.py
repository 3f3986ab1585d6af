"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from uda_reid import cli


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["uda-reid", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err
