# ConvTTrans with LI-ConvLSTM on CUHK Avenue, in color, as the authors: DATA is the folder with training_videos,
# testing_videos and ground_truth_demo.
_base_ = ["../_base_/conv_temporal_vad.py"]

data_root = "{{$DATA:data/Avenue Dataset}}"
_data = dict(type="Avenue", root=data_root)
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = dict(dataset=_data)
