"""fluvial: image generators that join autoregression with flow matching."""

__version__ = "0.1.0"
