_base_ = [
    '../_base_/models/mask-rcnn_fastitpn-base_tpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw_layer-decay_1x.py',
    '../_base_/detection_runtime.py',
]
