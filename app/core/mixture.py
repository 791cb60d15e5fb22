"""What gives a score: a model of what matured, one of what investigators say, and a stand-in.

    known = (1 - share) * calibrated(model) + share * investigators
    score = trust * known + (1 - trust) * novelty

Labels that come late are complete; what investigators say comes at once, but only of what they
were shown. One model for both would learn the picture that alerts draw of the world; so each
has its own, and their scores are averaged (Dal Pozzolo et al., 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from app.core.calibration import Calibration
from app.core.encoding import Encoding
from app.core.novelty import PRIOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.core.models import Model
    from app.core.novelty import Novelty


@dataclass(frozen=True)
class Mixture:
    """The parts of a score and how much each has to say.

    ``trust`` is the share of what was learnt from labels, ``share`` that of the investigators'
    model within it, both in [0, 1].
    """

    model: Model
    calibration: Calibration = field(default_factory=Calibration)
    encoding: Encoding = field(default_factory=Encoding)
    investigators: Model | None = None
    share: float = 0.0
    novelty: Novelty | None = None
    trust: float = 1.0

    def for_scoring(self) -> Mixture:
        """What gives the same scores elsewhere (``Model.for_scoring``)."""
        told = self.investigators
        return replace(
            self,
            model=self.model.for_scoring(),
            investigators=None if told is None else told.for_scoring(),
        )

    def score_many(
        self, rows: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of rows, shape (n, d), and what the model alone says of them, each shape (n,)."""
        encoded = self.encoding.apply(rows)
        raw = self.model.score_many(encoded)
        scores = self.calibration.apply(raw)
        if self.investigators is not None and self.share > 0.0:
            scores = (1.0 - self.share) * scores
            scores += self.share * self.investigators.score_many(encoded)
        if self.novelty is not None and self.trust < 1.0:
            unlike = self.unlikeness(rows)
            scores = self.trust * scores + (1.0 - self.trust) * unlike
        return scores, raw

    def unlikeness(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of rows, shape (n, d), that need no labels; ``PRIOR`` where nothing is known."""
        if self.novelty is None:
            return np.full(len(rows), PRIOR)
        return self.novelty.score_many(self.encoding.without(rows))

    def contributions(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each feature adds to the margin, shape (n, d + 1), mixed as the scores are.

        The last column is the bias. Where one part decides alone a row's sum is its margin.
        """
        encoded = self.encoding.apply(rows)
        told = self.calibration.contributions(self.model.contributions(encoded))
        if self.investigators is not None and self.share > 0.0:
            told = (1.0 - self.share) * told
            told += self.share * self.investigators.contributions(encoded)
        if self.novelty is not None and self.trust < 1.0:
            unlike = self.novelty.contributions(self.encoding.without(rows))
            told = self.trust * told + (1.0 - self.trust) * unlike
        return told
