import importlib.util

import numpy as np
import pytest

from attlas.kernels import dispatch

LOOP = """
from attlas.kernels.dispatch import compiled


@compiled
def double(x):
    for i in range(len(x)):
        x[i] *= 2
"""


@pytest.fixture
def double(tmp_path):
    """double() -> a new compiled function of the same file, whose code the first call leaves on the disk."""
    path = tmp_path / "loop.py"
    path.write_text(LOOP)

    def make(name="attlas.loop"):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double

    return make


def test_a_compilation_is_said_once_and_not_where_the_code_is_on_disk(double, monkeypatch, caplog):
    def said():
        messages = [record.getMessage() for record in caplog.records if record.name == dispatch.__name__]
        caplog.clear()
        return messages

    monkeypatch.setattr(dispatch._Compilation, "said", False)
    double("users.own")(np.ones(3))
    assert said() == []  # of somebody else
    function = double()
    function(np.ones(3, np.float32))
    (message,) = said()
    assert "Numba compiles the CPU's loops, first those of attlas.loop: up to a minute" in message
    function(np.ones(3, np.int64))
    assert said() == []
    monkeypatch.setattr(dispatch._Compilation, "said", False)
    double()(np.ones(3, np.float32))
    assert said() == []
