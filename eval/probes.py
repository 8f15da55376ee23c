"""What simple readers find in features: a cheap look at how much meaning lies in them."""

import torch
import torch.nn.functional as F


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, answers: torch.Tensor, penalty: float = 1.0
) -> float:
    """Accuracy of a linear classifier, fitted in closed form: least squares on one-hot labels.

    Args:
        features, labels: (I, F) and (I,) int64, to fit on.
        queries, answers: (J, F) and (J,) int64, to be classified.
        penalty: of the squared weights, times the number of examples; features are standardised first.
    """
    mean, std = features.double().mean(0), features.double().std(0) + 1e-6
    known, asked = ((x.double() - mean) / std for x in (features, queries))
    targets = F.one_hot(labels).double()
    targets = targets - (center := targets.mean(0))
    gram = known.T @ known / len(known)
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, known.T @ targets / len(known))
    return (asked @ weight + center).argmax(1).eq(answers).double().mean().item()


def retrieval(features: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, answers: torch.Tensor) -> float:
    """Share of queries whose nearest neighbour, by the cosine of centred features, has the right label.

    Shapes are those of `linear_probe`.
    """
    mean = features.float().mean(0)
    known, asked = (F.normalize(x.float() - mean, dim=1) for x in (features, queries))
    return labels[(asked @ known.T).argmax(1)].eq(answers).float().mean().item()
