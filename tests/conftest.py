"""Every test starts from the same random numbers, and takes one core: several tests, and their processes, share two."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and for the processes that tests start

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

import attlas  # noqa: F401  before any test imports mmcv, which looks for its extension once

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers_end_with_their_test():
    """MMEngine's loggers keep the stream of output that was there when they were made, here one that pytest closes."""
    yield
    MMLogger._instance_dict.clear()


def pytest_collection_modifyitems(config, items):
    """SLOW_TURN=1/2 in the environment leaves the second of every two slow tests, 0/2 the first: runs take turns."""
    if turn := os.environ.get("SLOW_TURN"):
        number, turns = map(int, turn.split("/"))
        slow = [item for item in items if item.get_closest_marker("slow")]
        kept = {id(item) for item in slow[number::turns]}
        left = [item for item in slow if id(item) not in kept]
        config.hook.pytest_deselected(items=left)
        gone = {id(item) for item in left}
        items[:] = [item for item in items if id(item) not in gone]


@pytest.fixture
def count(record_property):
    """count(what, text): a line of the summary that closes a run, for the tests whose point is how much they try."""

    def call(what: str, text: str) -> None:
        record_property("count", f"{what}: {text}")

    return call


def pytest_terminal_summary(terminalreporter):
    reports = [report for found in terminalreporter.stats.values() for report in found]
    properties = [
        pair for report in reports for pair in getattr(report, "user_properties", ()) if report.when == "call"
    ]
    if counts := sorted(text for name, text in properties if name == "count"):
        terminalreporter.section("what was tried")
        terminalreporter.write_line("\n".join(counts))
