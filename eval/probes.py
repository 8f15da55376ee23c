"""Linear probes: how much of the labels of images and patches can be read from features."""

from typing import NamedTuple
from warnings import catch_warnings

import torch
import torch.nn.functional as F


_ITERATIONS = 300  # of the logistic regression at most


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, answers: torch.Tensor, penalty: float = 1.0
) -> float:
    """Returns the accuracy of a linear classifier, fitted in closed form: least squares on one-hot labels.

    Args:
        features, labels: (I, F) and (I,) int64, to fit on.
        queries, answers: (J, F) and (J,) int64, to classify.
        penalty: of the squared weights, times the number of examples; features are standardized first.
    """
    mean, std = features.double().mean(0), features.double().std(0) + 1e-6
    known, asked = ((x.double() - mean) / std for x in (features, queries))
    targets = F.one_hot(labels).double()
    targets = targets - (center := targets.mean(0))
    gram = known.T @ known / len(known)
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, known.T @ targets / len(known))
    return (asked @ weight + center).argmax(1).eq(answers).double().mean().item()


class PatchProbe(NamedTuple):
    """Linear classifier of the thing at a patch, on features of unit length: logits are `features @ weight.T + bias`.

    It is fitted on the teacher's features and applied to decoded semantics, too. Those are trained by their cosine to
    the teacher's features, so that only the direction has a meaning.
    """

    weight: torch.Tensor
    """(C, S)."""
    bias: torch.Tensor
    """(C,)."""
    classes: torch.Tensor
    """(C,) int64, the labels."""

    @classmethod
    def fit(cls, features: torch.Tensor, labels: torch.Tensor) -> "PatchProbe":
        """Fits a multinomial logistic regression on the patches with a thing.

        Args:
            features: (I, N, S) float32.
            labels: (I, N) int64, 0 where there is no thing.

        Raises:
            ImportError: scikit-learn is not installed (extra `eval`).
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        shown = labels > 0
        known = F.normalize(features[shown], dim=-1).numpy()
        scaler = StandardScaler().fit(known)
        model = LogisticRegression(C=0.1, max_iter=_ITERATIONS, tol=1e-3)
        with catch_warnings(action="ignore", category=ConvergenceWarning):
            model.fit(scaler.transform(known), labels[shown].numpy())
        weight = model.coef_ / scaler.scale_
        bias = model.intercept_ - weight @ scaler.mean_
        classes = torch.from_numpy(model.classes_)
        return cls(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), classes)

    def right(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns whether each patch with a thing is classified right: (B, N, S), (B, N) -> (patches with a thing,)."""
        shown = labels > 0
        logits = F.normalize(features[shown], dim=-1) @ self.weight.T + self.bias
        return self.classes[logits.argmax(-1)] == labels[shown]
