"""Put tensors of a file into a model: names and shapes are compared before any memory is taken.

The model is built on PyTorch's meta device, where it costs nothing, so that a configuration that asks for 10^12
parameters is refused like any other that does not fit its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.checkpoint_file import Checkpoint
from alignlab.models.encoder import seeded
from alignlab.models.unpickle import Inert, StoredTensor

# The largest vision encoders published have 2 * 10^10 parameters; a fresh model has no file that bounds its size.
MOST_RANDOM = 3 * 10**10


def check_sizes(sizes: Mapping[str, Any], most: Mapping[str, int] | None = None) -> None:
    """ValueError unless every size that is no bool is a whole number from 1 to its limit, which is 2^31 by default."""
    for name, size in sizes.items():
        limit = (most or {}).get(name, 2**31)
        if not isinstance(size, bool) and (not isinstance(size, int) or not 1 <= size <= limit):
            given = size if isinstance(size, int | float) else type(size).__name__
            raise ValueError(f"{name} must be a whole number from 1 to {limit}, got {given}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, known without reading it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def from_safetensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by name. ValueError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}") from error

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    return {name: Stored(shape, reader(name)) for name, shape in shapes.items()}


def from_checkpoint(checkpoint: Checkpoint, state: Any) -> dict[str, Stored]:
    """The tensors of a state dict in a file that `torch.save` wrote.

    Raises ValueError for what is no state dict, for a tensor that is made by a call instead of stored, and for tensors
    that share so much memory that they need more than twice the file.
    """
    path = checkpoint.path
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} holds no state dict: a mapping of names to tensors")
    needed = 0
    for name, tensor in state.items():
        if isinstance(tensor, Inert):
            raise ValueError(
                f"the tensor {name!r} of {path} is not stored but made by a call of {tensor.of}; it is refused"
            )
        if not isinstance(tensor, StoredTensor):
            raise ValueError(f"{name!r} of {path} is no tensor but a {type(tensor).__name__}")
        needed += math.prod(tensor.shape) * tensor.storage.itemsize
    if needed > 2 * path.stat().st_size:
        raise ValueError(f"{path} describes tensors of {needed} bytes, more than twice its size; it is refused")

    def reader(tensor: StoredTensor) -> Callable[[], Tensor]:
        return lambda: checkpoint.read(tensor)

    return {name: Stored(tensor.shape, reader(tensor)) for name, tensor in state.items()}


def sketch(build: Callable[[], nn.Module], where: str) -> nn.Module:
    """A model without memory. ValueError where its configuration `where` cannot be built."""
    try:
        with torch.device("meta"):
            return build()
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: its configuration does not make a model: {reason}") from error


def assemble(build: Callable[[], nn.Module], stored: Mapping[str, Stored], where: str) -> Any:
    """The model that `build` makes with the tensors of `where`, in evaluation mode, on the CPU, not trainable.

    Every tensor must have its place and every place its tensor, of the same shape: ValueError names the first that has
    not.
    """
    model = sketch(build, where)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := sorted(wanted.keys() - stored.keys()):
        raise ValueError(f"{where} lacks {len(missing)} of the model's weights, the first of them {missing[0]}")
    if extra := sorted(stored.keys() - wanted.keys()):
        raise ValueError(
            f"{where} holds {len(extra)} tensors that the model has no place for, the first of them {extra[0]}"
        )
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            raise ValueError(f"{where}: {name} has shape {stored[name].shape}, its configuration asks for {shape}")
    state = {name: stored[name].read() for name in wanted}
    model.load_state_dict({k: v if v.is_floating_point() else v.float() for k, v in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def fresh(build: Callable[[], nn.Module], where: str) -> Any:
    """The model that `build` makes with new weights, the same every time; PyTorch's own random numbers are left alone."""
    parameters = sum(p.numel() for p in sketch(build, where).parameters())
    if parameters > MOST_RANDOM:
        raise ValueError(f"{where} asks for {parameters:.2g} parameters; at most {MOST_RANDOM:.0e} are made at random")
    with seeded():
        return build().eval().requires_grad_(False)
