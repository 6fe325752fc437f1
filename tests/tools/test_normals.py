"""tools/normals.py: angles between lines, of the points that are asked about."""

import os

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """Threads stay as they were: the tool holds its process to fewer."""
    before = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        mask = os.sched_getaffinity(0)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
        if not os.environ[variable]:
            monkeypatch.delenv(variable)
    yield
    torch.set_num_threads(before)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, mask)


@pytest.fixture
def config(tmp_path):
    """A floor at z = 0 and a ball, each of whose normals has a random sign."""
    random = np.random.default_rng(0)
    floor = np.c_[random.random((400, 2)), np.zeros(400)]
    ball = random.normal(size=(400, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    normal = np.concatenate([np.eye(3)[[2] * 400], ball]) * random.choice([-1, 1], (800, 1))
    (tmp_path / "test").mkdir()
    (tmp_path / "classes.txt").write_text("floor\nball\n")
    labels = np.repeat([0, 1], 400)
    np.savez(tmp_path / "test/a.npz", pos=np.concatenate([floor, ball + 9]), normal=normal, point_label=labels)
    dataset = dict(type="SegmentedClouds", root=str(tmp_path), split="test", transforms=[])
    (tmp_path / "config.py").write_text(f"test_dataloader = dict(dataset={dataset!r})\n")
    return tmp_path / "config.py"


def measure(load, *arguments):
    tool = load("normals")
    args = tool.arguments().parse_args(list(map(str, arguments)))
    found = tool.clouds(args)
    return int(found[0].counted.sum()), [
        dict(zip(("k", "by", "median", "high"), row)) for row in tool.rows(found, args.k)
    ]


def test_angles(load, config):
    count, (ours, theirs) = measure(load, config, "--k", 12, "--without", "ball")
    assert (count, ours["by"], theirs["by"]) == (400, "attlas", "open3d")
    assert ours["median"] == ours["high"] == theirs["high"] == "0.0"
    count, rows = measure(load, config, "--k", 8, 64, "--without", "floor")
    assert (count, [row["k"] for row in rows]) == (400, ["8", "8", "64", "64"])
    for row in rows:  # signs differ, and no angle is near 180 degrees
        assert 0 < float(row["median"]) < 10
    assert measure(load, config, "--k", 12, "--points", 100)[0] == 100
    _, (noisy, _) = measure(load, config, "--k", 12, "--without", "ball", "--noise", 0.05)
    assert float(noisy["median"]) > 5


def test_points_that_have_no_labels(refusal, tmp_path):
    (tmp_path / "ball").mkdir()
    normal = np.random.default_rng(0).normal(size=(60, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    np.savez(tmp_path / "ball/a.npz", pos=normal, normal=normal)
    dataset = dict(type="ShapeFolder", root=str(tmp_path), split="all", transforms=[])
    (tmp_path / "config.py").write_text(f"test_dataloader = dict(dataset={dataset!r})\n")
    message = refusal("normals", tmp_path / "config.py", "--without", "ball")
    assert "--without leaves out points by their labels, and shape ball/a has none" in message


def test_the_table_and_what_is_refused(run, refusal, config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    printed = run("normals", config, "--k", 12)
    assert "1 clouds, 800 points counted, noise 0; 1 thread " in printed
    assert "over Open3D" in printed
    assert "--noise is -1.0" in refusal("normals", config, "--noise", -1)
    assert "--noise is nan; it must be a finite number" in refusal("normals", config, "--noise", "nan")
    for option in ("--points", "--clouds", "--threads"):
        assert f"{option} is 0; it must be a positive integer" in refusal("normals", config, option, 0)
    every = refusal("normals", config, "--without", "floor", "ball")
    assert "--without floor ball leaves no point of the clouds to count" in every
    assert "--without is 'flor'; it may be 'floor', 'ball'. Did you mean 'floor'?" in refusal(
        "normals", config, "--without", "flor"
    )
    assert "k must lie in 5..800" in refusal("normals", config, "--k", 1000)
    path = config.parent / "test/a.npz"
    with np.load(path) as arrays:
        bare = {key: arrays[key] for key in ("pos", "point_label")}
    np.savez(path, **bare)
    assert "shape a has no normals to compare with" in refusal("normals", config)
