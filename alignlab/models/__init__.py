"""Models: vision encoders and language models by name, folder or hub id."""

from alignlab.models.encoder import Encoder
from alignlab.models.llm import LanguageModel, load_llm
from alignlab.models.registry import find_encoder, find_llm, load_encoder

__all__ = ["Encoder", "LanguageModel", "find_encoder", "find_llm", "load_encoder", "load_llm"]
