_base_ = [
    '../_base_/models/upernet_hivit-base_tpn.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/upernet_160k.py',
]
