"""Features of every layer for every item, kept on disk."""

from alignlab.features.extraction import Features, extract, extract_to_store, open_features

__all__ = ["Features", "extract", "extract_to_store", "open_features"]
