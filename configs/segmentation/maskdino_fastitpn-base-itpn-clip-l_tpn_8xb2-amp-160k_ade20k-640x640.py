# Crops of 640 pixels; the short side is 320 to 1280 in training and 640 in testing.
_base_ = './maskdino_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-160k_ade20k-512x512.py'

crop_size = (640, 640)
model = dict(data_preprocessor=dict(size=crop_size), backbone=dict(img_size=640))
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scales=[int(640 * 0.1 * i) for i in range(5, 21)], max_size=2560)
train_pipeline[3].update(crop_size=crop_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(2560, 640))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
