"""Speed relative to the dense model that the paper reports, by the names of our settings."""

# Figure 5 and Section 5.4.1: Mask R-CNN, COCO, the whole detector. Relative to a model with the MLP
# of iTPN; ConvMLP, which our dense path has the counterpart of, is stated to give 1.10 by itself.
FIGURE_5 = {
    'dense': 1.0,
    'migration-10': 1.15,
    'migration-20': 1.20,
    'migration-30': 1.23,
    'migration-40': 1.27,
    'windows': 1.90,
    'gathering': 1.85,
    'all': 1.70,
}

# Table VII: Faster R-CNN, DOTA, the whole detector, images/s. Which rows of the middle have
# relative positions is inferred: their check marks are not in the text of the paper that we have.
TABLE_7 = {
    'dense': 1.0,
    'windows': 28.4 / 17.3,
    'windows-rpe': 27.8 / 17.3,
    'gathering': 28.7 / 17.3,
    'gathering-rpe': 25.9 / 17.3,
    'gathering-hrpe': 26.0 / 17.3,
}
