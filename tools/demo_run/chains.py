"""What studies train: models by name, each from several starts and with several seeds."""

from collections.abc import Iterable, Mapping

STARTS = {'pretrained': 'pre-trained', 'scratch': 'from scratch'}
SEEDS = (0, 1, 2)
EVALUATION_SECONDS = 20.0  # and what it takes to start


def all_chains(models: Iterable[str], compare: bool) -> list[tuple[str, str, int]]:
    """All triples of a model, what it starts from, and a seed; one start and seed by default."""
    models = list(models)
    return [
        (model, start, seed)
        for seed in (SEEDS if compare else SEEDS[:1])
        for start in (STARTS if compare else ('pretrained',))
        for model in models
    ]


def chain_name(model: str, start: str, seed: int) -> str:
    """Name of such a triple: of its log, and the first part of the names of its tasks."""
    return f'{model}-{start}-seed{seed}'


def chain_folder(model: str, start: str, seed: int) -> str:
    """Its folder under that of the study."""
    return f'{model}/{start}/seed{seed}'


def all_costs(seconds: Mapping[str, float], compare: bool) -> dict[str, float]:
    """Expected seconds of every task, by `<model>-<start>-seed<seed>/<task>`.

    Args:
        seconds: Of a training, by model.
        compare: See :func:`all_chains`.
    """
    found = {}
    for chain in all_chains(seconds, compare):
        found[f'{chain_name(*chain)}/train'] = seconds[chain[0]]
        found[f'{chain_name(*chain)}/evaluate'] = EVALUATION_SECONDS
    return found


def seconds_of(tasks: Mapping[tuple[str, str, int], Mapping[str, dict]]) -> dict[str, float]:
    """Seconds of every task, named as in :func:`all_costs`, out of the files of all chains."""
    return {
        f'{chain_name(*chain)}/{task}': content['seconds']
        for chain, files in tasks.items()
        for task, content in files.items()
    }
