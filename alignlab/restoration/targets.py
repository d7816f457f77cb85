"""The paper's tables and figures of restoration: which experiments each is made of, in which laboratory.

A target is a list of rows, a row is one `Experiment` with what the paper has in its place. Another table is another entry
of `TARGETS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from alignlab import paper
from alignlab.data.named import NAMED
from alignlab.restoration import fit
from alignlab.restoration.adapters import BEGINNINGS
from alignlab.restoration.coordinates import POSITION
from alignlab.restoration.design import FEATURES, Design
from alignlab.restoration.experiment import Experiment
from alignlab.training import Recipe

COLUMNS = ("degraded", "alone", "restored")  # of the paper's figures, as evaluation has them


@dataclass(frozen=True)
class Lab:
    """A laboratory: its models by the names that the paper has for them, its data, its budget, and how many pictures of
    each test set it is measured on (`n`).

    `encoders` are (name, decoder); a target leaves out the rows of those that a laboratory has not.
    `main` of them stands for the paper's MAE wherever encoders are not compared. `others` are Table 7's rows: (encoder of
    `encoders`, language model). Rows of the encoders in `raw` read raw features, whatever `features` says of the others.
    `accumulate` parts of a batch are in memory one after another.
    """

    name: str
    encoders: Mapping[str, tuple[str, str | None]]
    llm: str
    others: Mapping[str, tuple[str, str]]
    data: tuple[str, ...]
    test: tuple[str, ...] = ()
    n: int = 256
    recipe: Recipe = field(default_factory=lambda: fit.RECIPE)
    features: str = "whitened"
    raw: tuple[str, ...] = ()
    accumulate: int = 1
    main: str = "mae"
    # "depth" goes through so many first blocks of the language model, and through all of it, before each of these encoders.
    depths: tuple[int, ...] = ()
    before: tuple[str, ...] = ()


EMBEDDED = Lab(
    "embedded",
    encoders={name: (name, None) for plain in ("mae", "beit", "vqgan", "pca") for name in (plain, plain + POSITION)},
    # A run here sees a three-hundredth of the paper's images, too few for LM4LV to learn to keep its place by what MAE's
    # tokens tell of it: it copies, and skips or repeats tokens. Rows of plain `mae` show that.
    main="mae" + POSITION,
    llm="smollm2",
    # Evened out, components that hardly vary in pictures bring in the noise that was added to them.
    raw=("pca", "pca" + POSITION),
    # There is one trained language model here: its first blocks stand in for smaller ones, and are called so.
    others={
        "smollm2": ("mae" + POSITION, "smollm2"),
        "first-24-of-30-blocks": ("mae" + POSITION, "smollm2[:24]"),
        "first-12-of-30-blocks": ("mae" + POSITION, "smollm2[:12]"),
        "random-weights": ("mae" + POSITION, "smollm2@random"),
    },
    data=("scenes",),
    depths=(6, 12, 24),
    before=("mae" + POSITION, "beit" + POSITION, "vqgan" + POSITION),
)
PAPER = Lab(
    "paper",
    encoders={
        "mae": (paper.MODELS["mae"], paper.MODELS["mae decoder"]),
        "beit": (paper.MODELS["beit"], None),
        "vqgan": (paper.MODELS["vqgan"], None),
        "vqgan+position": (paper.MODELS["vqgan"] + POSITION, None),
        "mae-base": (paper.MAE_BASE, None),  # the paper names no decoder fine-tuned for it: its own
    },
    llm=paper.MODELS["llm"],
    others={
        "Llama2-7B-inst": ("mae", paper.MODELS["llm"]),
        **{called: ("mae", llm) for called, llm in paper.OTHER_LLMS.items()},
        "MAE-B": ("mae-base", paper.MODELS["llm"]),
    },
    data=("llava595k",),
    test=("nocaps",),
    n=NAMED["nocaps"].items,
    recipe=replace(
        fit.RECIPE,
        **{key: paper.LM4LV_RECIPE[key] for key in ("batch", "lr", "warmup")},
        steps=paper.LM4LV_RECIPE["epochs"] * NAMED["llava595k"].items // paper.LM4LV_RECIPE["batch"],
    ),
    features="raw",
    accumulate=32,
    depths=(8, 16, 24),
    before=("mae", "beit", "vqgan"),
)
LABS = {lab.name: lab for lab in (EMBEDDED, PAPER)}


@dataclass(frozen=True)
class Row:
    """One line of a target. `paper` holds the paper's figures for it, by `COLUMNS`, where it has any."""

    name: str
    experiment: Experiment
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.experiment.design.tasks[0]


@dataclass(frozen=True)
class Target:
    """A table or figure. `pairs` are the rows whose difference is what it is about, (a, b) for a minus b. With
    `own_budgets` every row is compared with its own encoder and decoder alone, so that one may be trained for longer.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    own_budgets: bool = False

    def only(self, patterns: list[str]) -> Target:
        """The rows of these names, or of patterns such as "rotate/*"; ValueError for one that fits none."""
        for pattern in patterns:
            if not any(fnmatchcase(row.name, pattern) for row in self.rows):
                names = ", ".join(row.name for row in self.rows)
                raise ValueError(f"--only {pattern}: {self.name} has the rows {names}")
        kept = tuple(row for row in self.rows if any(fnmatchcase(row.name, pattern) for pattern in patterns))
        return replace(self, rows=kept) if patterns else self


@dataclass(frozen=True)
class _Bench:
    """What makes a laboratory's experiments, all alike but for what a row says."""

    lab: Lab
    common: Experiment

    def row(self, name: str, task: str, how: str = "lm4lv", encoder: str = "", **options: Any) -> Row:
        encoder = encoder or self.lab.main
        called, decoder = self.lab.encoders[encoder]
        plan = replace(
            self.common.design,
            how=how,
            encoder=called,
            decoder=decoder,
            tasks=(task,),
            **{"llm": self.lab.llm, **({"features": "raw"} if encoder in self.lab.raw else {}), **options},
        )
        known: dict[str, Any] = {}
        if how == "lm4lv" and encoder == self.lab.main and plan.llm == self.lab.llm:
            known = {"alone" if c == "MAE-r" else c: x for c, x in paper.TABLE2.get(task, {}).items()}
            known |= {"restored": known.pop("LM4LV")} if known else {}
        elif how != "lm4lv" and encoder == self.lab.main and how in paper.TABLE3.get(task, {}):
            known = {"restored": paper.TABLE3[task][how]}
        return Row(name, replace(self.common, design=plan), known)


def _table2(bench: _Bench) -> Target:
    title = "Table 2: LM4LV on restoration and spatial tasks"
    rows = [bench.row(task, task) for task in paper.TABLE2]
    if (plain := bench.lab.main.removesuffix(POSITION)) != bench.lab.main:
        rows.append(bench.row(f"denoise/{plain}", "denoise", encoder=plain))
    return Target("table2", title, tuple(rows), own_budgets=True)


def _table3(bench: _Bench) -> Target:
    hows = ("linear", "mlp", "transformer", "lm4lv")
    rows = [bench.row(f"{task}/{how}", task, how) for task in paper.TABLE3 for how in hows]
    pairs = [(f"{task}/lm4lv", f"{task}/{how}") for task in paper.TABLE3 for how in hows[:-1]]
    if (plain := bench.lab.main.removesuffix(POSITION)) != bench.lab.main:  # what the Transformer does without the code
        for task in paper.TABLE3:
            rows.append(bench.row(f"{task}/transformer/{plain}", task, "transformer", encoder=plain))
            pairs.append((f"{task}/transformer", f"{task}/transformer/{plain}"))
    return Target("table3", "Table 3: LM4LV and experts without a language model", tuple(rows), tuple(pairs))


def _table7(bench: _Bench) -> Target:
    rows = []
    for called, (encoder, llm) in bench.lab.others.items():
        row = bench.row(called, "derain", encoder=encoder, llm=llm)
        found = paper.TABLE7.get(called)
        # The table's MAE-r is the larger MAE's.
        alone = {"alone": paper.TABLE7["MAE-r"]} if encoder == bench.lab.main else {}
        # Only the paper's laboratory has the paper's models by these names.
        rows.append(replace(row, paper={**row.paper, **alone, "restored": found}) if found else row)
    first = rows[0].name
    pairs = tuple((first, row.name) for row in rows[1:])
    return Target("table7", "Table 7: deraining with other models", tuple(rows), pairs)


def _fig4(bench: _Bench) -> Target:
    order = [name for plain in ("mae", "beit", "vqgan", "pca") for name in (plain, plain + POSITION)]
    encoders = [name for name in order if name in bench.lab.encoders]
    tasks = ("repeat", "rotate")
    rows = tuple(bench.row(f"{task}/{name}", task, encoder=name) for task in tasks for name in encoders)
    with_code = [name for name in encoders if name.endswith(POSITION) and name.removesuffix(POSITION) in encoders]
    pairs = tuple((f"{task}/{name}", f"{task}/{name.removesuffix(POSITION)}") for task in tasks for name in with_code)
    return Target("fig4", "Figure 4: repeat and rotate by encoder", rows, pairs)


def _fig5(bench: _Bench) -> Target:
    rows = [bench.row("lm4lv", "denoise"), bench.row("vit-llm", "denoise", "vit-llm")]
    for causal, rotary in ((True, False), (False, True), (True, True)):
        name = "vit-llm" + "+causal" * causal + "+rotary" * rotary
        rows.append(bench.row(name, "denoise", "vit-llm", causal=causal, rotary=rotary))
    pairs = tuple(("lm4lv", row.name) for row in rows[1:])
    return Target("fig5", "Figure 5: denoising token by token, and in one pass (ViT-LLM)", tuple(rows), pairs)


def _fig6(bench: _Bench) -> Target:
    rows = (bench.row("lm4lv", "denoise"), bench.row("linear", "denoise", "linear"))
    return Target("fig6", "Figure 6: denoising by one linear layer", rows, (("lm4lv", "linear"),))


def _fig7(bench: _Bench) -> Target:
    random = f"{bench.lab.llm}@random"
    rows = tuple(
        bench.row(f"{task}/{name}", task, llm=llm)
        for task in ("denoise", "rotate")
        for name, llm in (("trained", bench.lab.llm), ("random", random))
    )
    pairs = tuple((f"{task}/trained", f"{task}/random") for task in ("denoise", "rotate"))
    return Target("fig7", "Figure 7: a language model with random weights", rows, pairs)


def _depth(bench: _Bench) -> Target:
    """What the paper has not: how much of the language model it takes, and whether alignment at a depth tells."""
    cuts = [f"[:{blocks}]" for blocks in bench.lab.depths]
    rows = tuple(
        bench.row(f"{encoder}/{cut[2:-1] or 'all'}", "denoise", encoder=encoder, llm=bench.lab.llm + cut)
        for encoder in bench.lab.before
        for cut in (*cuts, "")
    )
    return Target("depth", "Depth: denoising through the first blocks of the language model", rows)


def _choices(bench: _Bench) -> Target:
    """What the paper has not: denoising with one choice of the laboratory's recipe changed at a time, and with the paper's
    rate and features and torch's beginning at once. In a part of its steps (`SHARES`): choices are for setting out.
    """
    lab, usual = bench.lab, paper.LM4LV_RECIPE["lr"]

    def row(name: str, lr: float = lab.recipe.lr, **options: Any) -> Row:
        made = bench.row(name, "denoise", **options)
        return Row(name, replace(made.experiment, recipe=replace(made.experiment.recipe, lr=lr)))

    rows = [bench.row("as-it-is", "denoise")]
    rows += [row(f"rate-{rate:g}", rate) for rate in (usual, 1e-3, 3e-3, 1e-2) if rate != lab.recipe.lr]
    rows += [row(f"features-{name}", features=name) for name in FEATURES if name != lab.features]
    rows += [row(f"begin-{name}", begin=name) for name in BEGINNINGS[1:]]
    if (lab.features, lab.recipe.lr) != ("raw", usual):
        rows.append(row(f"raw-plain-{usual:g}", usual, features="raw", begin="plain"))
    pairs = tuple((rows[0].name, other.name) for other in rows[1:])
    return Target("choices", "Choices: denoising with another rate, features or beginning", tuple(rows), pairs)


TARGETS: dict[str, Callable[[_Bench], Target]] = {
    "table2": _table2,
    "table3": _table3,
    "table7": _table7,
    "fig4": _fig4,
    "fig5": _fig5,
    "fig6": _fig6,
    "fig7": _fig7,
    "depth": _depth,
    "choices": _choices,
}
SHARES = {"choices": 4}  # by how much a target's runs are shorter than the laboratory's


def open_lab(name: str) -> Lab:
    """The laboratory of a name; ValueError for another."""
    if name not in LABS:
        raise ValueError(f"--lab must be one of {', '.join(LABS)}, got {name!r}")
    return LABS[name]


def target(
    name: str,
    lab: Lab,
    *,
    images: int | None = None,
    n: int | None = None,
    data: tuple[str, ...] = (),
    test: tuple[str, ...] = (),
    seed: int = 0,
) -> Target:
    """What a target is made of. Every run sees `images` pictures (rounded up to whole batches; by default as many as the
    laboratory's recipe says, or the part of them that `SHARES` says; the title names another number) and is measured on
    `n` pictures of each test set (default: the laboratory's). ValueError for an unknown target.
    """
    if name not in TARGETS:
        raise ValueError(f"there is no target {name!r}; there are {', '.join(TARGETS)}")
    if images is not None and images < 1:
        raise ValueError(f"--images must be 1 or more, got {images}")
    n = lab.n if n is None else n
    if n < 1:
        raise ValueError(f"--n must be 1 or more, got {n}")
    steps = max(lab.recipe.steps // SHARES.get(name, 1), 1) if images is None else math.ceil(images / lab.recipe.batch)
    common = Experiment(
        Design(features=lab.features, seed=seed),
        data=data or lab.data,
        # A run shorter than its warm-up would never reach its rate.
        recipe=replace(lab.recipe, steps=steps, warmup=min(lab.recipe.warmup, steps // 5), seed=seed),
        test=test or lab.test,
        n=n,
    )
    made = TARGETS[name](_Bench(lab, common))
    if steps == lab.recipe.steps:
        return made
    which, _, what = made.title.partition(":")
    return replace(made, title=f"{which} ({steps * lab.recipe.batch:,} images):{what}")
