"""Classification by the nearest labelled images, which needs no training."""

import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from torch import Tensor

NEIGHBOURS = 5


def classify(
    queries: Tensor, features: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS
) -> Tensor:
    """Class of each query: the vote of its nearest neighbours, weighted by similarity.

    Args:
        queries: (Q, C).
        features: (N, C) of the labelled images.
        labels: Their classes (N,), integers from 0.
        neighbours: How many of them vote, at most N.

    Returns:
        Classes (Q,). Similarity is the cosine, moved from [-1, 1] to [0, 1].
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(features, dim=1).T
    nearest, indices = similarity.topk(neighbours, dim=1)
    votes = queries.new_zeros(len(queries), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[indices], (nearest + 1) / 2)
    return votes.argmax(dim=1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of right predictions in percent."""
    return 100 * (predicted == labels).float().mean().item()


@torch.no_grad()
def extract_features(runner: Runner, loader: dict) -> tuple[Tensor, Tensor, list[str]]:
    """What the classifier's head would get of each image of a data loader's config.

    Args:
        runner: Holds an mmpretrain classifier, whose weights are initialised or loaded.
        loader: Config of the data loader.

    Returns:
        Features (N, C), classes (N,) and paths.
    """
    model = runner.model.eval()
    features, labels, paths = [], [], []
    for batch in Runner.build_dataloader(loader, seed=runner.seed):
        batch = model.data_preprocessor(batch)
        features.append(model.extract_feat(batch['inputs'], stage='neck')[-1])
        labels += [sample.gt_label.item() for sample in batch['data_samples']]
        paths += [sample.img_path for sample in batch['data_samples']]
    return torch.cat(features), torch.tensor(labels), paths
