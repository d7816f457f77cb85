"""OpenAI's dVAE as it is published: `encoder.pkl` and `decoder.pkl`, two pickled modules of the package `dall_e`.

Neither that package nor the pickles' instructions are run: `unpickle` describes the modules, and their tensors go into
alignlab's own module of the same architecture and names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignlab.models.assemble import Stored, from_checkpoint
from alignlab.models.checkpoint_file import open_checkpoint
from alignlab.models.dvae import DVAEConfig
from alignlab.models.unpickle import Inert

FILES = ("encoder.pkl", "decoder.pkl")
DEPTH = 12  # of modules in modules; the published ones have 5
MOST = 10**4  # modules, and tensors, of a file; the published ones have some hundreds


def read(folder: Path, *, convert: bool = False) -> tuple[DVAEConfig, dict[str, Stored], tuple[str, ...]]:
    """Sizes and tensors of the two files in a folder, and the foreign names in them.

    Raises ValueError where a file is missing, damaged or no such module; `convert` as for `open_checkpoint`.
    """
    stored: dict[str, Stored] = {}
    foreign: dict[str, None] = {}
    for file in FILES:
        checkpoint = open_checkpoint(folder / file, convert=convert)
        tensors: dict[str, Any] = {}
        _gather(checkpoint.value, tensors, checkpoint.path)
        if not tensors:
            raise ValueError(f"{checkpoint.path} holds no pickled module; expected the {file} of openai/DALL-E")
        part = file.removesuffix(".pkl")
        stored |= {f"{part}.{name}": tensor for name, tensor in from_checkpoint(checkpoint, tensors).items()}
        foreign |= dict.fromkeys(checkpoint.foreign)
    return _config(stored, folder), stored, tuple(foreign)


def _gather(module: Any, into: dict[str, Any], path: Path) -> None:
    """The parameters of a described module and of those within it, by their names in a state dict.

    Raises ValueError where they are too many: a small pickle can name one module as all the children of another, and
    that one likewise, so that there is no end of walking through them.
    """
    waiting, met = [(module, "", DEPTH)], 0
    while waiting:
        module, prefix, depth = waiting.pop()
        if not isinstance(module, Inert) or not isinstance(module.state, dict) or depth == 0:
            continue
        for kind in ("_parameters", "_buffers"):
            values = module.state.get(kind)
            if isinstance(values, dict):
                into.update({f"{prefix}{name}": value for name, value in values.items() if value is not None})
        children = module.state.get("_modules")
        if isinstance(children, dict):
            met += len(children)
            waiting.extend((child, f"{prefix}{name}.", depth - 1) for name, child in children.items())
        if met > MOST or len(into) > MOST:
            raise ValueError(f"{path} holds more than {MOST} modules or tensors; it is no dVAE of openai/DALL-E")


def _config(stored: dict[str, Stored], folder: Path) -> DVAEConfig:
    try:
        hidden = stored["encoder.blocks.input.w"].shape[0]
        vocab = stored["encoder.blocks.output.conv.w"].shape[0]
        first = stored["decoder.blocks.input.w"].shape[0]
    except (KeyError, IndexError) as error:
        raise ValueError(f"{folder} is no dVAE of openai/DALL-E: {error} is missing") from error
    blocks = {name.split(".")[3] for name in stored if name.startswith("encoder.blocks.group_1.block_")}
    return DVAEConfig(hidden=hidden, blocks_per_group=len(blocks), vocab=vocab, decoder_init=first)
