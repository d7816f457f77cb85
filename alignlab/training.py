"""One training loop for everything that is trained here: seeded batches, warm-up and decay, resumable state."""

from __future__ import annotations

import atexit
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alignlab.files import read_saved, whole
from alignlab.models.weights import work_dtype
from alignlab.progress import progress

SAVE_EVERY = 60.0  # seconds
LONGEST_WAIT = timedelta(hours=12)  # of one process for another; torch's own limits are 10 and 30 minutes


@dataclass(frozen=True)
class Recipe:
    """What a training run is told; the same recipe and data give the same run."""

    steps: int
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    schedule: str = "cosine"  # down to a hundredth of the rate; or "linear", down to none
    seed: int = 0
    dtype: str = "bfloat16"  # of the autocast; the weights and their moments stay float32


class Objective(Protocol):
    """What is trained. `modules` holds everything with state, `optimisers` every optimiser, `step` one update."""

    modules: nn.ModuleDict
    optimisers: dict[str, torch.optim.Optimizer]

    def step(self, images: Tensor, done: float) -> dict[str, float]:
        """Learn from a batch [B, 3, H, W] at the share `done` (0..1) of the run; returns what to log."""
        ...


def adamw(module: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)


def descend(
    optimiser: torch.optim.Optimizer, losses: Tensor | Iterable[Tensor], clip: float, among: Processes | None = None
) -> None:
    """One clipped step down a loss, or down the sum of several, of which one at a time is in memory.

    `among` several processes each has its share of the sum, and all take the same step. Raises FloatingPointError, and takes
    no step, where a gradient is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    for loss in (losses,) if isinstance(losses, Tensor) else losses:
        loss.backward()
    if among is not None:
        among.add(p for group in optimiser.param_groups for p in group["params"])
    for group in optimiser.param_groups:
        if not nn.utils.clip_grad_norm_(group["params"], clip).isfinite():
            raise FloatingPointError("its gradient")
    optimiser.step()


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the rate, or a line down to none."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    share = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    if recipe.schedule == "linear":
        return recipe.lr * (1 - share)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def autocast(device: str, dtype: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def dtype_of(folder: Path, asked: str, device: str) -> str:
    """What a run in `folder` computes in: `asked`, or for "auto" what it began in; a new one, what the device is quick in."""
    if asked != "auto":
        return asked
    for name in ("state.pt", "result.json", "run.json"):
        path = folder / name
        # Whoever goes on from a broken file says what is wrong with it.
        with suppress(OSError, ValueError, KeyError, TypeError):
            begun = read_saved(path)["identity"] if name == "state.pt" else json.loads(path.read_text())
            return str(begun["recipe"]["dtype"])
    return work_dtype(asked, device)


@dataclass(frozen=True)
class Processes:
    """Which of how many processes of an `accelerate launch` this is; alone without one."""

    rank: int = 0
    count: int = 1

    def check(self, batch: int) -> None:
        """ValueError for a batch in which not every process has an image."""
        if batch < self.count:
            raise ValueError(f"a batch of {batch} cannot be shared by {self.count} processes")

    def block(self, n: int) -> range:
        """This process' share of `n` places, those of one block."""
        return range(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes, in place. One that has none here must have none anywhere, as the tokens of a
        task whose turn it is not; it keeps none, with which an optimiser does another thing than with zeros.
        """
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for p in parameters:
            if p.grad is not None:
                p.grad = reduce(p.grad, reduction="sum")

    def share(self, value: Any) -> Any:
        """What the first process holds of a value (tensors on the CPU), in all of them; all have to ask for it."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process holds of a value (tensors on the CPU), by rank, in all of them; all have to ask for it."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found

    def batches(self, n: int, size: int) -> list[range]:
        """This process' share of `n` items, every `count`-th of the batches of `size`, or of less where there
        are fewer batches than processes.

        >>> Processes().batches(5, 2), Processes(1, 2).batches(10, 64)
        ([range(0, 2), range(2, 4), range(4, 5)], [range(5, 10)])
        """
        size = min(size, -(-n // self.count))
        return [range(at, min(at + size, n)) for at in range(0, n, size)][self.rank :: self.count]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return values
        from accelerate.utils import reduce

        return reduce(values, reduction="sum")


def processes(device: str = "cpu") -> Processes:
    """Those that `accelerate launch` has started, connected; one without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch.distributed.nn  # while there is no group: the defaults of its functions' arguments would keep one for good
    from accelerate import PartialState

    if not torch.distributed.is_initialized():
        atexit.register(_leave)
    # One may wait for another as long as that aligns or captions, or waits for features that a third run computes.
    state = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes)


def _leave() -> None:
    """Take leave of the other processes. Gloo's threads hold tensors; one that lets go of its last while the interpreter
    ends aborts it (SIGABRT, "terminate called without an active exception", github.com/pytorch/pytorch/pull/179291).
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def in_turn(folder: Path, among: Processes) -> Iterator[None]:
    """One command at a time works in a folder, with all its processes; the others wait for it."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock") if among.rank == 0 else nullcontext():
        among.share(None)  # no process begins before the first has the lock
        yield
        among.share(None)  # which it keeps until all are done


def _save(path: Path, state: dict[str, Any]) -> None:
    kept = "free some space and give the same command again" + ("; the last state is kept" if path.exists() else "")
    with whole(path, "cannot keep the training's state", kept) as unfinished:
        torch.save(state, unfinished)


def _read(path: Path, identity: dict[str, Any], started: bool = True) -> dict[str, Any]:
    """A training state of the run that `identity` describes; not yet `started`, it may leave out parts of itself."""
    another = "delete it, or choose another --out folder"
    try:
        state = read_saved(path)
        found = {part: dict(state["identity"][part]) for part in identity}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version; {another}") from error
    for part, wanted in identity.items():
        for name in dict.fromkeys((*wanted, *found[part])) if started else wanted:
            differs = _difference(name, wanted.get(name), found[part].get(name))
            if differs:
                raise ValueError(f"{path} belongs to another run: its {differs}; {another}")
    return state


def _difference(name: str, ours: Any, theirs: Any) -> str:
    """`NAME is THEIRS, not OURS` of the first thing that differs, nothing where all is the same."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        inner = (
            _difference(f"{name}'s {key}", ours.get(key), theirs.get(key)) for key in dict.fromkeys((*ours, *theirs))
        )
        return next(filter(None, inner), "")
    return "" if ours == theirs else f"{name} is {theirs}, not {ours}"


def _identity(recipe: Recipe, about: dict[str, Any] | None) -> dict[str, Any]:
    """As a file gives it back: tuples are lists."""
    found: dict[str, Any] = json.loads(json.dumps({"recipe": asdict(recipe), "about": about or {}}))
    return found


def check_state(folder: Path, recipe: Recipe, about: dict[str, Any]) -> bool:
    """Whether the folder holds a state to go on from, told before anything is loaded.

    Raises ValueError where it is damaged or of a run with another recipe, or another value of anything in `about`, which
    may be less than `train` will be told.
    """
    saved = folder / "state.pt"
    if saved.exists():
        _read(saved, _identity(recipe, about), started=False)
    return saved.exists()


def _silent(done: int, note: str = "") -> None:
    pass


def _not_finite(label: str, step: int, what: str, saved: Path) -> str:
    # Counted as the bar and the state do: the first step is 1.
    kept = f"last good state: {saved}" if saved.exists() else "no state was saved yet"
    again = "the same command would stop there again: give a lower rate or another seed, and another folder"
    return f"{label}: the loss is not finite at step {step + 1} ({what}); {kept}; {again}"


def train(
    objective: Objective,
    batches: Callable[[int], Tensor],
    recipe: Recipe,
    folder: Path,
    label: str,
    device: str = "cpu",
    about: dict[str, Any] | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train to the end of the recipe, from where `folder/state.pt` stands if it is there.

    `batches(step)` gives the batch of a step; `about` says what else makes the run what it is (models, data, loss), as
    plain values; `watch(steps done, losses)` is called after every step. Of several processes the first alone writes,
    shows and watches. Returns {"log": [{"step", loss names...}], "seconds", "steps"}. Raises ValueError when the folder's
    state is damaged or belongs to another run, naming what differs, RuntimeError when a loss is not finite (the last
    good state stays).
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = processes(device).rank == 0
    with alone(folder) if first else nullcontext():
        return _train(objective, batches, recipe, folder, label, device, _identity(recipe, about), watch)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's training for this process; ValueError while another one does."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "state.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder}: another process is training there; wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _train(
    objective: Objective,
    batches: Callable[[int], Tensor],
    recipe: Recipe,
    folder: Path,
    label: str,
    device: str,
    identity: dict[str, Any],
    watch: Callable[[int, dict[str, float]], None] | None,
) -> dict[str, Any]:
    saved = folder / "state.pt"
    start, seconds, log = 0, 0.0, []
    running: dict[str, float] = {}
    objective.modules.to(device).train()  # first: an optimiser's state goes where its parameters are
    if saved.exists():
        state = _read(saved, identity)
        objective.modules.load_state_dict(state["modules"])
        for name, optimiser in objective.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        start, seconds, log = state["step"], state["seconds"], state["log"]
        running = state.get("running", {})
    began = last = time.monotonic()
    first = processes(device).rank == 0
    with progress(label, recipe.steps, "steps", start) if first else nullcontext(_silent) as tick:
        for step in range(start, recipe.steps):
            # Masks, Gumbel noise and the like follow from the step alone, so that a resumed run equals an undisturbed one.
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            for optimiser in objective.optimisers.values():
                for group in optimiser.param_groups:
                    group["lr"] = rate(step, recipe)
            try:
                losses = objective.step(batches(step).to(device), step / recipe.steps)
            except FloatingPointError as error:
                raise RuntimeError(_not_finite(label, step, f"{error}", saved)) from error
            if not all(math.isfinite(v) for v in losses.values()):
                raise RuntimeError(_not_finite(label, step, f"{losses}", saved))
            running = {k: 0.98 * running.get(k, v) + 0.02 * v for k, v in losses.items()}
            if step % 20 == 0 or step + 1 == recipe.steps:
                log.append({"step": step, **running})
            now = time.monotonic()
            speed = (step + 1 - start) * recipe.batch / max(now - began, 1e-9)
            tick(step + 1, " ".join([*(f"{k} {v:.4f}" for k, v in running.items()), f"{speed:.1f} images/s"]))
            if first and watch is not None:
                watch(step + 1, losses)
            if first and (now - last > SAVE_EVERY or step + 1 == recipe.steps):
                last = now
                _save(
                    saved,
                    {
                        "step": step + 1,
                        "seconds": seconds + now - began,
                        "log": log,
                        "running": running,
                        "identity": identity,
                        "modules": objective.modules.state_dict(),
                        "optimisers": {k: o.state_dict() for k, o in objective.optimisers.items()},
                    },
                )
    objective.modules.eval()
    return {"log": log, "seconds": seconds + time.monotonic() - began, "steps": recipe.steps}
