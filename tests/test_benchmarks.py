"""benchmarks/README.md says what the result files beside it say."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"


def result(name: str):
    return json.loads((FOLDER / "results" / f"{name}.json").read_text())


def rows() -> dict[str, list[str]]:
    """Script -> what was found, of each of its lines in the table."""
    found: dict[str, list[str]] = {}
    name = ""
    table = (FOLDER / "README.md").read_text().partition("| script |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].strip("`") or name
        found.setdefault(name, []).append(cells[-1])
    return found


def test_every_script_has_its_line():
    assert set(rows()) == {path.name for path in FOLDER.glob("*.py")}


def test_the_figures_are_those_of_the_result_files():
    found = rows()
    measure, metrics, restoration = result("measure"), result("metrics")["all_pairs"], result("restoration")
    peaks = measure["empty_cache"]["peak_GB"], max(one["peak_GB"] for one in measure["again"])
    assert found["measure.py"] == [
        f"{measure['again_over_empty']:.3f} of the time; {peaks[0]:.2f} and {peaks[1]:.2f} GB",
        f"{measure['engine']['plain_over_align']:.0f} times as fast",
    ]
    assert found["metrics.py"] == [
        f"{metrics['written_out_over_align']:.0f} and {metrics['functions_over_align']:.0f} times as fast; "
        f"{metrics['align_over_gram_products']:.2f} of the time",
        f"{metrics['nulls_over_align']:.1f} times as long again",
    ]
    coverage = [one["coverage"] for one in result("intervals")["metrics"].values()]
    assert found["intervals.py"] == [f"{min(coverage):.0%} to {max(coverage):.0%}"]
    timm = result("timm_coverage")["summary"]
    assert found["timm_coverage.py"] == [f"{timm['read']} read, {timm['agree_with_timm']} the same"]
    (photos,) = (one for one in result("degradations")["results"] if (one["data"], one["size"]) == ("photos", 224))
    known = [(one["PSNR"], one["table2"]["PSNR"]) for one in photos["tasks"].values() if one.get("table2")]
    apart = [abs(ours - theirs) for ours, theirs in known if isinstance(ours, float) and isinstance(theirs, float)]
    assert len(apart) == 5
    assert found["degradations.py"] == [f"{max(apart):.2f} dB apart at most"]
    ratios, arms = restoration["ratios"], restoration["arms"]
    assert found["restoration.py"] == [
        f"{ratios['training step, images a second']:.2f} times as fast",
        f"{arms['step']['flop_a_second'] / restoration['matmul']['bfloat16']:.2f}",
        f"{ratios['generation, images a second']:.1f} times as fast",
        f"{arms['step']['tokens_a_second']:.0f} in training, {arms['generate']['tokens_a_second']:.0f} in generation; "
        f"{arms['step']['peak_memory_bytes'] / 1e9:.2f} and {arms['generate']['peak_memory_bytes'] / 1e9:.2f} GB",
    ]
    dtypes = result("dtypes")
    assert (dtypes["auto"], dtypes["instructions"], dtypes["environment"]["threads"]) == ("float32", "AVX2", 1)
    products, step = dtypes["ratios"].values()
    assert found["dtypes.py"] == [f"{products:.0f} and {step:.1f} times as fast"]
    cut = result("tokenizer")["sets"].values()
    alike, captions = (sum(one[key] for one in cut) for key in ("identical", "captions"))
    assert found["tokenizer.py"] == [f"{alike:,} of {captions:,} alike"]
    kills, fuzz = result("kills")["works"], result("fuzz")["kinds"]
    assert [one["kills"] for one in kills.values()] == [100, 100]
    assert all(one["reached_the_end"] == one["same_as_undisturbed"] and not one["wrong"] for one in kills.values())
    ended = [one["reached_the_end"] for one in kills.values()]
    assert found["kills.py"] == [f"{ended[0]} and {ended[1]} reached their end, all of them the same"]
    assert f"| {sum(one['tried'] for one in fuzz.values()):,} damaged and hostile" in (FOLDER / "README.md").read_text()
    assert found["fuzz.py"] == [f"{sum(len(one['findings']) for one in fuzz.values())} findings"]
    rows_ = result("determinism")["rows"]
    worst = [one for one in rows_ if "bfloat16" not in one["changed"]]
    (coarse,) = (one for one in rows_ if "bfloat16" in one["changed"])
    assert found["determinism.py"] == [
        f"{max(one['features'] for one in worst):.1e} of a layer's largest, CKA {max(one['cka'] for one in worst):.1e}, at most",
        f"{coarse['features']:.1e} of a layer's largest, CKA {coarse['cka']:.1e}, mutual k-NN {coarse['mutual_knn']:.1e}",
        f"{max(one['restored'] for one in worst):.3f} dB of a picture's PSNR, at most",
    ]
    assert found["large.py"] == [f"{result('large')['highest_peak_GB']} GB at most"]
