"""Small open analogs of a frontier model, distilled, measured and released."""

__version__ = "0.1.0"
