"""Table 4 of the paper: how alike encoders and a language model are, by a captioning probe and by their features.

A row is one encoder: a probe, trained and measured by `experiment.run` in a folder of its own, and beside it, in
`alignment.json`, the alignment of its layers with the language model's. What is finished is read, not repeated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from alignlab import paper
from alignlab.captioning import fit
from alignlab.captioning.evaluation import JUDGE
from alignlab.captioning.experiment import (
    RESULT,
    TRAINING_SCENES,
    Experiment,
    describe,
    finished,
    holds_out,
    learnt_items,
    run,
)
from alignlab.captioning.fit import RECIPE, Design
from alignlab.data import load_dataset
from alignlab.files import slug, whole
from alignlab.models.registry import EMBEDDED as SHORT
from alignlab.models.registry import SHIPPED, expand, find_encoder, find_llm
from alignlab.models.variant import parse
from alignlab.provenance import environment, shown, shown_model
from alignlab.training import Recipe, dtype_of, in_turn, processes

NAME, TITLE = "table4", "Table 4: alignment of encoders with a language model"
TABLE_SCHEMA = "alignlab.reproduce-table4/1"
METRICS = {"M-kNN": "mutual_knn", "CKA": "cka"}  # the paper's column -> its metric
K, NULLS, RESAMPLES = 10, 200, 200
ALIGNED, ALIGNED_SCHEMA = "alignment.json", "alignlab.table4-alignment/1"


@dataclass(frozen=True)
class Lab:
    """A laboratory: `encoders` by the paper's names, `controls` that it lacks, what probes learn from and are measured on.

    `test` is empty where `Experiment` knows what to measure on. `align_on` is the set of the alignment, `llm_dtype` what the
    language model runs in there. `accumulate` parts of a batch are in memory one after another.
    """

    name: str
    encoders: Mapping[str, str]
    controls: Mapping[str, str]
    llm: str
    data: str
    align_on: str
    test: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    subset: int | None = None
    judge: str = JUDGE
    accumulate: int = 1
    llm_dtype: str = "float32"

    def whose(self, rows: Sequence[Row]) -> str:
        """Its own name where every model and set of `rows` is its own, "own" else. A random encoder goes with its trained one."""
        ours = {parse(name).base for name in (*self.encoders.values(), *self.controls.values())}
        ours |= {*SHORT, *SHIPPED} if self.name == "embedded" else set()
        sets = {_base(source) for source in (self.data, *self.test, self.align_on)}
        for row in rows:
            one = row.experiment
            used = {_base(source) for source in (one.data, *one.test, row.align_on)}
            if parse(one.design.encoder).base not in ours or not used <= sets:
                return "own"
        return self.name


def _base(source: str) -> str:
    """A set's name, whichever part of it or folder follows; of a set without a name, all of it."""
    return source.partition(":")[0]


def _for_images(recipe: Recipe, images: int) -> Recipe:
    """The recipe for so many pictures, rounded up to whole batches, its warm-up the same share of the steps."""
    steps = math.ceil(images / recipe.batch)
    return replace(recipe, steps=steps, warmup=math.ceil(paper.PROBE_RECIPE["warmup"] * steps))


PAIRS = 3200  # that the embedded probes learn from, of the 4,000 scenes that are rendered for them
EMBEDDED = Lab(
    "embedded",
    encoders={"VQGAN": "vqgan", "BEiT": "beit", "MAE": "mae"},
    controls={"mae@random": "mae@random"},
    llm="smollm2",
    data=f"{TRAINING_SCENES}:4000",
    align_on="scenes",
    recipe=_for_images(RECIPE, PAIRS),
)
PAPER = Lab(
    "paper",
    encoders={"VQGAN": paper.MODELS["vqgan"], "BEiT": paper.MODELS["beit"], "MAE": paper.MODELS["mae"]},
    controls={"mae@random": f"{paper.MODELS['mae']}@random"},
    llm=paper.MODELS["llm"],
    data="llava595k",
    align_on="wit1024",
    test=("nocaps",),
    recipe=_for_images(
        replace(RECIPE, batch=paper.PROBE_RECIPE["batch"], lr=paper.PROBE_RECIPE["lr"]), paper.PROBE_RECIPE["subset"]
    ),
    subset=paper.PROBE_RECIPE["subset"],
    judge=paper.JUDGE,
    accumulate=8,
    llm_dtype="bfloat16",
)
LABS = {lab.name: lab for lab in (EMBEDDED, PAPER)}


@dataclass(frozen=True)
class Row:
    """One line: the probe's experiment, what its encoder is aligned on, and the paper's figures where it has this encoder."""

    name: str
    experiment: Experiment
    align_on: str
    llm_dtype: str = "float32"
    control: bool = False
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def encoder(self) -> str:
        return self.experiment.design.encoder

    @property
    def images_seen(self) -> int:
        return self.experiment.recipe.steps * self.experiment.recipe.batch


def open_lab(name: str) -> Lab:
    """The laboratory of a name; ValueError for another."""
    if name not in LABS:
        raise ValueError(f"--lab must be one of {', '.join(LABS)}, got {name!r}")
    return LABS[name]


def table(
    lab: Lab,
    *,
    images: int | None = None,
    n: int = 256,
    data: Sequence[str] = (),
    test: Sequence[str] = (),
    align_on: str | None = None,
    encoders: Sequence[str] = (),
    seed: int = 0,
    only: Sequence[str] = (),
) -> tuple[Row, ...]:
    """The rows: the paper's encoders, the controls, `encoders` as typed; of these the ones that match a pattern of `only`.

    Every probe learns from `images` pictures (rounded up to whole batches; by default the laboratory's recipe) of one set and
    is measured on `n` of another. ValueError for anything else, for a row that is there twice and a pattern that fits none.
    """
    if images is not None and images < 1:
        raise ValueError(f"--images must be 1 or more, got {images}")
    if n < 1:
        raise ValueError(f"--n must be 1 or more, got {n}")
    for option, given in (("--data", data), ("--test", test)):
        if len(given) > 1:
            raise ValueError(
                f"{option} is given {len(given)} times; {NAME} has one set to learn from and one to measure on"
            )
    recipe = lab.recipe if images is None else _for_images(lab.recipe, images)
    common = Experiment(
        Design(llm=lab.llm, seed=seed),
        data=data[0] if data else lab.data,
        recipe=replace(recipe, seed=seed),
        subset=lab.subset,
        test=tuple(test) or (() if data and not lab.test else lab.test),
        n=n,
        judge=lab.judge,
    )
    named = {**lab.encoders, **lab.controls}
    for encoder in expand(encoders):
        name = shown_model(encoder)
        there = name if name in named else next((row for row, other in named.items() if other == encoder), None)
        if there is not None:
            raise ValueError(
                f"--encoder {encoder}: {NAME} has the row {there} already; leave it out, or rename its folder"
            )
        named[name] = encoder
    rows = tuple(
        Row(
            name,
            replace(common, design=replace(common.design, encoder=encoder)),
            align_on or lab.align_on,
            lab.llm_dtype,
            control=parse(encoder).random,
            paper=paper.TABLE4.get(name, {}) if name in lab.encoders else {},
        )
        for name, encoder in named.items()
    )
    for pattern in only:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            raise ValueError(f"--only {pattern}: {NAME} has the rows {', '.join(named)}")
    return tuple(row for row in rows if not only or any(fnmatchcase(row.name, pattern) for pattern in only))


# --- where the runs are, and how far ---


def folder(row: Row, lab: Lab) -> str:
    """The name of a run's folder: what tells it from the others of its laboratory."""
    one = row.experiment
    parts = ["caption", *(name.rstrip("/").rpartition("/")[2] for name in (row.encoder, one.design.llm))]
    parts += [_called(one.data)] if one.data != lab.data else []
    parts += ["on", *map(_called, one.test)] if one.test != lab.test else []
    parts += ["aligned-on", _called(row.align_on)] if row.align_on != lab.align_on else []
    parts += [f"seed{one.design.seed}"] if one.design.seed else []
    return slug("-".join([*parts, f"{row.images_seen}-images"]))


def _called(source: str) -> str:
    """A set's name, and what tells it from others of that name; rendered scenes are known by theirs."""
    if _base(source) in (TRAINING_SCENES, "scenes"):
        return source
    print_ = load_dataset(source, captions=False).fingerprint.removeprefix("sha256:")
    return f"{shown(source).rpartition('/')[2]}-{print_[:8]}"


@dataclass(frozen=True)
class Place:
    """A row, the folder of its run, and how far that is: `steps` are trained, captions are measured, layers are aligned.

    `another`: another run lies there, or a damaged one. `kept` is the row of an earlier result, where its run is not finished
    here.
    """

    row: Row
    where: Path
    steps: int = 0
    captioned: bool = False
    aligned: bool = False
    another: bool = False
    kept: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is something to train or measure."""
        return self.state not in ("done", "kept")

    @property
    def state(self) -> str:
        """ "done", "kept", "partly", "to do" or "another run"."""
        if self.kept is not None:
            return "kept"
        if self.another:
            return "another run"
        if self.captioned and self.aligned:
            return "done"
        return "partly" if self.steps or self.captioned or self.aligned else "to do"


def places(
    rows: Sequence[Row], lab: Lab, runs: Path, earlier: Mapping[str, dict[str, Any]] | None = None
) -> list[Place]:
    """Where each row's run lies and how far it is; no model is loaded. A row that is in `earlier`, by its run, is kept where
    that is not finished here. ValueError for two rows with one folder.
    """
    found: dict[str, Place] = {}
    for row in rows:
        name = folder(row, lab)
        if name in found:
            raise ValueError(
                f"{row.name} and {found[name].row.name} would share the folder {name}; rename one's folder"
            )
        place, before = _standing(row, runs / name), (earlier or {}).get(name)
        stands = before is not None and place.state != "done" and _is_row(before, row)
        found[name] = replace(place, kept=before) if stands else place
    return list(found.values())


def read_earlier(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished rows of a result that lies in `folder`, by their runs; none where there is no result of this table.

    ValueError for a damaged one.
    """
    path = folder / RESULT
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        if (found["schema"], found["target"]) != (TABLE_SCHEMA, NAME):
            return {}
        return {str(row["run"]): row for row in found["rows"] if row["status"] == "done"}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, and its rows cannot be kept ({error}); delete it, or choose another --out"
        ) from error


def _is_row(before: dict[str, Any], row: Row) -> bool:
    """Whether a row of an earlier result is of the same probe and alignment, measured on the same images."""
    one = row.experiment
    try:
        theirs = {**before["recipe"], "dtype": one.recipe.dtype}  # the machine's, and makes no other row of it
        same: tuple[tuple[Any, Any], ...] = (
            (before["design"], one.design.plain()),
            (theirs, asdict(one.recipe)),
            (before["subset"], one.subset),
            (before["data"]["name"], shown(one.data)),
            (before["evaluation"]["n"], one.n),
            (before["evaluation"]["data"]["fingerprint"], load_dataset(one.measured[0]).fingerprint),
            (before["alignment"]["of"], _alignment_of(row)),
        )
        if Path(one.data).exists():  # a set that goes by a name is the same wherever it is rendered
            same += ((before["data"]["fingerprint"], load_dataset(one.data).fingerprint),)
    except (KeyError, TypeError):
        return False
    return all(json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True) for a, b in same)


def _standing(row: Row, where: Path) -> Place:
    place = Place(row, where, aligned=read_alignment(row, where) is not None)
    if read_captions(row, where) is not None:
        return replace(place, captioned=True, steps=row.experiment.recipe.steps)
    if not (where / "state.pt").is_file():
        return place
    one, data = _begun(row, where), load_dataset(row.experiment.data)
    hold_out = holds_out(data, one)
    items = learnt_items(data, hold_out, one.subset, one.recipe.seed)
    try:
        fit.started(one.design, fit.Run(where, one.recipe, held_out=hold_out), data, items)
    except ValueError:
        return replace(place, another=True)
    state = torch.load(where / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    return replace(place, steps=int(state["step"]))


def read_captions(row: Row, where: Path) -> dict[str, Any] | None:
    """What the row's probe came to, where it is finished."""
    if not (where / RESULT).is_file():
        return None
    result = finished(where, row.experiment.design, describe(_begun(row, where), load_dataset(row.experiment.data)))
    return result if result is not None and result["evaluations"] else None


def _begun(row: Row, where: Path) -> Experiment:
    """The row's probe as it lies there: the type of its numbers is the machine's, and makes no other row of it."""
    one = row.experiment
    return replace(one, recipe=replace(one.recipe, dtype=dtype_of(where, "auto", "cpu")))


def read_alignment(row: Row, where: Path) -> dict[str, Any] | None:
    """What the row's alignment came to, where it is finished."""
    try:
        found = json.loads((where / ALIGNED).read_text())
        return found if found["schema"] == ALIGNED_SCHEMA and found["of"] == _alignment_of(row) else None
    except (OSError, KeyError, TypeError, json.JSONDecodeError):  # none yet, or a damaged one
        return None


def _alignment_of(row: Row) -> dict[str, Any]:
    """What makes an alignment what it is, but for the models, which their checkpoints tell apart."""
    data, design = load_dataset(row.align_on), row.experiment.design.plain()
    return {
        "encoder": design["encoder"],
        "llm": design["llm"],
        "llm_dtype": row.llm_dtype,
        "data": {"name": shown(row.align_on), "fingerprint": data.fingerprint, "n": len(data)},
        **{"metrics": list(METRICS.values()), "k": K, "nulls": NULLS, "resamples": RESAMPLES},
        "seed": row.experiment.recipe.seed,
    }


# --- the work ---


def check_encoders(rows: Sequence[Row], lab: Lab, device: str = "cpu") -> None:
    """Say before hours of work that an encoder cannot be read by a probe. ValueError, or as `find_encoder` has it."""
    for row in rows:
        if row.encoder in (*lab.encoders.values(), *lab.controls.values()):
            continue
        encoder = find_encoder(row.encoder, device=device).load()
        tokens = encoder.encode(torch.full((1, 3, encoder.image_size, encoder.image_size), 0.5))
        if tokens.shape[1] < 2:  # [1, T, D]
            raise ValueError(
                f"--encoder {row.encoder} gives one vector an image, no tokens of its parts for a probe to read; its alignment "
                "can be had by alignlab measure"
            )


def refuse_others(found: Sequence[Place]) -> None:
    """ValueError where another run lies in the folder of one that is still to be trained."""
    for place in found:
        if place.another:
            raise ValueError(
                f"{place.where} holds another run than {place.row.name}'s (its models, data or recipe differ), or a damaged "
                "one; delete it, or choose another --runs folder"
            )


def perform(place: Place, *, device: str = "cpu", accumulate: int = 1, laboratory: str = "own") -> None:
    """Do what a row still lacks. Of several commands that want one row, one works and the others wait.

    Errors as `experiment.run`, `extract` and `align`.
    """
    among = processes(device)
    if among.share(place.state) in (
        "done",
        "kept",
    ):  # another command may have finished it between two processes' looks
        return
    with in_turn(place.where, among):
        if among.rank == 0 and read_alignment(place.row, place.where) is None:
            _align(place.row, place.where, device)  # minutes, where the probe may take hours
        run(place.row.experiment, place.where, device=device, accumulate=accumulate, laboratory=laboratory)


def _align(row: Row, where: Path, device: str) -> None:
    from alignlab.alignment.engine import align
    from alignlab.alignment.result import plain_pair
    from alignlab.features import extract

    data, design = load_dataset(row.align_on), row.experiment.design
    images = extract(find_encoder(row.encoder, device=device), data)
    texts = extract(find_llm(design.llm, device=device, dtype=row.llm_dtype), data)
    settings: dict[str, Any] = {"k": K, "nulls": NULLS, "resamples": RESAMPLES, "seed": row.experiment.recipe.seed}
    found = align(images, texts, list(METRICS.values()), device=device, **settings)
    described = {
        "schema": ALIGNED_SCHEMA,
        "of": _alignment_of(row),
        "frozen": {"encoder": images.checkpoint, "llm": texts.checkpoint},
        "pairs": {
            metric: {**plain_pair(images, texts, found, metric), "ceiling": found.metrics[metric].ceiling}
            for metric in METRICS.values()
        },
        "notes": list(found.notes),
        "environment": environment(device),
    }
    with whole(where / ALIGNED) as unfinished:
        unfinished.write_text(json.dumps(described, allow_nan=False) + "\n")
