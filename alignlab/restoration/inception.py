"""Inception-v3's pooled features through torch-fidelity, for the FID proper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

# TensorFlow's weights of 2015 as torch-fidelity publishes them; the name ends in the first digits of the SHA-256.
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def inception_path() -> Path:
    """Where torch keeps the weights, whether they are there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def load_inception(device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """A function of images `[B, 3, H, W]` in 0..1 -> `[B, 2048]`, the features of the FID (resized as in TensorFlow).

    Raises RuntimeError, with what to do, where torch-fidelity or the weights are not here: nothing is downloaded.
    """
    path = inception_path()
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise RuntimeError('FID needs torch-fidelity: pip install "alignlab[fidelity]"') from None
    if not path.is_file():
        raise RuntimeError(f"FID needs {WEIGHTS}, which is not here: alignlab models fetch inception")
    from alignlab.models.weights import read_tensors

    read_tensors(path)  # torch-fidelity would unpickle whatever is there: first see that it is tensors and no more
    model = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=str(path)).to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return model((images.to(device).clamp(0, 1) * 255).round().byte())[0]

    return features
