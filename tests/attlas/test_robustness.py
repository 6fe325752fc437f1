"""Means of metrics under corruptions. tests/tools/test_tools.py and tests/dense/detection/test_training.py measure."""

import json

import pytest
from rich.console import Console

from attlas.robustness import Robustness


@pytest.fixture
def known():
    found = Robustness(("fog", "snow"), (0, 1, 3))
    values = (("clean", 0, 0.8), ("fog", 1, 0.6), ("fog", 3, 0.5), ("snow", 1, 0.4), ("snow", 3, 0.1))
    found.found = {(name, severity): dict(AP=value, seen=2 * value) for name, severity, value in values}
    return found


def test_means(known):
    assert known.jobs() == list(known.found)
    assert known.mean("AP") == pytest.approx(0.4)
    assert known.mean("AP", ["fog"]) == pytest.approx(0.55)
    assert known.relative("AP") == pytest.approx(50)
    assert known.metric(None) == "AP"
    with pytest.raises(ValueError, match="no metric 'mAP'; the evaluator gives AP, seen"):
        known.metric("mAP")


def test_the_record_has_means_at_the_end(known):
    record = json.loads(json.dumps(known.record()))
    assert record["clean"] == dict(AP=0.8, seen=1.6)
    assert record["corruptions"]["snow"] == {"1": dict(AP=0.4, seen=0.8), "3": dict(AP=0.1, seen=0.2)}
    assert record["mPC"] == pytest.approx(dict(AP=0.4, seen=0.8))
    assert record["rPC"] == pytest.approx(dict(AP=50, seen=50))
    known.found.pop(("snow", 3))
    assert {"mPC", "rPC"}.isdisjoint(known.record())


def test_the_table(known):
    console = Console(width=80)
    with console.capture() as shown:
        console.print(known.table("AP"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.get().splitlines() if "│" in line]
    assert rows[:2] == [["fog", "0.6", "0.5", "0.55"], ["snow", "0.4", "0.1", "0.25"]]
    assert [row[-1] for row in rows[2:]] == ["0.8", "0.4", "50"]


def test_without_clean_images_there_is_no_relative_figure(known):
    known.severities = (1, 3)
    known.found.pop(("clean", 0))
    assert "rPC" in known.record()
    assert known.record()["rPC"] == {}
    assert known.record()["clean"] == {}
