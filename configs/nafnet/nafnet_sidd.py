# NAFNet on SIDD, as the authors: 8 GPUs with 4 (width 32) or 8 (width 64) patches each, out of pieces of 512 pixels
# that lie as pictures in DATA/gt_crops and DATA/input_crops. Published PSNR (RGB) on the blocks of the validation, in
# the same two folders of BENCHMARK: nafnet_sidd_width32 39.97, nafnet_sidd_width64 40.30.
# Trains nafnet_sidd_width32 unless told otherwise:
#   python tools/train.py configs/nafnet/nafnet_sidd.py --cfg-options name=nafnet_sidd_width64
_base_ = "../_base_/nafnet.py"

name = "{{$NETWORK:nafnet_sidd_width32}}"
data_root = "{{$DATA:data/SIDD/train}}"
benchmark = "{{$BENCHMARK:data/SIDD/val}}"
work_dir = f"work_dirs/{name}"
train_dataloader = dict(dataset=dict(root=data_root, layout="SIDD_crops", symmetries=False))
val_dataloader = test_dataloader = dict(dataset=dict(root=benchmark, layout="SIDD_crops"))
