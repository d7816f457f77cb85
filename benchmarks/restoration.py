"""Speed of LM4LV: a training step and the generation of pictures, against the plain ways of doing both.

    python benchmarks/restoration.py [--encoder mae] [--llm smollm2] [--batch 8] [--device cpu] [--steps 3] [--out FILE]

Training: the plain step encodes degraded and clean pictures one after the other, projects every position on the whole
vocabulary and runs the language model in float32; both compute the same losses (checked to 1e-3 before anything is timed).
Generation: the authors' way, one picture at a time with the whole sequence read again for every token (timed on
`--alone` pictures and multiplied), against all at once with a cache of keys and values. The share of the matmul rate
takes 4 x tokens x parameters of the language model's blocks for a step (forward, and backward to the inputs), 2 x for
generation; attention's own products are left out. Every arm runs in a process of its own, so that its peak memory is its
own. A step is the losses and their gradients: degrading pictures, clipping and AdamW's update of 0.3 million numbers are
outside, in both arms; the pictures generated at once are copies of one. Prints ratios of one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.data import load_dataset, resize, to_tensor
from alignlab.data.degradations import pair
from alignlab.models import load_encoder, load_llm
from alignlab.provenance import environment
from alignlab.restoration.fit import plain_attention
from alignlab.restoration.lm4lv import LM4LV

ARMS = ("check", "plain step", "step", "step, fused attention", "step, tokens at hand", "generate alone", "generate")


def matmul_rate(device: str, dtype: torch.dtype, side: int = 2048, seconds: float = 2.0) -> float:
    """FLOP a second of square products."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    for _ in range(3):
        a @ a
    together = 50 if device.startswith("cuda") else 1  # a card waits at every look at the clock
    done, began = 0, _now(device)
    while _now(device) - began < seconds:
        for _ in range(together):
            a @ a
        done += together
    return done * 2 * side**3 / (_now(device) - began)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def body_parameters(model: LM4LV) -> int:
    """Those of the language model's blocks: neither the embedding's nor the vocabulary's."""
    body: Any = model.llm.model.base_model
    embedding = model.llm.model.get_input_embeddings()
    return sum(p.numel() for p in body.parameters()) - sum(p.numel() for p in embedding.parameters())  # type: ignore[operator]


def plain_step(model: LM4LV, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of a step done plainly: two encodings, one forward pass of the whole causal language model."""
    encoder, llm, words = model.encoder, model.llm, model.words
    lq, hq = encoder.encode(low), encoder.encode(high)
    table = llm.model.get_input_embeddings()

    def text(ids: tuple[int, ...]) -> Tensor:
        return table(torch.tensor(ids, device=llm.device)).expand(len(lq), -1, -1)

    parts = [text(words.opening), model.adapter_in(lq).to(llm.dtype), text(words.close)]
    parts += [model.task_tokens["denoise"].to(llm.dtype).expand(len(lq), -1, -1), text(words.answer)]
    start = sum(part.shape[1] for part in parts)
    parts += [text(words.open), model.adapter_in(hq).to(llm.dtype), text(words.ending)]
    out = llm.model(inputs_embeds=torch.cat(parts, 1), output_hidden_states=True, use_cache=False)
    logits, hidden = out.logits.float(), out.hidden_states[-1]
    first = start + len(words.open)
    visual = F.mse_loss(model.adapter_out(hidden[:, first - 1 : first - 1 + model.visual].float()), hq)
    labels = torch.full(logits.shape[:2], -100, device=logits.device)
    labels[:, start:first] = torch.tensor(words.open)
    labels[:, first + model.visual :] = torch.tensor(words.ending)
    language = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return visual, language


def arm(name: str, options: argparse.Namespace, told: Any) -> None:
    """Run one arm and tell what it took."""
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    exact = name in ("check", "plain step")
    encoder = load_encoder(options.encoder, device=options.device)
    llm = load_llm(options.llm, device=options.device, dtype="float32" if exact else "bfloat16")
    model = LM4LV(encoder, llm)
    scenes = load_dataset("scenes", n=options.batch)
    clean = torch.cat([resize(to_tensor(item.image)[None], encoder.image_size) for item in scenes])
    low, high = (x.to(options.device) for x in pair(clean, "denoise", seed=0))

    def ours(tokens: Tensor | None = None) -> None:
        found = tokens if tokens is not None else encoder.encode(torch.cat([low, high]))
        model(*found.chunk(2), "denoise").total.backward()

    def plain() -> None:
        torch.stack(plain_step(model, low, high)).sum().backward()

    if name == "check":
        lq, hq = encoder.encode(torch.cat([low, high])).chunk(2)
        losses = model(lq, hq, "denoise")
        for a, b in zip(plain_step(model, low, high), (losses.visual, losses.text), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        told.send({"losses": [float(losses.visual.detach()), float(losses.text.detach())]})
        return
    work: Callable[[], Any]
    count, repeats = options.batch, options.steps
    if name == "plain step":
        work = plain
    elif name == "step, fused attention":
        work = ours
    elif name in ("step", "step, tokens at hand"):
        at_hand = encoder.encode(torch.cat([low, high])) if name == "step, tokens at hand" else None

        def work() -> None:
            with plain_attention(model.llm):
                ours(at_hand)

    elif name == "generate alone":
        count, repeats = options.alone, 1
        tokens = encoder.encode(low[:count])

        def work() -> None:
            for one in tokens.split(1):
                model.generate(one, "denoise", cache=False)

    else:
        count, repeats = options.pictures, 1
        tokens = encoder.encode(low[:1]).expand(count, -1, -1)

        def work() -> None:
            model.generate(tokens, "denoise")

    if "generate" not in name:
        work()  # memory, kernels
    began = _now(options.device)
    for _ in range(repeats):
        work()
    seconds = (_now(options.device) - began) / repeats
    words = model.words
    length = words.prompt_length(model.visual, 10) + len(words.open) + model.visual
    length += len(words.ending) * ("generate" not in name)
    if options.device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    told.send(
        {
            "seconds": seconds,
            "images": count,
            "images_a_second": count / seconds,
            "tokens_a_second": count * length / seconds,
            "flop_a_second": (2 if "generate" in name else 4) * count * length * body_parameters(model) / seconds,
            "peak_memory_bytes": memory,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mae")
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=16, help="generated at once")
    parser.add_argument("--alone", type=int, default=2, help="generated one at a time, without a cache")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "restoration.json")
    options = parser.parse_args()
    rates = {
        str(dtype).removeprefix("torch."): matmul_rate(options.device, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    print(", ".join(f"{dtype} products: {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in rates.items()))
    found: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    for name in ARMS:
        ours, theirs = context.Pipe()
        process = context.Process(target=arm, args=(name, options, theirs))
        process.start()
        theirs.close()
        found[name] = ours.recv()
        process.join()
        if name == "check":
            print(f"both ways of a step give the same losses: {found[name]['losses']}")
            continue
        one = found[name]
        print(
            f"{name}: {one['seconds']:.2f} s for {one['images']} images, {one['tokens_a_second']:,.0f} tokens/s, "
            f"{one['flop_a_second'] / rates['bfloat16']:.0%} of the bfloat16 matmul rate by tokens counted once, "
            f"{one['peak_memory_bytes'] / 2**30:.2f} GiB at most"
        )
    ratios = {
        "training step, images a second": _ratio(found, "step", "plain step"),
        "of it by plain products in place of fused attention": _ratio(found, "step", "step, fused attention"),
        "had the tokens been at hand": _ratio(found, "step, tokens at hand", "step"),
        "generation, images a second": _ratio(found, "generate", "generate alone"),
    }
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.2f} x")
    given = {key: value for key, value in vars(options).items() if key != "out"}
    report = {"options": given, "matmul": rates, "arms": found, "ratios": ratios}
    report["environment"] = environment(options.device)
    report["environment"].pop("command")
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def _ratio(found: dict[str, dict[str, Any]], ours: str, plain: str) -> float:
    ratio: float = found[ours]["images_a_second"] / found[plain]["images_a_second"]
    return ratio


if __name__ == "__main__":
    main()
