"""LPIPS (Zhang et al. 2018) through the `lpips` package, with a backbone that is fetched and checked beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

# torchvision's ImageNet weights; by its convention the name ends in the first digits of the SHA-256.
BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


def backbone_path(net: str) -> Path:
    """Where torch keeps the backbone of an LPIPS, whether it is there or not; ValueError for an unknown one."""
    if net not in BACKBONES:
        raise ValueError(f"net must be one of {', '.join(BACKBONES)}, got {net!r}")
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]


def load_lpips(net: str = "vgg", device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """A function of two image batches `[B, 3, H, W]` in -1..1 -> LPIPS `[B]`, 0 for identical images.

    Raises RuntimeError, with what to do, where the `lpips` package or the backbone's weights are not here: nothing is
    downloaded. Raises ValueError for an unknown backbone and a damaged file.
    """
    path = backbone_path(net)
    try:
        import lpips
    except ImportError:
        raise RuntimeError('LPIPS needs the lpips package: pip install "alignlab[fidelity]"') from None
    if not path.is_file():
        raise RuntimeError(f"LPIPS ({net}) needs {path.name}, which is not here: alignlab models fetch lpips-{net}")
    from alignlab.models.weights import read_tensors

    state = read_tensors(path)
    # pnet_rand: without it the package would download the backbone itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it calls torchvision by an older convention
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # Its slices number the layers as torchvision's `features` does: slice2.4.weight is features.4.weight.
    renamed = {key: f"features.{key.partition('.')[2]}" for key in model.net.state_dict()}
    try:
        model.net.load_state_dict({key: state[theirs] for key, theirs in renamed.items()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold {net}'s weights: {' '.join(str(error).split())[:200]}") from error
    model.eval().requires_grad_(False).to(device)
    return lambda x, y: model(x.to(device), y.to(device)).flatten()
