# TransNeXt in UperNet on ADE20K. Published mIoU, of one scale / several: transnext_tiny 51.1 / 51.5,
# transnext_small 52.2 / 52.5, transnext_base 53.0 / 53.5.
# The drop path is ours.
_base_ = ["../_base_/upernet.py", "../_base_/ade20k_160k.py"]

name = "{{$BACKBONE:transnext_tiny}}"
work_dir = f"work_dirs/upernet_{name}_ade20k"
model = dict(backbone=dict(img_size=512, drop_path_rate=0.4))
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
