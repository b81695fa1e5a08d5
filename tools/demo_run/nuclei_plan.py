"""The plan of the demo on nuclei, as far as other demos run beside it."""

# What all demos but that on digits start from, and what is made of it here.
CHAINS = {'pretraining': ('pretrain',), 'nuclei': ('finetune', 'reconstruct', 'report')}
# Seconds of each task with one thread, for the time that is left.
COSTS = {'pretrain': 420.0, 'finetune': 490.0, 'reconstruct': 10.0, 'report': 5.0}


def costs() -> dict[str, float]:
    """Expected seconds of every task, by `<chain>/<task>`."""
    return {f'{chain}/{task}': COSTS[task] for chain, tasks in CHAINS.items() for task in tasks}
