"""Restored pictures beside the truth, and the pixels that they are made of."""

import cv2
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from small_restorers import SmallUpscaler  # noqa: F401  registers it

from attlas.dense.restoration import DegradedImages, ImagePSNR, PackPair, Restorer
from attlas.dense.restoration.pictures import comparison, draw_attribution, draw_restored


@pytest.fixture
def data(tmp_path):
    """data(degradation) -> a data set of two pictures of 44 x 60."""
    random = np.random.default_rng(0)
    for number in range(2):
        rough = random.integers(0, 256, (11, 15, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), cv2.resize(rough, (60, 44), interpolation=cv2.INTER_CUBIC))
    return lambda **degradation: DegradedImages(tmp_path, degradation, split="test", transforms=[PackPair()])


def small(scale=2, start=0.0):
    torch.manual_seed(0)
    network = dict(type="SmallUpscaler", scale=scale, start=start)
    return Restorer(network=network).eval()


def shown(figure):
    """Text of each panel, without line breaks -> its picture."""
    return {axes.texts[0].get_text(): axes.images[0].get_array() for axes in figure.axes if axes.images and axes.texts}


def frame(axes):
    (patch,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    return patch.get_y(), patch.get_x(), patch.get_height()


def test_a_part_of_every_picture(data):
    dataset, (top, left, side) = data(type="Bicubic", scale=2), (8, 20, 16)
    model = small(start=0.02)
    figure = draw_restored(dataset, {"ours": model, "nothing learned": small()}, 1, (top, left, side))
    found = shown(figure)
    names = [text.split("\n")[0] for text in found]
    assert names[0] == "1.png"
    assert names[1:] == ["low resolution", "bicubic", "ours", "nothing learned", "truth"]
    whole, low, bicubic, ours, same, truth = found.values()
    sample = dataset[1]
    assert np.array_equal(whole, (255 * sample["truth"]).round().byte().permute(1, 2, 0))
    assert np.array_equal(truth, whole[top : top + side, left : left + side])
    assert np.array_equal(low[::2, ::2], (255 * sample["image"]).round().byte().permute(1, 2, 0)[4:12, 10:18])
    assert np.array_equal(low[::2], low[1::2])  # nearest
    assert abs(bicubic.astype(int) - same).mean() < 5  # which PyTorch interpolates
    assert abs(ours.astype(int) - same).max() > 3
    assert frame(figure.axes[0]) == (top - 0.5, left - 0.5, side)


def test_psnr_is_what_is_measured(data):
    dataset, model = data(type="Bicubic", scale=2), small(start=0.02)
    figure = draw_restored(dataset, {"ours": model}, 0, (0, 0, 10))
    (text,) = (text for text in shown(figure) if text.startswith("ours"))
    sample, metric = dataset[0], ImagePSNR()
    with torch.no_grad():
        answers = model.val_step({key: [sample[key]] for key in ("image", "truth", "name")})
    metric.process(None, answers)
    assert text == f"ours\n{metric.compute_metrics(metric.results)['PSNR_Y']:.2f} dB"
    (bicubic,) = (text for text in shown(figure) if text.startswith("bicubic"))
    bold = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_weight() == "bold"]
    assert bold == [max((text, bicubic), key=lambda text: float(text.split("\n")[1][:-3]))]
    assert not [text for text in shown(figure) if text.startswith(("truth\n", "low resolution\n"))]


def test_of_the_same_size_the_input_has_a_psnr(data):
    figure = draw_restored(data(type="GaussianNoise", sigma=25), {"net": small(scale=1)}, 0, (0, 0, 10))
    texts = [text.split("\n") for text in shown(figure)]
    assert [text[0] for text in texts[1:]] == ["as it came", "net", "truth"]
    assert texts[1][1] == texts[2][1]  # which gives what it gets
    assert 20 < float(texts[1][1][:-3]) < 27


def test_grey_and_wide():
    grey = np.arange(40 * 200, dtype=np.int64).reshape(40, 200).astype(np.uint8)
    figure = comparison(grey, (30, 190, 10), {"a": grey}, {"a": 31.236})
    assert list(shown(figure)) == ["", "a\n31.24 dB", "truth"]
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1 for box in boxes)
    assert all(first.x1 <= second.x0 for first, second in zip(boxes, boxes[1:]))
    with pytest.raises(ValueError, match=r"crop=\(31, 0, 10\) .* is not inside a picture of 200 x 40 pixels"):
        comparison(grey, (31, 0, 10), {}, {})
    with pytest.raises(ValueError, match="no picture can be named 'truth' but the true one"):
        comparison(grey, (30, 190, 10), {"truth": grey}, {})


def test_what_is_refused(data):
    dataset = data(type="Bicubic", scale=2)
    with pytest.raises(ValueError, match="net has scale=3, and the data 2"):
        draw_restored(dataset, {"net": small(scale=3)}, 0, (0, 0, 8))
    with pytest.raises(ValueError, match="the data set has items 0 to 1"):
        draw_restored(dataset, {"net": small()}, 2, (0, 0, 8))
    with pytest.raises(ValueError, match=r"crop=\(0, 0, 45\)"):
        draw_restored(dataset, {"net": small()}, 0, (0, 0, 45))
    for name in ("low resolution", "bicubic", "truth"):
        with pytest.raises(ValueError, match=f"a network cannot be named '{name}'"):
            draw_restored(dataset, {name: small()}, 0, (0, 0, 8))
    model = small()
    torch.nn.init.constant_(model.network.last.bias, torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite numbers"):
        draw_restored(dataset, {"net": model}, 0, (0, 0, 8))


# --- attribution -----------------------------------------------------------------------------------------------------

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_what_a_patch_is_made_of():
    grey = Restorer(network=dict(type="FFNetSR", in_channels=1, dim=4, depth=1)).eval()
    asked = {"one": small(start=0.1), "grey": grey}
    figure = draw_attribution(PICTURE, asked, (50, 120), 8, 32, steps=2)
    found = shown(figure)
    part = PICTURE[11:43, 46:78]  # rows 25 to 28 and columns 60 to 63, in the middle
    assert np.array_equal(found["picture, 32 x 32 pixels,\nand the patch"], part)
    (row, column, side) = frame(figure.axes[0])
    assert (11 + row + 0.5, 46 + column + 0.5, side) == (25, 60, 4)
    indices = [text.split("diffusion index ")[1] for text in found if "diffusion index " in text]
    assert len(indices) == 2
    assert all(0 < float(index) < 20 for index in indices)
    around = found["around the patch, as it came"]
    assert np.array_equal(around, PICTURE[21:33, 56:68].repeat(2, 0).repeat(2, 1))
    areas = [picture for text, picture in found.items() if text.startswith("95 % lies in")]
    for area in areas:
        assert (area[:8] != part[:8]).any(2).all()  # far from the patch nothing takes part
        assert (area == part).all(2)[14:18, 14:18].any()


def test_at_a_border_and_of_a_small_picture():
    for place, size in (((0, 0), (32, 32)), ((104, 164), (32, 32)), ((52, 0), (32, 32))):
        figure = draw_attribution(PICTURE, {"net": small(start=0.1)}, place, 16, 32, steps=1)
        assert figure.axes[0].images[0].get_array().shape[:2] == size
        row, column, side = frame(figure.axes[0])
        assert min(row, column) >= -0.5
        assert max(row, column) + side <= 31.5
    figure = draw_attribution(PICTURE[:20], {"net": small(start=0.1)}, (10, 80), 16, 50, steps=1)
    assert figure.axes[0].images[0].get_array().shape[:2] == (20, 50)


def test_a_picture_in_which_nothing_takes_part():
    model = small()
    for parameter in model.network.parameters():
        torch.nn.init.zeros_(parameter)
    flat = np.full((24, 24, 3), 90, np.uint8)
    titles = list(shown(draw_attribution(flat, {"net": model}, (8, 8), 8, 24, steps=1)))
    assert "net\nnothing takes part" in titles
    assert not any("nan" in title for title in titles)


def test_patches_that_are_refused():
    model = small()
    with pytest.raises(ValueError, match="the networks have several: a x2, b x3"):
        draw_attribution(PICTURE, {"a": model, "b": small(scale=3)}, (0, 0))
    with pytest.raises(ValueError, match="restored picture of 180 x 120 pixels; its first column may be 0 to 164"):
        draw_attribution(PICTURE, {"a": model}, (0, 165))
    with pytest.raises(ValueError, match="around is 8; it must be at least 9, for a patch of side=16"):
        draw_attribution(PICTURE, {"a": model}, (0, 0), around=8)
