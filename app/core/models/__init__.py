"""Models: River estimators over a fixed feature schema, one by one and in batches alike."""

from app.core.models.base import Model
from app.core.models.registry import MODELS, make_model

__all__ = ["MODELS", "Model", "make_model"]
