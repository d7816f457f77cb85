"""Put tensors of a file into a model: names and shapes are compared before any memory is taken.

The model is built on PyTorch's meta device, where it costs nothing, so that a configuration that asks for 10^12
parameters is refused like any other that does not fit its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models import weights
from alignlab.models.checkpoint_file import Checkpoint
from alignlab.models.encoder import seeded
from alignlab.models.unpickle import Inert, StoredTensor

# The largest vision encoders published have 2 * 10^10 parameters; a fresh model has no file that bounds its size.
MOST_RANDOM = 3 * 10**10
SLACK = 10**6  # parameters that a model may have beyond its file's; missing ones are named later
# transformers makes lists of these from a configuration, before there is a model.
MOST_LAYERS, MOST_EXPERTS, MOST_LABELS = 300, 10**4, 10**6
LAYERS = ("layers", "depths", "depth", "n_layer", "attention_types")


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


def check_fresh(build: Callable[[], nn.Module], where: str, most: float = MOST_RANDOM) -> None:
    """ValueError for a configuration of more than `most` parameters, which no file bounds, before any memory is taken."""
    parameters = sum(p.numel() for p in sketch(build, where).parameters())
    if parameters > most:
        raise ValueError(f"{where} asks for {parameters:.2g} parameters; at most {most:.0e} are made at random")


def fresh(build: Callable[[], nn.Module], where: str) -> Any:
    """The model that `build` makes with new weights, the same every time; PyTorch's own random numbers are left alone."""
    check_fresh(build, where)
    with seeded():
        return build().eval().requires_grad_(False)


# For models that transformers loads


def check_counts(config: Mapping[str, Any], where: str) -> None:
    """ValueError for a configuration, not made yet, that counts more layers, experts or labels than any model has."""
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            check_counts(value, where)
        limits = {"num_labels": MOST_LABELS, **dict.fromkeys(LAYERS, MOST_LAYERS), "experts": MOST_EXPERTS}
        most = next((most for end, most in limits.items() if key.endswith(end)), None)
        if most and any(not 0 <= count <= most for count in _whole_numbers(value)):
            raise ValueError(f"{where}: {key} is {value}; at most {most} are read")


def _whole_numbers(value: Any) -> Iterator[int]:
    """The integers in a value of JSON and in lists within it; its reader has bounded their depth."""
    if isinstance(value, list):
        for item in value:
            yield from _whole_numbers(item)
    elif isinstance(value, int):
        yield value


def check_affordable(build: Callable[[], nn.Module], folder: Path, packed: int = 1) -> None:
    """ValueError where a configuration asks for much more than the folder's weights, before any memory is taken.

    Each number in the folder's files may stand for `packed` of the model's.
    """
    files = weights.weight_files(folder)
    if files[0].suffix == ".safetensors":
        held = sum(math.prod(stored.shape) for file in files for stored in from_safetensors(file).values())
    else:
        held = sum(file.stat().st_size for file in files)  # a byte a number at least
    parameters = sum(p.numel() for p in sketch(build, str(folder)).parameters())
    if parameters > 2 * packed * held + SLACK:
        raise ValueError(
            f"{folder}: its configuration asks for {parameters:.3g} parameters, its weights hold {held:.3g}"
        )


def check_loaded(info: Mapping[str, Any], where: str, is_read: Callable[[str], bool] = lambda key: True) -> None:
    """ValueError that names the first weight that `from_pretrained` did not find, or found in another shape.

    `info` is what it gives with `output_loading_info=True`; `is_read` says whether a weight matters.
    """
    if missing := sorted(key for key in info["missing_keys"] if is_read(key)):
        raise ValueError(f"{where} lacks {len(missing)} of the model's weights, the first of them {missing[0]}")
    if wrong := sorted(info["mismatched_keys"]):
        key, found, asked = wrong[0]
        raise ValueError(f"{where}: {key} has shape {tuple(found)}, its configuration asks for {tuple(asked)}")
