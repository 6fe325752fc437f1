"""AUC by brute force, what normalization peeks at, what is left out and counted, and what the log says."""

import numpy as np
import pytest

from attlas.dense.video import metrics as module
from attlas.dense.video.metrics import ROWS, ClipLoss, VideoAUC, areas, auc, causal, normalized, smoothed


def test_auc_by_brute_force():
    draw = np.random.default_rng(0)
    for _ in range(30):
        scores, truth = draw.integers(0, 6, 25).astype(float), draw.random(25) < 0.4
        wins = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
        assert auc(scores, truth) == pytest.approx(np.mean(wins))
    assert auc(np.array([1.0, 2, 3]), np.array([0, 0, 1])) == 1
    assert np.isnan(auc(np.arange(3.0), np.zeros(3, bool)))
    with pytest.raises(ValueError, match="NaN"):
        auc(np.array([1.0, np.nan]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"scores are \(2,\), and truth \(3,\)"):
        auc(np.zeros(2), np.zeros(3))


def test_smoothing_by_hand():
    scores = np.zeros(41)
    scores[20] = 1
    both, past = smoothed(scores, 2.0), smoothed(scores, 2.0, causal=True)
    assert both.argmax() == past.argmax() == 20
    np.testing.assert_allclose(both[14:27], both[14:27][::-1])
    assert both[21] / both[20] == pytest.approx(np.exp(-1 / 8))
    assert not past[:20].any()
    assert past[21] / past[20] == pytest.approx(np.exp(-1 / 8))
    assert np.array_equal(smoothed(scores, 0.0), scores)
    np.testing.assert_allclose(smoothed(np.full(7, 3.0), 2.0), 3)  # whole at the ends, too
    np.testing.assert_allclose(smoothed(np.full(7, 3.0), 2.0, causal=True), 3)


def test_only_the_causal_form_does_not_look_ahead():
    draw = np.random.default_rng(1)
    scores = draw.normal(size=50)
    longer = np.concatenate([scores, [9.0, -9.0]])
    np.testing.assert_allclose(causal(longer)[:50], causal(scores), rtol=0, atol=1e-12)
    assert abs(normalized(longer)[:50] - normalized(scores)).max() > 0.1


@pytest.mark.parametrize("form", [normalized, causal])
def test_scores_that_are_all_the_same_are_no_nan(form):
    assert np.array_equal(form(np.full(9, 40.0)), np.zeros(9))
    assert np.array_equal(form(np.array([4.0])), [0])


def test_an_interval_is_found():
    scores, truth = np.full(60, -30.0), np.zeros(60, bool)
    truth[20:35] = True
    scores += 10 * truth + np.random.default_rng(0).normal(0, 0.3, 60)
    scores[:5] = scores[-5:] = np.nan
    found = areas([(scores, truth)], sigma=0)
    assert found == dict.fromkeys(ROWS, (1.0, 1.0)) | dict(causal=found["causal"])
    assert min(found["causal"]) > 0.6  # the first frames set its range
    shifted = np.roll(truth, 8)  # an index map that is 8 frames off costs this
    assert areas([(scores, shifted)], sigma=0)["raw"][0] < 0.8


def test_micro_and_macro_are_two_things():
    """Each video is told perfectly, all together are not; normalization hides it."""
    truth = np.arange(10) >= 5
    low, high = truth.astype(float), truth + 1.0
    found = areas([(low, truth), (high, truth)], sigma=0)
    assert found["raw"][1] == 1
    assert found["raw"][0] == pytest.approx(0.875)
    assert found["normalized"] == (1, 1)


def sample(name, scores, truth):
    return dict(name=name, scores=np.array(scores, float), truth=np.array(truth), measure="psnr")


def test_the_metric_says_what_its_figures_are_of(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(module, "print_log", lambda text, **_: said.append(text))
    metric = VideoAUC(sigma=0, out_file=str(tmp_path / "scores.npz"))
    nan = float("nan")
    samples = [
        sample("a/01", [nan, 1, 2, 3, nan], [0, 0, 0, 1, 1]),
        sample("a/02", [nan, 5, 5, 5, nan], [1, 0, 0, 0, 0]),  # normal, but for a frame that is left out
        sample("a/03", [nan, 3, 4, 4, nan], [1, 1, 1, 1, 1]),
    ]
    metric.process(None, samples)
    figures = metric.evaluate(3)
    assert set(figures) == {f"{row}_{kind}" for row in ROWS for kind in ("micro", "macro")}
    assert figures["raw_macro"] == 100
    scores, truth = np.array([1, 2, 3, 5, 5, 5, 3, 4, 4.0]), np.array([0, 0, 1, 0, 0, 0, 1, 1, 1])
    assert figures["raw_micro"] == pytest.approx(100 * auc(scores, truth), abs=1e-3)
    (text,) = said
    assert "of all 3 videos of the test data; score: psnr" in text
    assert "9 frames together, 4 of them anomalous; 6 of 15 at the ends" in text
    assert "mean over the 1 videos with both classes; left out are 1 with normal frames only and 1 with" in text
    assert "02: one class" in text
    assert text.index("raw  ") < text.index("normalized  ")
    with np.load(tmp_path / "scores.npz") as written:
        assert written["names"].tolist() == ["a/01", "a/02", "a/03"]
        np.testing.assert_array_equal(written["scores_0"], samples[0]["scores"])
        assert written["truth_2"].all()


def test_what_the_metric_refuses(tmp_path):
    metric = VideoAUC()
    with pytest.raises(ValueError, match="x came without the truth"):
        metric.process(None, [dict(name="x", scores=np.zeros(3), truth=None)])
    with pytest.raises(ValueError, match="x has 3 scores, and 2 frames of truth"):
        metric.process(None, [sample("x", [1, 2, 3], [0, 1])])
    with pytest.raises(ValueError, match="no video"):
        metric.compute_metrics([])
    with pytest.raises(ValueError, match="sigma is -1"):
        VideoAUC(sigma=-1)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        VideoAUC(out_file=str(tmp_path / "scores.json"))


def test_loss_of_clips():
    metric = ClipLoss()
    metric.process(None, [dict(loss=1.0), dict(loss=2.0)])
    assert metric.evaluate(2) == dict(loss=1.5)
    with pytest.raises(ValueError, match="no clip"):
        metric.compute_metrics([])
