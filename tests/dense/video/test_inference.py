"""A video in, events out: files, folders of frames and arrays, through a checkpoint as anybody has it."""

import csv

import numpy as np
import pytest
import torch
from small_videos import Perfect, frames_of, write_file, write_frames  # noqa: F401  registers it

from attlas.dense.video.detector import VideoAnomalyDetector
from attlas.inference import Inferencer, load

MODEL = dict(type="VideoAnomalyDetector", network=dict(type="Perfect"), length=5, step=2)
STEPS = [dict(type="PackClip", size=(16, 24))]


def checkpoint_of(path, model, learned=True):
    if learned:
        model.learn_normal(np.linspace(-70.0, -50.0, 100))
    config = f"""
default_scope = "attlas"
model = {MODEL!r}
test_dataloader = dict(dataset=dict(type="RoomWalks", split="test", transforms={STEPS!r}))
"""
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=config)), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "epoch_1.pth"
    return checkpoint_of(path, VideoAnomalyDetector(MODEL["network"], length=5, step=2))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    frames = frames_of(40, 32, 48)
    frames[10:14] = frames[16:18] = 0  # two frames apart: one event
    frames[30] = 0
    write_file(root / "a.avi", frames, fps=10.0)
    write_frames(root / "b", frames)
    (root / "c.mp4").write_text("no video")
    write_frames(root / "short", frames[:5])
    return root


def test_files_and_folders_of_frames(model, videos):
    inferencer = Inferencer(model, device="cpu")
    found = {result["input"].rpartition("/")[2]: result for result in inferencer(videos)}
    assert sorted(found) == ["a.avi", "b", "c.mp4", "short"]
    for name in ("a.avi", "b"):
        result = found[name]
        assert (result["frames"], len(result["scores"])) == (40, 40)
        events = [(event["start"], event["end"]) for event in result["events"]]
        assert events == [(10, 17), (30, 30)]
        assert all(event["start"] <= event["peak"] <= event["end"] for event in result["events"])
        assert result["scores"][0] is None
    assert found["a.avi"]["events"][0]["seconds"] == [1.0, 1.8]
    assert "seconds" not in found["b"]["events"][0]
    assert "no video" in found["c.mp4"]["error"]
    assert "has 5 frames; clips of 5 frames in steps of 2 take 9" in found["short"]["error"]
    said = inferencer.task.said(found["a.avi"])
    assert said.startswith("40 frames, 2 events above -50.10 (minus the PSNR, in dB): frames 10 to 17 (1.00 to 1.80 s)")
    assert inferencer(videos / "b")[0]["events"] == found["b"]["events"]  # the folder itself is one input


def test_what_an_event_is(model, videos):
    def events(**options):
        return [(e["start"], e["end"]) for e in Inferencer(model, device="cpu", **options)(videos / "b")[0]["events"]]

    assert events(gap=1) == [(10, 13), (16, 17), (30, 30)]
    assert events(gap=0, least=2) == [(10, 13), (16, 17)]
    assert events(threshold=1000.0) == []
    assert events(quantile=0.0, gap=0) == [(2, 37)]
    found = Inferencer(model, device="cpu")(videos / "b", top=1)[0]["events"]
    assert len(found) == 1


def test_arrays(model):
    frames = frames_of(20)
    frames[8] = 0
    inferencer = Inferencer(model, device="cpu")
    colors, grey, wrong = inferencer([frames, frames[..., 0], frames / 255])
    assert (
        [(e["start"], e["end"]) for e in colors["events"]]
        == [(8, 8)]
        == [(e["start"], e["end"]) for e in grey["events"]]
    )
    assert "a video must be uint8" in wrong["error"]


def test_without_a_measured_threshold(tmp_path, videos):
    path = checkpoint_of(tmp_path / "x.pth", VideoAnomalyDetector(MODEL["network"], length=5, step=2), learned=False)
    inferencer = Inferencer(path, device="cpu")
    (result,) = inferencer(videos / "b")
    assert result["events"] is None
    assert inferencer.task.said(result) == "40 frames; no events without a threshold (--threshold)"
    with pytest.raises(ValueError, match="give a threshold"):
        Inferencer(path, device="cpu", quantile=0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(tile=64), "option for a detector of anomalies is 'tile'"),
        (dict(threshold=1.0, quantile=0.5), "give one of them"),
        (dict(threshold=float("nan")), "threshold is nan"),
        (dict(gap=-1), "gap is -1"),
        (dict(least=0), "least is 0"),
    ],
)
def test_options_that_do_not_fit(model, options, words):
    with pytest.raises(ValueError, match=words):
        Inferencer(model, device="cpu", **options)


def test_a_table_of_all_frames(model, videos, tmp_path):
    inferencer = Inferencer(model, device="cpu")
    (result,) = inferencer(videos / "b")
    scores = result["scores"]
    assert inferencer.task.save(None, result, tmp_path / "0001_b") == dict(table="0001_b.csv")
    assert "scores" not in result
    with open(tmp_path / "0001_b.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(40))
    assert list(rows[0]) == ["frame", "raw", "normalized", "causal"]
    assert [row["raw"] == "" for row in rows] == [score is None for score in scores]
    assert [float(row["raw"]) for row in rows[2:38]] == pytest.approx(scores[2:38], rel=1e-5)
    assert {row["normalized"] for row in rows[:2]} == {""}
    assert all(0 <= float(row[name]) <= 1 for row in rows[2:38] for name in ("normalized", "causal"))


def test_a_figure(model, videos):
    loaded = load(model, device="cpu")
    inferencer = Inferencer(loaded)
    ((result, source),) = inferencer.stream(inferencer.find(videos / "a.avi"))
    figure = inferencer.task.draw(source, result)
    assert figure.get_suptitle().endswith("a.avi")
