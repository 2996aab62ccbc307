"""Logistic regression with a sparse prior: the posterior of the German credit data.

Every weight has a scale of its own under a global one, of Gamma laws as in Hoffman et al., NeuTra-lizing
bad geometry (2019, arXiv 1903.03704); data, split and coordinates are those of Grenioux, Durmus,
Moulines and Gabrie, On sampling with approximate transport maps (2023, arXiv 2302.04763). Their code clips
probabilities to [1e-6, 1 - 1e-6]; here log sigmoid is taken as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pysamp.targets.bayes import checked_split

N_GERMAN, P_GERMAN = 1000, 24
# The 250 test rows that scikit-learn's train_test_split(random_state=42) takes of 1000, four rows to a
# hexadecimal digit, the first in its highest bit.
GERMAN_TEST = (
    "3020014741084319728e0a808416008000d40002048200808308e524011409429c4014c24ab076a3419c"
    "00a310543042000000900046890410020001420710006063c3838c250021218619480444201818698a8a"
    "07014940086840024c04404900001001a0308bb40c0440107001180c9690260c00a618011007606432"
)


@dataclass(frozen=True, eq=False)
class SparseLogistic:
    """The posterior of x = (beta, log lambda, log tau), p + p + 1 numbers:

        P(label = 1 | features) = sigmoid(features . w),    w_j = tau lambda_j beta_j
        beta_j ~ N(0, 1),    lambda_j, tau ~ Gamma(shape 1/2, rate 1/2)

    features: (n, p), with a column of ones where a bias is wanted; labels: (n,) of 0 and 1; the same of
    test data, which do not enter the density. log_prob is log p(labels | x) + log prior(x), the prior
    normalised in these coordinates, so that its integral is the evidence. Data are kept in float64 on the
    CPU.

    Raises ValueError for shapes that do not match, no rows, labels other than 0 and 1, features that are
    not finite.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor | None = None
    test_labels: Tensor | None = None
    _rows: Tensor = field(init=False, repr=False, compare=False)  # (n, p), times 1 or -1
    _test_rows: Tensor | None = field(init=False, repr=False, compare=False)
    _copies: dict = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        split = (self.features, self.labels, self.test_features, self.test_labels)
        fields = checked_split(*split, _signed)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_uci(cls, path: str | Path) -> SparseLogistic:
        """From the file german.data-numeric: 1000 rows of 24 numbers and a label, 1 (good) or 2.

        The label becomes 1 and 0; every column is scaled to [-1, 1] over all rows, and a column of ones
        comes first. The split is the published one, 750 rows and 250 for testing.

        Raises ValueError naming the file and the line of what is wrong.
        """
        raw = torch.tensor(_read(Path(path)), dtype=torch.float64)
        x, y = raw[:, :-1], 2 - raw[:, -1]
        low, high = x.amin(0), x.amax(0)
        for (column,) in (low == high).nonzero()[:1].tolist():
            raise ValueError(f"{path}: column {column + 1} is constant: it cannot be scaled")
        x = 2 * (x - low) / (high - low) - 1
        x = torch.cat([torch.ones_like(x[:, :1]), x], 1)
        test = torch.tensor([int(b) for digit in GERMAN_TEST for b in f"{int(digit, 16):04b}"]) == 1
        return cls(x[~test], y[~test], x[test], y[test])

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2 * self.features.shape[1] + 1,)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._log_likelihood(x) + self.log_prior(x)

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beta, log_lambda, log_tau = self._parts(x)
        rows = self._at(x)[0]
        scale = torch.exp(log_tau + log_lambda)  # (n, p)
        w = scale * beta
        logit = w @ rows.T  # (n, rows)
        pull = torch.sigmoid(-logit) @ rows  # (n, p): the gradient by w
        along = pull * w  # by log lambda_j; its sum is that by log tau
        score = torch.cat(
            [
                pull * scale - beta,
                along + 0.5 * (1 - log_lambda.exp()),
                along.sum(1, keepdim=True) + 0.5 * (1 - log_tau.exp()),
            ],
            1,
        )
        return logsigmoid(logit).sum(1) + self.log_prior(x), score

    def log_prior(self, x: Tensor) -> Tensor:
        """(n,), normalised in these coordinates."""
        beta, log_lambda, log_tau = self._parts(x)
        p = beta.shape[1]
        logs = torch.cat([log_lambda, log_tau], 1)
        # of u = log of a Gamma(1/2, 1/2): 1/2 ln 1/2 - ln Gamma(1/2) + u/2 - exp(u)/2
        constant = (p + 1) * (0.5 * math.log(0.5) - math.lgamma(0.5)) - 0.5 * p * math.log(
            2 * math.pi
        )
        return constant - 0.5 * (beta * beta).sum(1) + 0.5 * (logs - logs.exp()).sum(1)

    def weights(self, x: Tensor) -> Tensor:
        """What multiplies the features: tau lambda_j beta_j, (n, p)."""
        beta, log_lambda, log_tau = self._parts(x)
        return torch.exp(log_tau + log_lambda) * beta

    def pointwise(self, x: Tensor) -> Tensor:
        """log P(label_i | x) of the test data, (n, n_test). Raises ValueError without test data."""
        rows = self._at(x)[1]
        if rows is None:
            raise ValueError("test_features and test_labels were not given: nothing to predict")
        return logsigmoid(self.weights(x) @ rows.T)

    def predictive(self, x: Tensor) -> Tensor:
        """log p(test labels | x), (n,). Raises ValueError without test data."""
        return self.pointwise(x).sum(1)

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        """Per point: log tau, the mean of log lambda_j, log p(labels | x)."""
        _, log_lambda, log_tau = self._parts(x)
        return {
            "log_tau": log_tau[:, 0],
            "log_lambda": log_lambda.mean(1),
            "log_likelihood": self._log_likelihood(x),
        }

    def _log_likelihood(self, x: Tensor) -> Tensor:
        return logsigmoid(self.weights(x) @ self._at(x)[0].T).sum(1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """beta (n, p), log lambda (n, p), log tau (n, 1)."""
        p = self.features.shape[1]
        beta, log_lambda, log_tau = x.split([p, p, 1], 1)
        return beta, log_lambda, log_tau

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Signed rows of both parts on the device and in the dtype of x, converted once."""
        key = (x.device, x.dtype)
        if key not in self._copies:
            with torch.inference_mode(False):  # what is kept must serve autograd too
                test = None if self._test_rows is None else self._test_rows.to(x.device, x.dtype)
                self._copies[key] = self._rows.to(x.device, x.dtype), test
        return self._copies[key]


def _signed(features: Tensor, labels: Tensor) -> Tensor:
    """±features: the label's log probability is log sigmoid of its product with the weights."""
    return features * (2 * labels - 1)[:, None]


def _read(path: Path) -> list[list[float]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        cells = line.split()
        if not cells:
            continue
        at = f"{path}, line {number}"
        if len(cells) != P_GERMAN + 1:
            raise ValueError(f"{at}: expected {P_GERMAN + 1} numbers, got {len(cells)}")
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            raise ValueError(f"{at}: expected numbers, got {line.strip()!r}") from None
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{at}: expected finite numbers, got {line.strip()!r}")
        if row[-1] not in (1.0, 2.0):
            raise ValueError(f"{at}: the label must be 1 or 2, got {cells[-1]}")
        rows.append(row)
    if len(rows) != N_GERMAN:
        raise ValueError(f"{path}: expected {N_GERMAN} rows, got {len(rows)}")
    return rows
