"""What tools/doctor.py says of a segmentor's training."""

import copy

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from attlas.dense.segmentation import FurnishedRoomsMaps
from attlas.dense.segmentation.doctor import examine_data, examine_fit
from attlas.images import read_image
from attlas.registry import MODELS

PIPELINE = [
    dict(type="attlas.ReadImage"),
    dict(type="attlas.ReadMap"),
    dict(type="RandomCrop", crop_size=(64, 80)),
    dict(type="PackSegInputs"),
]


def test_labels_behind_the_pipeline(rooms, tmp_path):
    dataset = FurnishedRoomsMaps(**rooms, pipeline=PIPELINE)
    found = [*examine_data(dataset, tmp_path / "targets.png")]
    counts = torch.stack([item["data_samples"].gt_sem_seg.data.flatten().bincount(minlength=17) for item in dataset])
    floor = 100 * float(counts.sum(0)[14] / counts.sum())
    told = {finding.about: finding for finding in found}
    assert f"floor {floor:.2f} %" in next(f.text for f in found if f.about == "classes")
    assert any(finding.warning and "without a pixel in 3 items" in finding.text for finding in found)
    assert "maps behind the pipeline: 80 x 64" in [finding.text for finding in found]
    assert told["data"].text == "3 images"
    assert read_image(tmp_path / "targets.png").size


class Knowing(torch.nn.Module):
    """Gives the labels that the images hold."""

    def data_preprocessor(self, batch, training):
        return batch

    def encode_decode(self, inputs, metas):
        return torch.nn.functional.one_hot(inputs[:, 0].long(), 3).permute(0, 3, 1, 2).float()


def test_a_batch_that_was_learned_by_heart():
    truth = torch.randint(3, (2, 1, 4, 5))
    images = truth.repeat(1, 3, 1, 1).float()
    truth[:, :, 0] = 255  # ignored
    images[0, :, 1] = (images[0, :, 1] + 1) % 3  # 5 of 30 pixels are wrong
    batch = dict(inputs=images, data_samples=[SegDataSample(gt_sem_seg=PixelData(data=labels)) for labels in truth])
    (finding,) = examine_fit(Knowing(), batch)
    assert finding.text == "83.3 % of its labeled pixels get their class"


def tiny(**head):
    """A network whose images are filled up to multiples of 32."""
    return MODELS.build(
        dict(
            type="EncoderDecoder",
            data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=32),
            backbone=dict(type="ResNet", depth=18, base_channels=8),
            decode_head=dict(type="FCNHead", in_channels=64, in_index=3, channels=64, num_convs=0, concat_input=False)
            | head,
            test_cfg=dict(mode="whole"),
        )
    )


def test_a_batch_that_was_filled_up():
    sizes = (40, 70), (64, 33)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, *size).long())) for size in sizes]
    batch = dict(inputs=[torch.zeros(3, *size, dtype=torch.uint8) for size in sizes], data_samples=samples)
    model = tiny(num_classes=3)
    model.decode_head.conv_seg.weight.data.zero_()
    model.decode_head.conv_seg.bias.data = torch.tensor([0.0, 1, 0])
    (finding,) = examine_fit(model, batch)
    assert finding.text == "100.0 % of its labeled pixels get their class"


def test_a_batch_for_one_channel():
    """The head's threshold decides, not which channel is largest."""
    truth = torch.ones(1, 32, 32).long()
    truth[:, :8] = 0
    sample = SegDataSample(gt_sem_seg=PixelData(data=truth))
    batch = dict(inputs=[torch.zeros(3, 32, 32, dtype=torch.uint8)], data_samples=[sample])
    loss = dict(type="CrossEntropyLoss", use_sigmoid=True)
    model = tiny(num_classes=2, out_channels=1, threshold=0.4, loss_decode=loss)
    model.decode_head.conv_seg.weight.data.zero_()
    for share, right in ((0.45, 75), (0.35, 25)):
        model.decode_head.conv_seg.bias.data = torch.tensor([share]).logit()
        (finding,) = examine_fit(model, copy.deepcopy(batch))
        assert finding.text == f"{right:.1f} % of its labeled pixels get their class"
