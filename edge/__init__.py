"""Edge Kit on the device: verify a bundle, choose what fits, serve it, report on it."""

__version__ = "0.1.0"
