"""Features of every layer for every item, kept on disk."""

from alignlab.features.extraction import Features, extract

__all__ = ["Features", "extract"]
