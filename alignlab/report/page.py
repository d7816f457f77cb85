"""The page: sections made of result files, the answer at the top, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from alignlab.files import whole
from alignlab.report.blocks import Block, Captions, Fold, Lines, Paragraph, Picture, Section, Slides, listed
from alignlab.report.sections import alignment, analysis, captions, layers, provenance, restoration
from alignlab.report.source import Source, read_all

LARGEST = 10 * 10**6  # bytes of a page
SECTIONS: tuple[Callable[[Sequence[Source]], Section | None], ...] = (
    alignment.section,
    captions.section,
    restoration.reconstruction,
    restoration.section,
    layers.section,
    analysis.adapters,
    analysis.components,
    analysis.correlation,
    analysis.compute,
    analysis.plan,
)
# What each kind of result asks, for the question at the top, in this order.
ASKS = {
    "measure": "do they represent the world alike",
    "reproduce-table4": "can the language model read the encoder",
    "caption-train": "can the language model read the encoder",
    "caption-eval": "can the language model read the encoder",
    "reconstruct": "what is left of an image after encoding and decoding",
    "reproduce": "what can the frozen language model do with the encoder's features",
    "restore-train": "what can the frozen language model do with the encoder's features",
    "restore-eval": "what can the frozen language model do with the encoder's features",
    "probe-layers": "which layers help",
    "probe-linear": "what is linear in each layer",
    "probe-induction": "which heads copy",
    "analyse-adapters": "what do the adapters do by themselves",
    "analyse-components": "how much of the encoder's tokens is written",
    "analyse-correlation": "does alignment predict restoration",
    "analyse-compute": "what does it cost",
    "reproduce-plan": "what would it take",
}


BELOW = ("reconstruct", "analyse-adapters", "analyse-components", "analyse-compute", "reproduce-plan")


@dataclass(frozen=True)
class Written:
    """A report that was written: its size, what it shows, and what is missing from it."""

    path: Path
    size: int
    sections: list[str]
    gaps: list[str]


def write_report(paths: Sequence[str | Path], out: str | Path, title: str = "", lacking: Sequence[str] = ()) -> Written:
    """Make one self-contained HTML page of result files (or their folders, or folders of such folders).

    What a file lacks is marked on the page and returned in `gaps`, after `lacking`: what there is no file of. Raises
    FileNotFoundError and ValueError for what is no result of alignlab, and where there is nothing to show.
    """
    sources = read_all([Path(path) for path in paths])
    html, sections, gaps = render(sources, title, lacking)
    target = Path(out)
    with whole(target, remedy="choose another --out", several=True) as unfinished:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(html, encoding="utf-8")
    return Written(target, len(html.encode()), [section.title for section in sections], gaps)


def render(
    sources: Sequence[Source], title: str = "", lacking: Sequence[str] = ()
) -> tuple[str, list[Section], list[str]]:
    """The page, its sections, and what is missing. Raises ValueError where nothing can be shown."""
    if not sources:
        raise ValueError("there is no result to report on")
    shown = [source for source in sources if not source.trouble]
    made: list[Section] = []
    failed: list[str] = []
    for make in SECTIONS:
        try:
            found = make(shown)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            # One damaged file must not take the rest of the page with it: find it, and show the others.
            found, culprits = _without_damaged(make, shown)
            failed += [f"{name}: a part of it cannot be shown ({type(error).__name__})" for name in culprits]
        if found is not None:
            made.append(found)
    if not made:
        named = [gap for source in shown for gap in source.gaps] + failed
        named += [f"{source.name}: {source.trouble}" for source in sources if source.trouble]
        raise ValueError(f"nothing can be shown: {'; '.join(named[:3]) or 'the results are empty'}")
    answer = _answer(made)
    for one in made:
        more = [_sentence(clause) for clause in one.answers if not any(clause[1:] in said for said in answer)]
        if more:
            one.blocks.insert(0, Lines(more, kind="reading", title="In short", show=4))
    made.append(provenance.section(sources, _words(made)))
    gaps = [*lacking, *(f"{source.name}: {source.trouble}" for source in sources if source.trouble)]
    gaps += [f"{source.name}: {gap}" for source in shown for gap in dict.fromkeys(source.gaps)] + failed
    labs = sorted({lab for source in shown if isinstance(lab := source.node["laboratory"].value, str)})
    heading = title or "How alike do vision encoders and language models see the world?"
    context = {
        "title": heading,
        "question": _question(shown),
        "answer": answer,
        "laboratories": labs,
        "sections": made,
        "gaps": gaps,
        "files": len(sources),
    }
    html = _html(context)
    for step in (3, 2, 1, 0):  # fewer pictures, until the page is small enough
        if len(html.encode()) <= LARGEST:
            break
        html = _html({**context, "sections": [_fewer(section, step) for section in made], "thinned": True})
    if len(html.encode()) > LARGEST:
        raise ValueError(
            f"the page would have {len(html.encode()) / 1e6:.0f} MB without any pictures; give fewer results"
        )
    return html, made, gaps


def _words(value: Any) -> str:
    """All texts of sections and their blocks."""
    if isinstance(value, str):
        return "" if value.startswith("data:") else value
    if is_dataclass(value):
        return " ".join(_words(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, list | tuple | dict):
        return " ".join(_words(one) for one in (value.values() if isinstance(value, dict) else value))
    return ""


def _without_damaged(
    make: Callable[[Sequence[Source]], Section | None], sources: Sequence[Source]
) -> tuple[Section | None, list[str]]:
    kept, culprits = [], []
    for source in sources:
        try:
            make([source])
            kept.append(source)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            culprits.append(source.name)
    return (make(kept) if kept else None), culprits


def _question(sources: Sequence[Source]) -> str:
    """What was asked, of which models."""
    encoders: dict[str, None] = {}
    llms: dict[str, None] = {}
    # Plans and counts are of models that nothing was measured with.
    measured = [source for source in sources if source.kind not in ("reproduce-plan", "analyse-compute")] or list(
        sources
    )
    for source in measured:
        _names(source.node.value, encoders, llms)
    kinds = {source.kind for source in measured}
    # Of what is answered further down alone, the top asks only where there is nothing else.
    asked = [kind for kind in ASKS if kind in kinds and kind not in BELOW] or [kind for kind in ASKS if kind in kinds]
    asks = list(dict.fromkeys(ASKS[kind] for kind in asked))
    plain = [name for name in encoders if not {"+", "@"} & set(name)] or list(encoders)
    whole = [name for name in llms if "[" not in name and "@" not in name] or list(llms)
    who = f"{listed(plain[:5])}{' and others' if len(plain) > 5 else ''}" if plain else "the encoders"
    whom = f", and {listed(whole[:3])}{' and others' if len(whole) > 3 else ''}" if whole else ""
    return f"{who}{whom}: {'; '.join(asks)}?"


def _names(value: Any, encoders: dict[str, None], llms: dict[str, None]) -> None:
    if isinstance(value, dict):
        if value.get("status") == "missing":  # a row of a table whose run is not there
            return
        for key, found in (("encoder", encoders), ("llm", llms)):
            name = value.get(key)
            if isinstance(name, dict):
                name = name.get("name")
            if isinstance(name, str) and 0 < len(name) < 100 and "@sha256:" not in name:
                found[name] = None
        for key, inner in value.items():
            if key not in ("frozen", "config", "paper", "matrix", "each"):
                _names(inner, encoders, llms)
    elif isinstance(value, list):
        for inner in value:
            _names(inner, encoders, llms)


def _answer(sections: Sequence[Section]) -> list[str]:
    """Three sentences at most: how alike, what the language model can do, whether the one predicts the other and what does it.

    Of each section its first answer, the others stand at its head. Where there is no more than one section, its first three.
    """
    by_id = {section.id: section.answers[:1] for section in sections}
    groups = [
        by_id.get("alignment", []),
        by_id.get("captions", []) + by_id.get("restoration", []),
        by_id.get("prediction", []) + by_id.get("layers", []),
    ]
    if not any(groups):  # none of the three: what there is says something of itself
        groups = [section.answers[:1] for section in sections if section.answers][:3]
    told = [section for section in sections if section.answers]
    if len(told) == 1:
        groups = [[clause] for clause in told[0].answers[:3]]
    return [_sentence("; ".join(group)) for group in groups if group]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _fewer(section: Section, pictures: int) -> Section:
    """A section with so many pictures a gallery."""

    def thin(block: Block) -> Block:
        if isinstance(block, Slides):
            return replace(block, pictures=block.pictures[:pictures])
        if isinstance(block, Captions):
            return replace(block, cards=block.cards[: 4 * pictures])
        if isinstance(block, Fold):
            return replace(block, blocks=[thin(inner) for inner in block.blocks])
        if isinstance(block, Picture) and pictures < 2:
            return Paragraph(f"{block.caption}: left out, for the page would be too large.", "gap")
        return block

    return replace(section, blocks=[thin(block) for block in section.blocks])


def _html(context: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = files("alignlab.report") / "templates"
    script = (folder / "report.js").read_text(encoding="utf-8")
    css = (folder / "report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("alignlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    numbers: dict[str, int] = {}

    def once(uri: str) -> Markup:
        """Attributes of an `<img>`: results that are compared show the same pictures, which are half of the page."""
        new = uri not in numbers
        number = numbers.setdefault(uri, len(numbers))
        where = Markup('data-picture="{}"').format(number)
        return Markup('src="{}" ').format(uri) + where if new else where

    environment.globals["once"] = once
    page = environment.get_template("report.html.j2")
    return page.render(
        **{"thinned": False, **context},
        css=Markup(css),
        script=Markup(script),
        script_digest=digest,  # both are ours
    )
