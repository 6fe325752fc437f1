# ConvTTrans with LI-ConvLSTM on ShanghaiTech Campus, in color, as the authors: DATA is the folder with training and
# testing. Videos of your own that lie as it does train with it, too.
_base_ = ["../_base_/conv_temporal_vad.py"]

data_root = "{{$DATA:data/shanghaitech}}"
_data = dict(type="ShanghaiTech", root=data_root)
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = dict(dataset=_data)
