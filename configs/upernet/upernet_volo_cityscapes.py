# VOLO in UperNet on Cityscapes. Its maps of strides 8 and 16 make the pyramid. Published mIoU: 84.3. The
# authors announced their code and have not released it: neck, recipe and drop path are ours. They say that they
# predicted windows (model.test_cfg.mode=slide).
_base_ = ["../_base_/upernet.py", "../_base_/cityscapes_160k.py"]

name = "{{$BACKBONE:volo_d1_224}}"
work_dir = f"work_dirs/upernet_{name}_cityscapes"
model = dict(
    backbone=dict(out_indices=(0, 3), drop_path_rate=0.1),
    neck=dict(type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=1),
)
