"""weir: real-time fraud and anomaly scoring that learns from its own feedback."""

__version__ = "0.1.0"
