"""How often alignlab's Penn Treebank tokenizer agrees with the Stanford one that pycocoevalcap runs in Java.

    python benchmarks/tokenizer.py [--jsonl FILE ...] [--lines FILE ...] [--out benchmarks/results/tokenizer.json]

Needs Java. Always compared: the shipped scenes' captions and the first paragraphs of the docstrings in Python's standard
library (3 to 40 words). `--jsonl` adds a set with `captions` in each line, `--lines` a text with a caption in each line.
Both tokenizers see the same captions in one go, as in an evaluation, and agree where the token strings are identical. The
rest is listed, with whether they agree on that caption alone: the Java program looks into the line that follows. Where NLTK
is installed its `NLTKWordTokenizer`, the nearest library, is counted too.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, PTBTokenizer

from alignlab.captioning.tokenizer import NAME, tokenize
from alignlab.provenance import environment

HERE = Path(__file__).parent
NEXT_LINE = "and so on"  # begins no sentence


def stanford(captions: list[str]) -> list[str]:
    told = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    return [told[i][0] for i in range(len(captions))]


def docstrings() -> list[str]:
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.append((ast.get_docstring(node) or "").split("\n\n")[0])
    return [text for text in found if 3 <= len(text.split()) <= 40]


def jsonl(path: Path) -> list[str]:
    return [
        caption for line in path.read_text(encoding="utf-8").splitlines() for caption in json.loads(line)["captions"]
    ]


def nltk_words() -> Callable[[str], str] | None:
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError:
        return None
    brackets = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
    words = NLTKWordTokenizer()
    return lambda caption: " ".join(
        brackets.get(word, word.lower()) for word in words.tokenize(caption) if word not in PUNCTUATIONS
    )


def compare(captions: list[str], other: Callable[[str], str] | None) -> dict[str, Any]:
    # Other line breaks than \n make pycocoevalcap give captions each other's tokens.
    captions = list(dict.fromkeys(line for text in captions if (line := " ".join(text.split()))))
    theirs = stanford(captions)
    start = time.perf_counter()
    ours = [tokenize(caption) for caption in captions]
    seconds = time.perf_counter() - start
    differ = [i for i in range(len(captions)) if ours[i] != theirs[i]]
    alone = stanford([line for i in differ for line in (captions[i], NEXT_LINE)])[::2] if differ else []
    result: dict[str, Any] = {
        "captions": len(captions),
        "identical": len(captions) - len(differ),
        "share": 1 - len(differ) / len(captions),
        "captions_per_second": round(len(captions) / seconds),
        "rest": [
            {"caption": captions[i], "ours": ours[i], "stanford": theirs[i], "identical_alone": ours[i] == told}
            for i, told in zip(differ, alone, strict=True)
        ],
    }
    if other is not None:
        result["nltk_share"] = sum(other(c) == t for c, t in zip(captions, theirs, strict=True)) / len(captions)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jsonl", type=Path, action="append", default=[])
    parser.add_argument("--lines", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sets = {"scenes": jsonl(HERE.parent / "data/scenes/captions.jsonl"), "docstrings": docstrings()}
    sets |= {path.resolve().parent.name: jsonl(path) for path in args.jsonl}
    sets |= {path.stem: path.read_text(encoding="utf-8").splitlines() for path in args.lines}
    results = {name: compare(captions, nltk_words()) for name, captions in sets.items()}
    for name, result in results.items():
        for rest in result["rest"]:
            print(f"{name}: {rest['caption']}\n  ours      {rest['ours']}\n  Stanford  {rest['stanford']}")
    print(f"\n{'set':12} {'captions':>8} {'identical':>9} {'share':>8} {'differ alone':>12} {'NLTK':>7}  captions/s")
    for name, result in results.items():
        other = f"{result['nltk_share']:.2%}" if "nltk_share" in result else "-"
        alone = sum(not rest["identical_alone"] for rest in result["rest"])
        print(
            f"{name:12} {result['captions']:8} {result['identical']:9} {result['share']:8.3%} {alone:12} {other:>7}  "
            f"{result['captions_per_second']}"
        )
    count, same = (sum(result[key] for result in results.values()) for key in ("captions", "identical"))
    print(f"{'all':12} {count:8} {same:9} {same / count:8.3%}")
    if args.out:
        where = {key: value for key, value in environment("cpu").items() if key != "command"}  # it names folders
        record = {"tokenizer": NAME, "sets": results, "environment": where}
        args.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
