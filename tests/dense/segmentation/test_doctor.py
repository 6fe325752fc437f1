"""What tools/doctor.py says of a segmentor's training."""

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from attlas.dense.segmentation import FurnishedRoomsMaps
from attlas.dense.segmentation.doctor import examine_data, examine_fit
from attlas.images import read_image

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
