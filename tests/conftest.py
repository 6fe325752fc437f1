"""Every test starts from the same random numbers, and takes one core: several tests, and their processes, share two."""

import os
import random
import resource
from pathlib import Path

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


# Tests that took long when somebody measured, a line each; a name without brackets stands for all of its cases
SLOW = Path(__file__).with_name("slow.txt")


def pytest_addoption(parser):
    parser.addoption(
        "--measure-slow",
        type=float,
        metavar="SECONDS",
        help="write tests/slow.txt anew, in a run of all tests: what is not marked and took more processor time",
    )


def pytest_collection_modifyitems(config, items):
    """Mark what tests/slow.txt names. SLOW_TURN=1/3 in the environment leaves the second of every three slow tests, 0/3
    the first: runs take turns."""
    if not config.getoption("--measure-slow"):
        named = set(SLOW.read_text().splitlines())
        for item in items:
            if item.nodeid in named or item.nodeid.partition("[")[0] in named:
                item.add_marker("slow")
    if turn := os.environ.get("SLOW_TURN"):
        number, turns = map(int, turn.split("/"))
        slow = [item for item in items if item.get_closest_marker("slow")]
        kept = {id(item) for item in slow[number::turns]}
        left = [item for item in slow if id(item) not in kept]
        config.hook.pytest_deselected(items=left)
        gone = {id(item) for item in left}
        items[:] = [item for item in items if id(item) not in gone]


def processor_time():
    """Seconds of this process, and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = processor_time()
    yield
    if item.config.getoption("--measure-slow") and not item.get_closest_marker("slow"):
        item.user_properties.append(("seconds", processor_time() - start))


@pytest.fixture
def count(record_property):
    """count(what, text): a line of the summary that closes a run, for the tests whose point is how much they try."""

    def call(what: str, text: str) -> None:
        record_property("count", f"{what}: {text}")

    return call


def pytest_terminal_summary(terminalreporter):
    reports = [report for found in terminalreporter.stats.values() for report in found]
    properties = [
        (report.nodeid, *pair)
        for report in reports
        for pair in getattr(report, "user_properties", ())
        if report.when == "call"
    ]
    if counts := sorted(value for _, name, value in properties if name == "count"):
        terminalreporter.section("what was tried")
        terminalreporter.write_line("\n".join(counts))
    if limit := terminalreporter.config.getoption("--measure-slow"):
        took = {test: value for test, name, value in properties if name == "seconds"}
        quick = {test.partition("[")[0] for test, value in took.items() if value <= limit}
        slow = {test for test, value in took.items() if value > limit}
        names = {name if (name := test.partition("[")[0]) not in quick else test for test in slow}
        SLOW.write_text("".join(f"{name}\n" for name in sorted(names)))
