# For a teacher with patches of 14 pixels beside a student with patches of 16.
_base_ = './imagenet_two-views_224-224.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(second_size=196)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
