"""The detector: modes, a stream in constant memory, the frame that is blamed, thresholds, bad batches."""

import numpy as np
import pytest
import torch
from golden_records import Record
from small_videos import Perfect, frames_of, write_file, write_frames  # noqa: F401  registers it

from attlas import checkpoint
from attlas.dense.video.datasets import PackClip
from attlas.dense.video.detector import NormalScores, VideoAnomalyDetector
from attlas.dense.video.errors import losses
from attlas.dense.video.videos import Frames, Video
from attlas.dense.video.windows import Windows

NETWORK = dict(type="ConvTemporalVAD", in_channels=3, context=1, heads=2, layers=1, dims=(8, 8, 8), kernel=3)
PACK = PackClip(size=(8, 12))


def small(**options):
    torch.manual_seed(0)
    return VideoAnomalyDetector(**(dict(network=NETWORK, length=5, step=2) | options)).eval()


def perfect(**options):
    return VideoAnomalyDetector(dict(type="Perfect"), **(dict(length=5, step=2) | options)).eval()


def clips(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def asked(model, video, truth=None):
    return model.test_step(dict(video=[video], transforms=[PACK], truth=[truth], name=[video.name]))[0]


# --- modes -----------------------------------------------------------------------------------------------------------


def test_modes():
    model, batch = small(ssim_weight=0.3), clips(2, 5, 3, 8, 12)
    with torch.no_grad():
        predicted = model(batch)
        assert predicted.shape == (2, 3, 3, 8, 12)
        found = model(batch, mode="loss")
        terms = losses(predicted / 2 + 0.5, batch[:, 1:4] / 2 + 0.5)
        assert set(found) == {"loss_ssim", "loss_l1", "psnr"}
        torch.testing.assert_close(found["loss_ssim"], 0.3 * terms["ssim"])
        torch.testing.assert_close(found["loss_l1"], 0.7 * terms["l1"])
        first, second = model(batch, names=["a", "b"], mode="predict")
    assert (first["name"], second["name"]) == ("a", "b")
    assert np.mean([first["loss"], second["loss"]]) == pytest.approx(float(found["loss_ssim"] + found["loss_l1"]))
    error = (predicted[1] / 2 - batch[1, 1:4] / 2).square().mean((1, 2, 3))
    np.testing.assert_allclose(second["scores"], 10 * error.log10().numpy(), rtol=1e-5)


def test_a_step_of_training():
    model = small()
    model.init_weights()
    bound = (6 / (9 * (3 + 8))) ** 0.5
    assert 0.8 * bound < model.network.low.weight.abs().max() <= bound
    wrapper = type("Wrapper", (), dict(update_params=lambda self, loss: loss.backward()))()
    wrapper.optim_context = lambda model: torch.enable_grad()
    log = model.train().train_step(dict(clip=list(clips(2, 5, 3, 8, 12)), name=["a", "b"]), wrapper)
    assert torch.isfinite(log["loss"])
    assert model.network.low.weight.grad.abs().sum() > 0


# --- whole videos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [True, False])
def test_the_stream_equals_all_clips_at_once(overlap):
    model, frames = small(overlap=overlap), frames_of(21)
    found = asked(model, Frames(frames))
    packed = PACK(dict(frames=list(frames)))["clip"]
    sums, counts = np.zeros(21), np.zeros(21)
    for start in Windows(5, 2, 1, overlap).starts(21):
        clip = packed[start : start + 9 : 2][None]
        (one,) = model.val_step(dict(clip=clip))
        targets = [start + 2, start + 4, start + 6]
        sums[targets] += one["scores"]
        counts[targets] += 1
    expected = np.divide(sums, counts, out=np.full(21, np.nan), where=counts > 0)
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-5)
    assert len(found["scores"]) == 21
    assert (found["name"], found["fps"], found["measure"]) == ("the array", None, "psnr")


@pytest.mark.parametrize("error", ["psnr", "patch", "ssim"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_frame_that_is_blamed_is_the_one(tmp_path, kind, error):
    """One map from clips to frames: the score of a bad frame stands at its number, from any source."""
    frames = frames_of(20, 16, 24)
    frames[11] = 0
    if kind == "folder":
        write_frames(tmp_path / "v", frames)
    else:
        write_file(tmp_path / "v.avi", frames)
    video = Video(tmp_path / ("v" if kind == "folder" else "v.avi"))
    scores = asked(perfect(error=error), video)["scores"]
    assert int(np.nanargmax(scores)) == 11
    assert np.isnan(scores[[0, 1, 18, 19]]).all()
    assert not np.isnan(scores[2:18]).any()


def test_a_stream_without_an_end_in_constant_memory():
    """Frame by frame, with the delay that is promised; nothing piles up."""
    model, seen = perfect(), []

    def camera():
        for number in range(10_000_000):
            seen.append(number)
            yield frames_of(1)[0]

    model.transforms = PACK
    stream = model.watch(camera())
    for number, (frame, _) in zip(range(60), stream):
        assert frame == number
        assert seen[-1] == max(frame + model.windows.delay, model.windows.span - 1)
    kept = stream.gi_frame.f_locals
    assert len(kept["kept"]) < model.windows.span
    assert len(kept["gathered"].sums) <= model.windows.span


def test_a_corrupted_interval_is_told_perfectly():
    from attlas.dense.video.metrics import areas

    frames, truth = frames_of(40), np.zeros(40, bool)
    truth[15:25] = True
    frames[truth] = 0
    found = asked(perfect(), Frames(frames), truth)
    assert areas([(found["scores"], found["truth"])], sigma=0)["raw"] == (1, 1)
    still = asked(perfect(), Frames(np.full((20, 8, 12, 3), 90, np.uint8)), np.zeros(20, bool))
    forms = areas([(still["scores"], truth[10:30])])
    assert not np.isnan(list(forms.values())).any()


def test_scores_of_a_video_do_not_depend_on_those_beside_it():
    model, one, other = small(), Frames(frames_of(12), "a"), Frames(frames_of(14, seed=3), "b")
    pair = model.test_step(dict(video=[one, other], transforms=[PACK, PACK], name=["a", "b"]))
    np.testing.assert_array_equal(pair[0]["scores"], asked(model, one)["scores"])
    np.testing.assert_array_equal(pair[1]["scores"], asked(model, other)["scores"])


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_the_threshold_is_of_normal_frames():
    model = small()
    with pytest.raises(ValueError, match=r"no scores of normal frames.*NormalScores"):
        model.threshold()
    model.learn_normal(np.arange(2001.0))
    assert model.threshold(0.5) == 1000
    assert model.threshold() == pytest.approx(1990)
    again = small()
    assert checkpoint.load(again, model.state_dict()).complete
    assert again.threshold(1.0) == 2000
    assert int(again.normal_count) == 2001
    with pytest.raises(ValueError, match="quantile is 2"):
        model.threshold(2)
    with pytest.raises(ValueError, match="not finite"):
        model.learn_normal(np.array([1.0, np.nan]))


def test_the_hook_measures_clips_of_the_training():
    model = small().train()
    data = [dict(clip=clips(5, 3, 8, 12, seed=n), name=str(n)) for n in range(10)]
    runner = type("Runner", (), {})()
    runner.model, runner.train_dataloader = model, type("Loader", (), dict(dataset=data))()
    NormalScores(clips=4).after_train_epoch(runner)
    assert model.training
    model.eval()
    scores = [model.val_step(dict(clip=[data[n]["clip"]]))[0]["scores"] for n in (0, 3, 6, 9)]
    assert model.normal_count == 12
    assert model.threshold(1.0) == pytest.approx(np.max(scores))
    assert model.threshold(0.0) == pytest.approx(np.min(scores))


def test_the_files_of_the_authors_load():
    """A network alone, under its own names; what lacks is the scores of normal frames."""
    model = small()
    state = {name.removeprefix("network."): v for name, v in model.state_dict().items() if "network" in name}
    loaded = small()
    torch.nn.init.zeros_(loaded.network.low.weight)
    account = checkpoint.load(loaded, dict(state_dict=state, optimizer={}, epoch=3))
    assert account.complete
    assert torch.equal(loaded.network.low.weight, model.network.low.weight)
    assert loaded.normal_count == 0
    record = Record("conv-temporal-vad/network_gray_16")
    authors = VideoAnomalyDetector(dict(type="ConvTemporalVAD", context=2), length=5)
    assert checkpoint.load(authors, record.state_dict()).complete


# --- what is refused -------------------------------------------------------------------------------------------------


def test_videos_that_are_none():
    with pytest.raises(ValueError, match="the array has 8 frames; clips of 5 frames in steps of 2 take 9"):
        asked(small(), Frames(frames_of(8)))
    with pytest.raises(ValueError, match="has 1 frames"):
        asked(small(), Frames(frames_of(1)))
    with pytest.raises(ValueError, match="the array has 9 frames, and its truth 10"):
        asked(small(), Frames(frames_of(9)), np.zeros(10, bool))
    with pytest.raises(ValueError, match="mode='loss' takes clips"):
        small()(videos=[Frames(frames_of(9))], transforms=[PACK], mode="loss")
    broken = small()
    torch.nn.init.constant_(broken.network.last.bias, float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite numbers for the array"):
        asked(broken, Frames(frames_of(9)))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (dict(clip=[]), "the batch is empty"),
        (dict(clip=[clips(5, 3, 8, 8), clips(5, 3, 8, 12)]), "must have one shape"),
        (dict(clip=[torch.zeros(5, 3, 8, 8, dtype=torch.uint8)]), "clips must be floats"),
        (dict(clip=[clips(5, 3, 8, 8), torch.full((5, 3, 8, 8), torch.nan)], name=["a", "b"]), r"clip 1 .* \(b\)"),
        (dict(clip=[clips(6, 3, 8, 8)]), "clips have 6 frames, and the model has length=5"),
        (dict(clip=[clips(5, 3, 8, 10)]), "multiples of 4"),
    ],
)
def test_batches_that_do_not_fit(batch, words):
    with pytest.raises(ValueError, match=words):
        small().test_step(batch)


def test_a_training_that_diverged():
    model = small()
    torch.nn.init.constant_(model.network.last.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        model(clips(1, 5, 3, 8, 8), mode="loss")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(length=2), "length is 2"),
        (dict(error="mse"), "error is 'mse'"),
        (dict(patch=4), "has no patches"),
        (dict(ssim_weight=2), "ssim_weight is 2"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)
