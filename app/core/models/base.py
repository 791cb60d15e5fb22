"""What every model can do: score, learn, explain, say what it is, at fixed features."""

import abc
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from river import base

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Flags = npt.NDArray[np.int8]
Rows = npt.ArrayLike

# Squares of larger numbers overflow a running variance and ruin a linear model for ever.
LARGEST = 1e100


class Model(base.Classifier):
    """A River classifier over a fixed sequence of numeric features, with batch verbs.

    ``score`` is in [0, 1], higher is more suspicious, and ``score = 1 / (1 + exp(-margin))``
    (to 1e-12). A batch verb gives, bit for bit, what
    its rows give one by one. NaN is a missing value; infinities and magnitudes above 1e100 are
    refused with ValueError before anything changes.
    """

    features: Sequence[str]
    #: How much faster than usual it should follow: examples weigh so many times what they do.
    pace: float = 1.0

    def score_many(self, rows: Rows) -> Floats:
        """Scores in [0, 1], shape (n,), of rows of shape (n, d); changes nothing."""
        return self._score(self.checked_rows(rows))

    def learn_many(
        self, rows: Rows, is_fraud: npt.ArrayLike, weights: npt.ArrayLike | None = None
    ) -> None:
        """Learn rows in order; ``is_fraud`` holds 0 or 1, ``weights`` (default 1) are >= 0.

        Raises ValueError, with nothing learnt, on a wrong shape or a value out of range.
        """
        self._learn(*self._checked(rows, is_fraud, weights))

    def blank(self) -> "Model":
        """A model of the same kind and parameters that has learnt nothing."""
        new: Model = self.clone()
        return new

    def learn_told_many(
        self, rows: Rows, is_fraud: npt.ArrayLike, weights: npt.ArrayLike | None = None
    ) -> Floats:
        """As ``learn_many``; return the margin that each row had just before it was learnt."""
        return self._learn_prequential(*self._checked(rows, is_fraud, weights))

    def _checked(
        self, rows: Rows, is_fraud: npt.ArrayLike, weights: npt.ArrayLike | None
    ) -> tuple[Floats, Flags, Floats]:
        """What is to be learnt, at the model's pace."""
        table = self.checked_rows(rows)
        flags = np.asarray(is_fraud)
        scale = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
        if flags.shape != (len(table),) or scale.shape != (len(table),):
            msg = (
                f"{len(table)} rows with labels of shape {flags.shape} and weights of shape "
                f"{scale.shape}; expected one each"
            )
            raise ValueError(msg)
        if not np.isin(flags, (0, 1)).all():
            msg = f"labels hold {flags[~np.isin(flags, (0, 1))][0]!r}; expected 0 or 1"
            raise ValueError(msg)
        if not (np.isfinite(scale) & (scale >= 0.0)).all():
            msg = "weights hold a negative or non-finite number; expected finite numbers >= 0"
            raise ValueError(msg)
        return table, flags.astype(np.int8), np.ascontiguousarray(scale * self.pace)

    def margin_many(self, rows: Rows) -> Floats:
        """Log-odds behind the scores, shape (n,); finite."""
        return self._margin(self.checked_rows(rows))

    def contributions(self, rows: Rows) -> Floats:
        """What each feature adds to the margin, shape (n, d + 1); the last column is the bias.

        A row's sum is its margin, to rounding.
        """
        return self._contributions(self.checked_rows(rows))

    def learn_one(self, x: Mapping[Any, Any], y: Any, w: float = 1.0) -> None:
        """Learn one example; features that ``x`` lacks are missing, further ones are ignored."""
        self.learn_many(self.row_of(x), np.array([int(bool(y))]), np.array([float(w)]))

    def predict_proba_one(self, x: Mapping[Any, Any], **kwargs: Any) -> dict[Any, float]:
        """``{False: 1 - score, True: score}``."""
        score = float(self.score_many(self.row_of(x))[0])
        return {False: 1.0 - score, True: score}

    def score_one(self, x: Mapping[Any, Any]) -> float:
        """The score of one example, in [0, 1]."""
        return float(self.score_many(self.row_of(x))[0])

    def state_digest(self) -> str:
        """SHA-256 over parameters and learnt state; equal digests give equal scores for ever."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, value in self._state():
            digest.update(f"\0{name}\0".encode())
            if isinstance(value, np.ndarray):
                digest.update(f"{value.dtype.str}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            else:
                digest.update(repr(value).encode())
        return digest.hexdigest()

    def for_scoring(self) -> "Model":
        """What gives the same scores elsewhere; less than all, where learning needs more.

        It shares its arrays with this model, so it is to be pickled at once.
        """
        return self

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of learnt state held in memory; bounded for ever by the parameters."""

    def row_of(self, x: Mapping[Any, Any]) -> Floats:
        """The matrix row, shape (1, d), of a dictionary; None and absent become NaN."""
        values = (x.get(name) for name in self.features)
        return np.array([[math.nan if v is None else float(v) for v in values]], dtype=np.float64)

    def checked_rows(self, rows: Rows) -> Floats:
        """``rows`` as a contiguous float64 matrix; ValueError if it is none this model can take."""
        table = np.ascontiguousarray(rows, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != len(self.features):  # noqa: PLR2004 -- a matrix
            msg = f"rows have shape {table.shape}; expected (n, {len(self.features)})"
            raise ValueError(msg)
        bad = np.abs(table) > LARGEST
        if bad.any():
            row, column = np.argwhere(bad)[0]
            msg = (
                f"rows[{row}].{self.features[column]} is {table[row, column]}; "
                "expected a number within +-1e100, or NaN for a missing one"
            )
            raise ValueError(msg)
        return table

    @abc.abstractmethod
    def _score(self, rows: Floats) -> Floats:
        """Scores of checked rows."""

    @abc.abstractmethod
    def _margin(self, rows: Floats) -> Floats:
        """Margins of checked rows."""

    @abc.abstractmethod
    def _learn(self, rows: Floats, is_fraud: Flags, weights: Floats) -> None:
        """Learn checked rows."""

    def _learn_prequential(self, rows: Floats, is_fraud: Flags, weights: Floats) -> Floats:
        """Learn checked rows; return the margin each had just before it was learnt."""
        margins = np.empty(len(rows))
        for i in range(len(rows)):
            margins[i] = self._margin(rows[i : i + 1])[0]
            self._learn(rows[i : i + 1], is_fraud[i : i + 1], weights[i : i + 1])
        return margins

    @abc.abstractmethod
    def _contributions(self, rows: Floats) -> Floats:
        """Contributions of checked rows."""

    @abc.abstractmethod
    def _state(self) -> Iterator[tuple[str, Any]]:
        """Named parameters and arrays that determine every later score."""


def checked_features(features: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; ValueError when there is none or one stands twice.

    >>> checked_features(["amount", "hour"])
    ('amount', 'hour')
    """
    names = tuple(features)
    if not names or len(set(names)) != len(names):
        msg = f"features are {names!r}; expected at least one, none twice"
        raise ValueError(msg)
    return names
