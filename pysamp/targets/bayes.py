"""Posterior densities of Bayesian models: logistic regression.

The model, the priors and the fixed splits of two UCI data sets are those of Grenioux, Noble, Gabrié,
Durmus, Stochastic localization via iterative posterior sampling (2024, arXiv 2402.10758). Their code
clips probabilities to [1e-8, 1 - 1e-8]; here log sigmoid is taken as such.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pysamp import ops
from pysamp.energies import logistic_blocks
from pysamp.target import NativeEnergy


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """The posterior of weights w and bias b, x = (w, b) of p + 1 numbers:

        w ~ N(0, prior_sd^2),  b ~ N(0, bias_sd^2),  P(label = 1 | features) = sigmoid(features . w + b)

    features: (n, p); labels: (n,) of 0 and 1; the same of test data, which do not enter the density.
    log_prob is log p(labels | x) + log prior(x), the prior normalised, so that its integral is the
    evidence of the model. Data are kept in float64 on the CPU.

    Raises ValueError for shapes that do not match, no rows, labels other than 0 and 1, features that
    are not finite, standard deviations that are not positive.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor | None = None
    test_labels: Tensor | None = None
    prior_sd: float = 1.0
    bias_sd: float = 2.5
    native: NativeEnergy = field(init=False, repr=False, compare=False)
    _test_rows: Tensor | None = field(init=False, repr=False, compare=False)  # (n, p + 1)
    _copies: dict = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prior_sd", "bias_sd"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        split = (self.features, self.labels, self.test_features, self.test_labels)
        fields = checked_split(*split, _signed)
        rows = fields.pop("_rows")
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        p = self.features.shape[1]
        prior = (1 / self.prior_sd**2, 1 / self.bias_sd**2, self._log_norm())
        params = (*prior, *logistic_blocks(rows).tolist())
        native = NativeEnergy("logistic", params, (len(rows), p + 1))
        object.__setattr__(self, "native", native)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, prior_sd: float = 1.0, bias_sd: float = 2.5
    ) -> LogisticRegression:
        """From a file with the columns split ("train" or "test"), y (0 or 1), x0, x1, ...

        Raises ValueError naming the file and the row, counted as lines are, of what is wrong.
        """
        train, test = read_table(Path(path))
        if not train:
            raise ValueError(f"{path}: no row of the split train")
        of_train, of_test = (torch.tensor(rows, dtype=torch.float64) for rows in (train, test))
        x_test, y_test = (of_test[:, 1:], of_test[:, 0]) if test else (None, None)
        return cls(of_train[:, 1:], of_train[:, 0], x_test, y_test, prior_sd, bias_sd)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.features.shape[1] + 1,)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        params, table = self._at(x)
        return ops.logistic(x, params, table, list(self.native.layout))

    def log_prior(self, x: Tensor) -> Tensor:
        """(n,), normalised."""
        weights, bias = x[:, :-1] / self.prior_sd, x[:, -1] / self.bias_sd
        return -0.5 * ((weights * weights).sum(1) + bias * bias) - self._log_norm()

    def predictive(self, x: Tensor) -> Tensor:
        """log p(test labels | x), (n,). Raises ValueError without test data."""
        if self._test_rows is None:
            raise ValueError("test_features and test_labels were not given: nothing to predict")
        return torch.nn.functional.logsigmoid(x @ self._test_rows.to(x).T).sum(1)

    def test_log_posterior(self, x: Tensor) -> Tensor:
        """log p(test labels | x) + log prior(x), (n,): what the paper averages over the draws.

        Neither larger nor smaller is better: a sampler is right that finds the posterior's own mean.
        """
        return self.predictive(x) + self.log_prior(x)

    def _log_norm(self) -> float:
        """-log of the prior density at 0."""
        p = self.features.shape[1]
        return (
            0.5 * (p + 1) * math.log(2 * math.pi) + p * math.log(self.prior_sd)
            + math.log(self.bias_sd)
        )  # fmt: skip

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters and table for the op on the device and in the dtype of x, converted once."""
        key = (x.device, x.dtype)
        if key not in self._copies:
            with torch.inference_mode(False):  # what is kept must serve autograd too
                params = torch.tensor(self.native.params, dtype=x.dtype, device=x.device)
                self._copies[key] = params, torch.empty(0, dtype=torch.int32, device=x.device)
        return self._copies[key]


def check_rows(features: Tensor, labels: Tensor, prefix: str) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU."""
    x, y = (torch.as_tensor(t).detach().to("cpu", torch.float64) for t in (features, labels))
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{prefix}features must be (n, p) with n, p > 0, got {tuple(x.shape)}")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{prefix}labels must be ({x.shape[0]},), one for each row of features, "
            f"got {tuple(y.shape)}"
        )
    for row, column in (~torch.isfinite(x)).nonzero()[:1].tolist():
        raise ValueError(
            f"{prefix}features must be finite, got {x[row, column].item()} in row {row}, "
            f"column {column}"
        )
    for (row,) in ((y != 0) & (y != 1)).nonzero()[:1].tolist():
        raise ValueError(f"{prefix}labels must be 0 or 1, got {y[row].item()} in row {row}")
    return x, y


def checked_split(
    features: Tensor, labels: Tensor, test_features: Tensor | None, test_labels: Tensor | None,
    signed: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Any]:  # fmt: skip
    """All four by name, in float64 on the CPU, and `signed` rows of both splits: "_rows", "_test_rows"."""
    features, labels = check_rows(features, labels, "")
    fields = {"features": features, "labels": labels, "_rows": signed(features, labels)}
    if test_features is None and test_labels is None:
        return {**fields, "_test_rows": None}
    if test_features is None or test_labels is None:
        raise ValueError("test_features and test_labels must be given together")
    test, test_labels = check_rows(test_features, test_labels, "test_")
    if test.shape[1] != features.shape[1]:
        raise ValueError(
            f"test_features must be (n, {features.shape[1]}) as features are, got {tuple(test.shape)}"
        )
    made = {"test_features": test, "test_labels": test_labels}
    return {**fields, **made, "_test_rows": signed(test, test_labels)}


def _signed(features: Tensor, labels: Tensor) -> Tensor:
    """±(features, 1): the label's log probability is log sigmoid of its product with (w, b)."""
    ones = torch.ones(len(features), 1, dtype=features.dtype)
    return torch.cat([features, ones], dim=1) * (2 * labels - 1)[:, None]


def read_table(path: Path) -> tuple[list[list[float]], list[list[float]]]:
    """Rows [y, x0, x1, ...] of the two splits of a CSV file, checked cell by cell."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        n_features = sum(name not in ("split", "y") for name in header)
        expected = ["split", "y", *(f"x{i}" for i in range(max(n_features, 1)))]
        for name in expected:
            if name not in header:
                raise ValueError(f"{path}: column {name} is missing, got {','.join(header)}")
        where = [header.index(name) for name in expected]
        splits: dict[str, list[list[float]]] = {"train": [], "test": []}
        for cells in lines:
            if not cells:
                continue
            at = f"{path}, line {lines.line_num}"
            if len(cells) != len(header):
                raise ValueError(f"{at}: expected {len(header)} cells, got {len(cells)}")
            split, *texts = (cells[i].strip() for i in where)
            if split not in splits:
                raise ValueError(f"{at}: split must be train or test, got {split!r}")
            row = [_number(text, f"{at}, column {n}") for text, n in zip(texts, expected[1:])]
            if row[0] not in (0.0, 1.0):
                raise ValueError(f"{at}: y must be 0 or 1, got {texts[0]}")
            splits[split].append(row)
    return splits["train"], splits["test"]


def _number(text: str, at: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{at}: expected a number, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{at}: expected a finite number, got {text!r}")
    return value
