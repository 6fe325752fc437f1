# VOLO in UperNet on ADE20K. Its maps of strides 8 and 16 make the pyramid. Published mIoU, at several sizes:
# volo_d1_224 50.5, volo_d3_224 52.9, volo_d5_224 54.3. The authors announced their code and have not released it: neck,
# recipe and drop path are ours. They say that they predicted windows (model.test_cfg.mode=slide).
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:volo_d1_224}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(
    backbone=dict(out_indices=(0, 3), drop_path_rate=0.1),
    neck=dict(type="attlas.UpsampledFPN", in_channels="auto", out_channels=256, num_outs=4, upsample=1),
)
