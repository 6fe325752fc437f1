# FFNet in UperNet on ADE20K. Published mIoU, of one scale / several: ffnet_2 47.1 / 47.8, ffnet_3 49.6 / 50.2,
# ffnet_4_img384 50.7 / 51.7. The first two began from weights that learned from a teacher: give such a file as
# pretrained. The larger two were trained with a decay of the learning rate of 0.9 over 12 layers.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:ffnet_2}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(drop_path_rate=0.2 if name == "ffnet_2" else 0.3))
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
