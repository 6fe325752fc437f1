"""The survey of shipped configs: which it takes, and what it says of one that works and of one that does not."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import survey

TOOL = Path(survey.__file__)


def test_a_config_of_every_folder():
    listed = list(survey.configs(set()))
    counts = Counter(library for library, _ in listed)
    assert counts["mmdet"] >= 60
    assert counts["mmseg"] >= 25
    assert len({path.parent for _, path in listed}) == len(listed)
    ((library, path),) = survey.configs({"mmdet/retinanet"})
    assert (library, path.parent.name, path.stem) == ("mmdet", "retinanet", "retinanet_r18_fpn_1x_coco")


def test_the_page():
    good = dict(ok=True, seconds=1.0, operators=["nms"], error="")
    bad = dict(ok=False, seconds=1.0, operators=[], error="loss: ValueError: a | b")
    rows = [("mmdet", Path("x/one.py"), good), ("mmdet", Path("x/two.py"), bad), ("mmseg", Path("y/three.py"), good)]
    text = survey.page(rows)
    assert "mmdet: 1 of 2 configs work." in text
    assert "| x/one | works | nms |" in text
    assert "| x/two | loss: ValueError: a / b |  |" in text


@pytest.mark.slow
def test_one_config_of_each_library(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{survey.BEGIN}\n{survey.END}\nafter\n")
    command = [sys.executable, str(TOOL), "--only", "mmdet/fcos,mmseg/psanet", "--markdown", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "2 of 2 configs work." in done.stdout, done.stdout + done.stderr[-2000:]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "psamask_backward, psamask_forward" in text
