"""alignlab: do a vision encoder and a language model represent the world alike?

>>> import alignlab as al
>>> al.__version__
'0.1.0'

The public names are loaded when they are first used, so that importing alignlab costs milliseconds, not torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "align": "alignlab.alignment",
    "Alignment": "alignlab.alignment",
    "captioning": "alignlab.captioning",
    "compare": "alignlab.alignment",
    "extract": "alignlab.features",
    "load_dataset": "alignlab.data",
    "load_encoder": "alignlab.models",
    "load_llm": "alignlab.models",
    "metrics": "alignlab.metrics",
    "open_features": "alignlab.features",
    "restoration": "alignlab.restoration",
}

__all__ = [
    "Alignment",
    "align",
    "captioning",
    "compare",
    "extract",
    "load_dataset",
    "load_encoder",
    "load_llm",
    "metrics",
    "open_features",
    "restoration",
]

if TYPE_CHECKING:
    from alignlab import captioning as captioning
    from alignlab import metrics as metrics
    from alignlab import restoration as restoration
    from alignlab.alignment import Alignment as Alignment
    from alignlab.alignment import align as align
    from alignlab.alignment.compare import compare as compare
    from alignlab.data import load_dataset as load_dataset
    from alignlab.features import extract as extract
    from alignlab.features import open_features as open_features
    from alignlab.models import load_encoder as load_encoder
    from alignlab.models import load_llm as load_llm


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'alignlab' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    return module if _HOME[name] == f"alignlab.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
