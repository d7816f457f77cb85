"""Features of every layer for every item, kept on disk."""

from alignlab.features.extract import Features, extract

__all__ = ["Features", "extract"]
