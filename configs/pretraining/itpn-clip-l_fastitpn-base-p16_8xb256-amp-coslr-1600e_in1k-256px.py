_base_ = './itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k.py'

# The teacher's patches have 14 pixels, the student's 16.
model = dict(backbone=dict(img_size=256), teacher=dict(img_size=224))
train_pipeline = _base_.train_pipeline
train_pipeline[3].update(size=256, second_size=224)
train_pipeline[4].update(input_size=16)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
