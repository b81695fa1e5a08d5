# The teacher is CLIP ViT-L/14: with patches of 14 pixels, it sees 196 for the student's 224.
_base_ = './itpn-clip-b_hivit-base-p16.py'

model = dict(
    head=dict(target_dims=768),
    aux_head=dict(target_dims=768),
    teacher=dict(checkpoint='pretrained/clip_vit-large-p14.pt', img_size=196),
)
