"""The plan of the digits demo: what is compared, by which configs, on which labels."""

from collections.abc import Sequence

from demo_data.digits import FEW, SEEDS, few_name

STARTS = {
    'scratch': 'random weights',
    'photographs': 'pre-trained on photographs',
    'digits': 'pre-trained on the digits without their labels',
}
PRETRAINED = ('photographs', 'digits')
METHODS = {
    'knn': 'k-NN, frozen features',
    'linear': 'linear probe, frozen features',
    'finetune': 'fine-tuning',
}
LABELS = (*(str(number) for number in FEW), 'all')
CONFIGS = {
    'photographs': 'configs/demo/'
    'itpn-pixel_fastitpn-demo-p16_1xb64-coslr-1600i_photographs-64px.py',
    'digits': 'configs/demo/itpn-pixel_fastitpn-demo-p16_1xb64-coslr-1600i_digits-64px.py',
    'linear': 'configs/demo/'
    'fastitpn-demo-p16_itpn-pixel-1600i-pre_1xb64-linear-coslr-200i_digits-64px.py',
    'finetune': 'configs/demo/'
    'fastitpn-demo-p16_itpn-pixel-1600i-pre_1xb64-coslr-100i_digits-64px.py',
}
# Seconds of a task of each kind on one core, for the time that is left.
COSTS = {'pretrain': 290.0, 'knn': 14.0, 'linear': 13.5, 'finetune': 16.5}


def tasks_of(part: str) -> tuple[str, ...]:
    """Names of the tasks of a part, in their order: of the pre-training, or of a seed."""
    if part == 'pretrain':
        return ('pretrain',)
    return ('knn', *(f'{kind}-{labels}' for kind in ('linear', 'finetune') for labels in LABELS))


def chains(seeds: Sequence[int] = SEEDS) -> list[tuple[str, str]]:
    """All pairs of a start and a part, the pre-trainings first."""
    pretrainings = [(start, 'pretrain') for start in PRETRAINED]
    return pretrainings + [(start, f'seed{seed}') for seed in seeds for start in STARTS]


def chain_name(start: str, part: str) -> str:
    """Name of such a pair: of its log, and the first part of the names of its tasks."""
    return f'{start}-{part}'


def waits_for(start: str, part: str) -> str | None:
    """The chain whose pre-training another one starts from."""
    return chain_name(start, 'pretrain') if start in PRETRAINED and part != 'pretrain' else None


def costs(seeds: Sequence[int] = SEEDS) -> dict[str, float]:
    """Expected seconds of every task of all chains, by `<start>-<part>/<task>`."""
    return {
        f'{chain_name(start, part)}/{task}': COSTS[task.partition('-')[0]]
        for start, part in chains(seeds)
        for task in tasks_of(part)
    }


def list_of(labels: str, seed: int) -> str:
    """List of the labelled images, in the data set's folder."""
    return f'meta/{"train" if labels == "all" else few_name(int(labels), seed)}.txt'
