"""Tools as modules, and as a user calls them."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def load():
    """load(tool) -> its module, under another name (`test` is also one of the standard library's)."""

    def call(name):
        spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return call


@pytest.fixture
def run(load, monkeypatch, capsys):
    """run(tool, *arguments) -> what it prints."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, arguments)])
        load(tool).main()
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


@pytest.fixture
def refusal(load, monkeypatch, capsys):
    """refusal(tool, *arguments) -> the message with which it stops, as argparse stops."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            load(tool).main()
        return capsys.readouterr().err

    return call
