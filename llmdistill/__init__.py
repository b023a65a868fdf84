"""llmdistill: distil a large language model into a small one, on one machine or on a cluster."""

__version__ = "0.1.0"
