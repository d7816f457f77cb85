"""What `alignlab probe induction` writes: its findings as plain values, in words, and as pictures."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from alignlab.probing.induction import Ablated, Attended, Copying
from alignlab.restoration.quality import mean

STRONG = 0.3  # mean attention to the successor from which a head is called an induction head here
LISTED = 10  # heads in a table
# What is looked at without some heads -> its name, and whether more of it is worse.
OUTCOMES = {
    "copied": ("the loss of the second copy", True),
    "visual": ("the visual loss", True),
    "restored": ("the PSNR of what LM4LV writes", False),
}


def plain_attended(found: Attended) -> dict[str, Any]:
    """As JSON: matrices `[blocks][heads]`, the strongest heads with intervals over items, the maximum of each block."""
    matrices = {name: getattr(found, name).double().mean(0) for name in ("successor", "same", "source")}
    strongest = matrices["successor"].max(1).values.tolist()
    top = []
    for block, head in found.top(min(LISTED, matrices["successor"].numel())):
        row = found.blocks.index(block)
        top.append(
            {
                "block": block,
                "head": head,
                "successor": mean(found.successor[:, row, head - 1]).plain(),
                "same": float(matrices["same"][row, head - 1]),
                "source": float(matrices["source"][row, head - 1]),
            }
        )
    return {
        "n": len(found.successor),
        "blocks": list(found.blocks),
        "heads": matrices["successor"].shape[1],
        "chance": found.chance,
        "strong": [[b, h] for b, h in found.top(matrices["successor"].numel()) if _at(found, b, h) > STRONG],
        "block_max": [round(x, 6) for x in strongest],
        "top": top,
        **{name: [[round(x, 6) for x in row] for row in matrix.tolist()] for name, matrix in matrices.items()},
    }


def _at(found: Attended, block: int, head: int) -> float:
    return float(found.successor[:, found.blocks.index(block), head - 1].mean())


def plain_copying(found: Copying) -> dict[str, Any]:
    """Nats a token, with intervals over texts."""
    return {"first": mean(found.first).plain(), "second": mean(found.second).plain()}


def agreement(text: Attended, images: Attended, count: int = LISTED) -> dict[str, Any]:
    """Whether the heads that copy text are those that look at the next LQ token: Spearman's correlation of the two maps over
    heads (None where one map is flat), and how many of the top `count` are in both."""
    from scipy.stats import spearmanr

    a, b = (found.successor.mean(0).flatten().double() for found in (text, images))
    count = min(count, len(a))
    flat = bool(a.max() == a.min() or b.max() == b.min())
    rank = None if flat else float(spearmanr(a.numpy(), b.numpy()).statistic)
    return {"spearman": rank, "top": count, "shared": len(set(text.top(count)) & set(images.top(count)))}


def plain_ablated(found: list[Ablated]) -> list[dict[str, Any]]:
    """One entry a group: losses and PSNR with intervals over items, and their rise above those with all heads, item by item
    (a PSNR falls: its rise is below 0). Of random groups the mean over draws, with the rise of each draw."""
    whole = next(one for one in found if one.group == "none")
    groups = []
    for name in dict.fromkeys(one.group for one in found):
        draws = [one for one in found if one.group == name]
        entry: dict[str, Any] = {"group": name, "draws": len(draws), "heads": [one.heads for one in draws]}
        for loss in OUTCOMES:
            base = getattr(whole, loss)
            if base is None:
                entry[loss] = None
                continue
            each = [getattr(one, loss).double() for one in draws]  # draws times [n]
            average = sum(each) / len(each)
            entry[loss] = {
                **mean(average).plain(),
                "rise": mean(average - base.double()).plain(),
                "rises": [round(float((x - base).mean()), 6) for x in each],
            }
        groups.append(entry)
    return groups


def reading(result: dict[str, Any]) -> list[str]:
    """What the numbers say, a sentence each."""
    said = []
    for one in result["text"]:
        first, second = (one["copying"][copy]["mean"] for copy in ("first", "second"))
        if first - second > 1:
            verdict = "it copies in context"
        else:
            verdict = "it does not copy in context" if first - second < 0.1 else "it hardly copies in context"
        said.append(f"{one['llm']}: {first:.2f} nats a token the first time, {second:.2f} the second: {verdict}.")
        said.append(_strong(one["attention"], f"{one['llm']}: no head"))
    if result["images"] is not None:
        said += _of_images(result)
    by_name = {one["group"]: one for one in result["ablation"]}
    for name in ("text", "images"):
        if name in by_name:
            said += _of_ablation(by_name, name)
    return said


def _strong(found: dict[str, Any], none: str) -> str:
    if not found["strong"]:
        best = found["top"][0]
        return (
            f"{none} attends to the successor with {STRONG} or more; the strongest, {best['block']}.{best['head']}, with "
            f"{best['successor']['mean']:.3f} (chance {found['chance']:.3f})."
        )
    blocks = sorted({block for block, _ in found["strong"]})
    return (
        f"{len(found['strong'])} heads attend to the successor with more than {STRONG} (chance {found['chance']:.3f}), in "
        f"blocks {', '.join(map(str, blocks))} of {found['blocks'][-1]}."
    )


def _of_images(result: dict[str, Any]) -> list[str]:
    found, shared = result["images"]["attention"], result["agreement"]
    best = found["top"][0]
    said = [
        f"On LM4LV's sequences head {best['block']}.{best['head']} attends most from HQ token t to LQ token t + 1: "
        f"{best['successor']['mean']:.3f}, to LQ token t {best['same']:.3f}, to the average LQ token {best['source']:.4f}; "
        f"chance {found['chance']:.4f}."
    ]
    rank = shared["spearman"]
    also = "" if rank is None else f"; over all heads the two maps' ranks correlate by {rank:.2f}"
    said.append(
        f"{shared['shared']} of the top {shared['top']} heads there are among the top {shared['top']} on text{also}."
    )
    return said


def _of_ablation(groups: dict[str, dict[str, Any]], name: str) -> list[str]:
    said = []
    whole, chosen = groups["none"], groups[name]
    controls = [groups[g] for g in (f"random, blocks of {name}", "random, other blocks") if g in groups]
    count = len(chosen["heads"][0])
    for loss, (what, worse_above) in OUTCOMES.items():
        if chosen.get(loss) is None:
            continue
        sign, rise = 1 if worse_above else -1, chosen[loss]["rise"]
        text = (
            f"Without the top {count} heads on {name}, {what} goes from {whole[loss]['mean']:.3f} to "
            f"{chosen[loss]['mean']:.3f}"
        )
        for control in controls:
            least, most = min(control[loss]["rises"]), max(control[loss]["rises"])
            text += f"; {control['group']}: {least:+.3f} to {most:+.3f}"
        largest = max((sign * x for control in controls for x in control[loss]["rises"]), default=None)
        if min(sign * x for x in rise["ci95"]) <= 0:
            low, high = rise["ci95"]
            verdict = f"no clear {'rise' if worse_above else 'fall'} ({low:+.3f} to {high:+.3f})"
        elif largest is not None and sign * rise["mean"] > largest:
            draws = sum(len(control[loss]["rises"]) for control in controls)
            verdict = f"more than each of {draws} random draws of heads does"
        else:
            verdict = "but random heads do as much" if largest is not None else "nothing to compare it with"
        said.append(f"{text}: {verdict}.")
    return said


# --- pictures ---


def head_map(found: Attended, title: str) -> Figure:
    """Attention to the successor, block by head, the strongest heads framed."""
    matrix = found.successor.mean(0).numpy()  # [blocks, heads]
    rows, columns = matrix.shape
    size = (max(3.6, 0.28 * columns + 2.0), max(2.8, 0.2 * rows + 1.4))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        matrix, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=max(float(matrix.max()), 1e-6)
    )
    for block, head in found.top(min(LISTED, rows * columns)):
        corner = (head - 1.5, found.blocks.index(block) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#ff3b30", linewidth=1.2))
    axes.set_xlabel("head")
    axes.set_ylabel("block")
    each, every = max(1, columns // 12), max(1, rows // 15)
    axes.set_xticks(range(0, columns, each), [str(h + 1) for h in range(0, columns, each)])
    axes.set_yticks(range(0, rows, every), [str(b) for b in found.blocks[::every]])
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes)
    return figure


def ablation_bars(groups: list[dict[str, Any]]) -> Figure:
    """How each loss and the PSNR change without each group of heads: means with intervals over items, a dot a random draw."""
    losses = [loss for loss in OUTCOMES if groups[0][loss] is not None]
    shown = [one for one in groups if one["group"] != "none"]
    figure = Figure(figsize=(4.6 * len(losses) + 1.6, 0.45 * len(shown) + 1.5), layout="constrained")
    panels = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    labels = {
        "copied": "second copy: rise in nats a token",
        "visual": "LM4LV: rise of the visual loss",
        "restored": "LM4LV: change of PSNR in dB",
    }
    for axes, loss in zip(panels, losses, strict=True):
        for place, one in enumerate(shown):
            value, (low, high) = one[loss]["rise"]["mean"], one[loss]["rise"]["ci95"]
            random = one["group"].startswith("random")
            axes.barh(place, value, color="#9aa5b1" if random else "#1f6fb4", xerr=[[value - low], [high - value]])
            if random:
                axes.plot(one[loss]["rises"], [place] * one["draws"], "k.", markersize=4)
        axes.axvline(0, color="#6e6e6e", linewidth=0.8)
        axes.set_xlabel(labels[loss], fontsize=9)
        axes.set_yticks(range(len(shown)), [f"{one['group']} ({len(one['heads'][0])})" for one in shown], fontsize=8)
    panels[0].invert_yaxis()
    return figure
