"""A restorer trained by MMEngine's runner: EMA evaluated, figures of the metrics, what a checkpoint holds."""

import numpy as np
import torch
from small_restorers import SmallUpscaler  # noqa: F401  registers it

from attlas import checkpoint
from attlas.dense.restoration.degradations import build_degradation
from attlas.dense.restoration.metrics import psnr
from attlas.engine import Runner


def mean_psnr(model, dataset):
    figures = []
    for item in dataset:
        with torch.no_grad():
            (sample,) = model.eval().val_step({key: [item[key]] for key in ("image", "truth", "name")})
        pictures = ((255 * sample[key]).round().byte().permute(1, 2, 0).numpy() for key in ("restored", "truth"))
        figures.append(psnr(*pictures, crop=2))
    return np.mean(figures)


def test_training_on_photographs_beats_bicubic_and_keeps_what_it_undid(tmp_path):
    """From random patches in random symmetries."""
    degradation = dict(type="Bicubic", scale=2)
    data = dict(type="Photographs", degradation=degradation, transforms=[dict(type="PackPair")])
    runner = Runner(
        model=dict(type="Restorer", network=dict(type="SmallUpscaler", width=16), losses=dict(charbonnier=1.0)),
        work_dir=str(tmp_path / "work"),
        train_dataloader=dict(
            batch_size=8,
            dataset=dict(**data, split="train", patch=24, symmetries=True),
            sampler=dict(type="EndlessSampler"),
            num_workers=0,
        ),
        val_dataloader=dict(
            batch_size=1,
            dataset=dict(**data, split="test"),
            sampler=dict(type="DefaultSampler", shuffle=False),
            num_workers=0,
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=120, val_interval=120),
        val_cfg=dict(),
        val_evaluator=[dict(type="ImagePSNR"), dict(type="ImageSSIM", channels="RGB")],
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=5e-3)),
        custom_hooks=[dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.1)],
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=120, by_epoch=False)),
        default_scope="attlas",
        experiment_name="restorer",
        randomness=dict(seed=0),
    )
    before = mean_psnr(runner.model, runner.val_loop.dataloader.dataset)  # of bicubic interpolation
    runner.train()
    found = checkpoint.read(tmp_path / "work" / "iter_120.pth")
    meta = found["meta"]["dataset_meta"]
    assert meta["scale"] == 2
    assert build_degradation(meta["degradation"]).config == degradation

    # the average that MMEngine evaluated is what it saved
    model = runner.model
    model.load_state_dict(found["state_dict"])
    logged = runner.message_hub.get_scalar("val/PSNR_Y").current()
    assert abs(mean_psnr(model, runner.val_dataloader.dataset) - logged) < 1e-3
    assert before > 32.9  # bicubic, as torch interpolates
    assert logged > before + 0.3
    assert 0 < runner.message_hub.get_scalar("val/SSIM_RGB").current() < 1
