"""What is trained, in a few plain words: which restorer, between which encoder and language model, for which tasks.

A design builds its restorer anew; with the adapters' file it is the trained one again. The file's metadata holds the
design and the hashes of the frozen models, so that adapters are never put between models they were not trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab import trained
from alignlab.data.degradations import NAMES as TASKS
from alignlab.data.degradations import pair
from alignlab.models import load_llm
from alignlab.models.catalogue import BY_NAME
from alignlab.models.weights import work_dtype
from alignlab.paths import shipped
from alignlab.provenance import shown_model
from alignlab.restoration.adapters import BEGINNINGS
from alignlab.restoration.coordinates import Whitened, open_encoder, whitened
from alignlab.restoration.restorer import Restorer

COMMAND = "restore train"
HOWS = ("lm4lv", "vit-llm", "linear", "mlp", "transformer")
FEATURES = ("whitened", "raw")
COMPARED = ("denoise-mae-smollm2", "rotate-mae-smollm2")  # adapters of one budget, which analyses set side by side
# Adapters that come with alignlab.
SHIPPED = (*COMPARED, "denoise-mae-smollm2-30000", "rotate-mae-smollm2-8000", "denoise-pca-smollm2")
# Half of the way to equal variances: with all of the way, directions that are mostly noise weigh as much as any.
POWER, FLOOR = 0.25, 0.002
SAMPLE = 256  # pictures whose tokens say how the adapters begin
COORDINATES = "coordinates."  # what the whitening's tensors are called in the file


@dataclass(frozen=True)
class Design:
    """`how`: one of `HOWS`. `features`: the coordinates in which tokens are learnt, "raw" as the paper has it, or
    "whitened", the encoder's features with their variances evened out: a linear change that two linear adapters could
    make themselves, given enough steps. `llm` is read by experts too, whose size follows its width. `lora` is a rank, 0
    for none; `causal` and `rotary` are for "vit-llm". `begin`: one of `BEGINNINGS`, for those that read the language model.

    Raises ValueError for what there is not.
    """

    how: str = "lm4lv"
    encoder: str = "mae"
    decoder: str | None = None
    llm: str = "smollm2"
    tasks: tuple[str, ...] = ("denoise",)
    task_tokens: int = 10
    features: str = "whitened"
    lora: int = 0
    causal: bool = False
    rotary: bool = False
    begin: str = "fitted"
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (("how", self.how, HOWS), ("features", self.features, FEATURES), ("begin", self.begin, BEGINNINGS))
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.task_tokens < 1:
            raise ValueError(f"task_tokens must be 1 or more, got {self.task_tokens}")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"task must be different names, one at least, got {', '.join(self.tasks) or 'none'}")
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if self.lora < 0:
            raise ValueError(f"lora must be a rank of 1 or more, or 0 for none, got {self.lora}")
        if self.lora and self.how != "lm4lv":
            raise ValueError(f"lora is for lm4lv, whose language model it lets learn; {self.how} has none that learns")
        if (self.causal or self.rotary) and self.how != "vit-llm":
            raise ValueError(f"causal and rotary are for vit-llm; {self.how} is as it is")
        if self.begin != "fitted" and not self.reads_llm:
            raise ValueError(f"begin is for lm4lv and vit-llm; {self.how} begins as the identity")

    @property
    def reads_llm(self) -> bool:
        return self.how in ("lm4lv", "vit-llm")

    def plain(self) -> dict[str, Any]:
        """For a result: what was typed, without the folders that local models lie in."""
        given = {name: getattr(self, name) for name in ("encoder", "decoder", "llm")}
        parts = {name: value and shown_model(value) for name, value in given.items()}
        plain = {**asdict(self), "tasks": list(self.tasks), **parts}
        if self.begin == "fitted":  # results from before there was another do not tell it, and are of the same design
            del plain["begin"]
        return plain


def build(
    design: Design,
    pictures: Callable[[int], Tensor] | None = None,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    coordinates: dict[str, Tensor] | None = None,
    check: Callable[[dict[str, str]], None] = lambda parts: None,
) -> Restorer:
    """The untrained restorer of a design; `dtype` is the language model's ("auto": bfloat16 where the device is quick in it).

    Whitening comes from `coordinates`, or is fitted on `pictures(size)`, clean training images `[N, 3, size, size]`. `check`
    is called with the checkpoints of the frozen parts as soon as each is loaded. Raises ValueError as the models do, and
    for an encoder without a decoder.
    """
    dtype = work_dtype(dtype, device)
    encoder = open_encoder(design.encoder, device=device, decoder=design.decoder)
    if not hasattr(encoder, "decode"):
        raise ValueError(
            f"{encoder.name} has no decoder; --encoder takes a MAE, a BEiT with its dVAE, a VQGAN or pca here"
        )
    check(_checkpoints(encoder))
    encoder.decode(
        encoder.encode(torch.full((1, 3, encoder.image_size, encoder.image_size), 0.5))
    )  # or it says why not
    clean = None if pictures is None else pictures(encoder.image_size)
    if coordinates:
        encoder = Whitened.from_state(encoder, coordinates)
    elif design.features == "whitened":
        if clean is None:
            raise ValueError("whitened features need pictures to be fitted on, or coordinates")
        encoder = whitened(encoder, clean, power=POWER, floor=FLOOR)
    # What is loaded afterwards needs no beginning.
    sample = None if clean is None else encoder.encode(_both(clean[:SAMPLE], design))
    common: dict[str, Any] = {"tasks": design.tasks, "seed": design.seed, "sample": sample}
    if design.how == "lm4lv":
        from alignlab.restoration.lm4lv import LM4LV

        llm = load_llm(design.llm, device=device, dtype=dtype)
        check({"llm": llm.checkpoint})
        return LM4LV(encoder, llm, design.task_tokens, begin=design.begin, lora=design.lora, **common)
    if design.how == "vit-llm":
        from alignlab.restoration.vit_llm import ViTLLM

        llm = load_llm(design.llm, device=device, dtype=dtype)
        check({"llm": llm.checkpoint})
        free: dict[str, Any] = {"bidirectional": not design.causal, "rotary": design.rotary}
        return ViTLLM(encoder, llm, design.task_tokens, begin=design.begin, **free, **common)
    from alignlab.restoration import experts

    if design.how == "linear":
        return experts.Linear(encoder, **common)
    parameters = experts.like_lm4lv(encoder.width, _llm_width(design.llm), design.task_tokens, design.tasks)
    expert = experts.MLP if design.how == "mlp" else experts.Transformer
    return expert(encoder, parameters, **common)


def _both(clean: Tensor, design: Design) -> Tensor:
    """What a task is given and what it shall answer, `[2 N, 3, H, W]`; of several tasks the first's."""
    return torch.cat(pair(clean, design.tasks[0], seed=design.seed))


def _llm_width(name: str) -> int:
    """A language model's width, without its weights where its name is known."""
    known = BY_NAME.get(name)
    return known.width if known is not None and known.width else load_llm(name).width


def frozen_parts(model: Restorer) -> dict[str, str]:
    """The checkpoints between which `model` learns, with their hashes; whitening is no part of them."""
    parts = _checkpoints(model.encoder.encoder if isinstance(model.encoder, Whitened) else model.encoder)
    return parts if model.llm is None else {**parts, "llm": model.llm.checkpoint}


def _checkpoints(encoder: Any) -> dict[str, str]:
    return {"encoder": encoder.checkpoint, "decoder": getattr(encoder, "decoder_checkpoint", encoder.checkpoint)}


def save(model: Restorer, design: Design, folder: Path, about: dict[str, Any] | None = None) -> None:
    """What was trained, with the design, the frozen models' names and `about` (plain values) beside it."""
    state = dict(model.state_dict())
    if isinstance(model.encoder, Whitened):
        state |= {COORDINATES + k: v for k, v in model.encoder.state().items()}
    trained.write(folder, state, asdict(design), frozen_parts(model), about or {})


def read(folder: Path) -> tuple[Design, dict[str, Any], dict[str, Tensor]]:
    """The design, the description and the tensors that `save` wrote; ValueError for anything else."""
    described, state = trained.read(folder, COMMAND)
    given = described["design"]
    try:
        return trained.made(Design, {**given, "tasks": tuple(given["tasks"])}), described, state
    except (KeyError, TypeError, ValueError) as error:
        raise trained.damaged(folder, COMMAND) from error


def find(name: str) -> Path:
    """The folder of trained adapters: a shipped one's by its name, any other by its path.

    ValueError for a name that is both.
    """
    if name not in SHIPPED:
        return Path(name).expanduser()
    ours = shipped("checkpoints", name)
    if Path(name, trained.ADAPTERS).is_file() and not Path(name).resolve().samefile(ours):
        raise ValueError(
            f"--checkpoint {name} comes with alignlab, and is a folder here too; for the folder write ./{name}"
        )
    return ours


def steps_of(described: dict[str, Any]) -> dict[str, int]:
    """How far the adapters of a description had learnt: steps `done` of those `planned`, and the `images` drawn by then."""
    about = described["about"]
    recipe = about.get("recipe", {})
    planned = int(recipe.get("steps", 0))
    done = int(about.get("steps", planned))
    return {"done": done, "planned": planned, "images": done * int(recipe.get("batch", 0))}


def load(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    encoder: str | None = None,
    llm: str | None = None,
) -> tuple[Restorer, Design, dict[str, Any]]:
    """A trained restorer from a folder or a shipped one's name, its design and the description in its file.

    `encoder` and `llm` say where the frozen models are where their names of then do not find them. Raises ValueError
    where a frozen model is not the one it was trained with, by hash.
    """
    folder = find(name)
    design, described, state = read(folder)
    coordinates = {k.removeprefix(COORDINATES): v for k, v in state.items() if k.startswith(COORDINATES)}
    wanted = replace(design, encoder=encoder or design.encoder, llm=llm or design.llm)
    check = partial(trained.check_frozen, folder, theirs=described["frozen"])
    model = build(wanted, device=device, dtype=dtype, coordinates=coordinates, check=check)
    adapters = {k: v for k, v in state.items() if not k.startswith(COORDINATES)}
    try:
        model.load_state_dict(adapters)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / trained.ADAPTERS} does not hold what its design asks for: {reason}") from error
    return model.eval(), design, described
