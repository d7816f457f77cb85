"""Training the captioning probe: killed and resumed it is the same, cut into parts or processes too, nothing else learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab import paper, trained, training
from alignlab.captioning import fit
from alignlab.captioning.fit import RECIPE, Captioning, Design, Pairs, Run, build, load
from alignlab.data import load_dataset
from alignlab.training import Processes

SHORT = replace(RECIPE, steps=8, batch=4, warmup=2, lr=1e-2)
COLOURS = ("red", "green", "blue")


def colours(folder: Path, count: int) -> Path:
    """Pictures of one colour each, with two captions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
        pixels[..., i % 3] += 180
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        name = COLOURS[i % 3]
        (folder / f"{i:02}.txt").write_text(f"{name} it is, number {i}\nall {name}\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(colours(tmp_path_factory.mktemp("a") / "colours", 9))


@pytest.fixture
def plan(small_mae, small_llm):
    return Design(encoder=str(small_mae), llm=str(small_llm), prefix="A picture of")


def made(plan, data):
    pairs = Pairs(data, 32, 0)
    return build(plan, lambda size: pairs.images(torch.arange(9)), dtype="float32"), pairs


def same(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


def test_the_recipe_is_that_of_llavas_first_stage():
    assert (RECIPE.weight_decay, RECIPE.schedule, RECIPE.clip) == (0.0, "cosine", 1.0)
    assert RECIPE.warmup == paper.PROBE_RECIPE["warmup"] * RECIPE.steps
    for figures in paper.TABLE4.values():  # the table's own average, of two rounded numbers
        mean = ((figures["CS"] + figures["Ref-CS"]) / 100 + figures["M-kNN"] + figures["CKA"]) / 4
        assert figures["Avg"] == pytest.approx(mean, abs=0.0051)


def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path, plan, data, monkeypatch):
    whole, pairs = made(plan, data)
    began = {name: x.clone() for name, x in whole.state_dict().items()}
    history = fit.fit(whole, plan, Run(tmp_path / "whole", SHORT), pairs)
    assert all(not torch.equal(x, began[name]) for name, x in whole.state_dict().items())
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    step = Captioning.step

    def until_killed(self, items, done):
        if done >= 5 / 8:
            raise KeyboardInterrupt
        return step(self, items, done)

    run = Run(tmp_path / "again", SHORT)
    monkeypatch.setattr(Captioning, "step", until_killed)
    killed, pairs = made(plan, data)
    with pytest.raises(KeyboardInterrupt):
        fit.fit(killed, plan, run, pairs)
    assert not (run.out / trained.ADAPTERS).exists()
    monkeypatch.setattr(Captioning, "step", step)
    resumed, pairs = made(plan, data)
    later = fit.fit(resumed, plan, run, pairs)
    assert same(resumed, whole)
    assert later["log"] == history["log"]
    found, design, described = load(run.out, dtype="float32")
    assert same(found, whole)
    assert design == plan
    assert described["about"]["data"]["learnt"] == 9


def one_step(plan, data, accumulate=1, among=None):
    model, pairs = made(plan, data)
    goal = Captioning(model, pairs, SHORT, accumulate, among)
    losses = goal.step(torch.tensor([0, 3, 4, 8]), 0.25)
    return losses, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_is_the_same_batch(plan, data, parts):
    (whole, gradients), (cut, others) = one_step(plan, data), one_step(plan, data, parts)
    assert cut == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).norm() / gradient.norm()) < 1e-5


def test_the_loss_falls_and_nothing_else_learns(tmp_path, plan, data):
    model, pairs = made(plan, data)
    frozen = {**model.llm.model.state_dict(), **{f"e.{k}": v for k, v in model.encoder.model.state_dict().items()}}
    before = {name: x.clone() for name, x in frozen.items()}
    items = torch.arange(9)
    tokens, captions = model.encoder.encode(pairs.images(items)), pairs.drawn(items, 0)
    with torch.no_grad():
        first = model(tokens, captions)
    fit.fit(model, plan, Run(tmp_path, replace(SHORT, steps=40, lr=0.05)), pairs)
    with torch.no_grad():
        assert model(tokens, captions) < first
    assert all(torch.equal(x, before[name]) for name, x in frozen.items())


def test_every_item_is_seen_once_an_epoch_and_captions_vary(data):
    pairs = Pairs(data, 32, 0, items=[1, 2, 4, 7])
    order = pairs.order(2)
    epochs = [sorted(torch.cat([order(2 * e), order(2 * e + 1)]).tolist()) for e in range(6)]
    assert epochs == [[1, 2, 4, 7]] * 6
    assert len({tuple(order(step).tolist()) for step in range(0, 12, 2)}) > 1
    drawn = {pairs.drawn(torch.tensor([4]), step)[0] for step in range(20)}
    assert drawn == set(data.captions[4])
    assert pairs.drawn(torch.tensor([4, 1]), 3) == pairs.drawn(torch.tensor([4, 1]), 3)
    with pytest.raises(ValueError, match="none of them is left to learn from"):
        Pairs(data, 32, 0, items=[])


def test_what_another_run_is(tmp_path, plan, data):
    model, pairs = made(plan, data)
    run = Run(tmp_path, replace(SHORT, steps=1))
    fit.fit(model, plan, run, pairs)
    assert fit.started(plan, run, data, pairs.items)
    for other, items, said in (
        (replace(plan, prefix=""), pairs.items, "its design's prefix is A picture of, not "),
        (plan, [0, 1], "its data's learnt is 9, not 2"),
    ):
        with pytest.raises(ValueError, match=said):
            fit.started(other, run, data, items)
    with pytest.raises(ValueError, match=r"its lr is 0\.01, not 0\.5"):
        fit.started(plan, replace(run, recipe=replace(run.recipe, lr=0.5)), data, pairs.items)


def test_a_file_that_is_no_probes_is_named(tmp_path, plan, data):
    with pytest.raises(ValueError, match="give a folder that `alignlab caption train` wrote"):
        load(tmp_path)
    frozen = {"encoder": "x@sha256:1", "llm": "y"}
    trained.write(tmp_path, {"layer": torch.zeros(1)}, {"how": "lm4lv"}, frozen, {})
    with pytest.raises(ValueError, match="is no file of `alignlab caption train`, or a damaged one"):
        load(tmp_path)
    design = {"encoder": plan.encoder, "llm": plan.llm, "prefix": "", "seed": 0}
    trained.write(tmp_path, {"layer": torch.zeros(1)}, design, frozen, {})
    with pytest.raises(ValueError, match="was trained with the encoder x@sha256:1, and this is small-mae@"):
        load(tmp_path, dtype="float32")


def test_a_batch_must_have_something_for_every_process(plan, data):
    model, pairs = made(plan, data)
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 5 processes"):
        Captioning(model, pairs, SHORT, among=Processes(0, 5))


SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[5])
from test_caption_fit import SHORT, made
from alignlab.captioning.fit import Design, Run, fit
from alignlab.data import load_dataset
from alignlab.training import processes
encoder, llm, data, out = sys.argv[1:5]
plan = Design(encoder=encoder, llm=llm, prefix="A picture of")
rank = processes().rank
model, pairs = made(plan, load_dataset(data))
if rank == 1:  # each process begins by itself; the first one's beginning counts
    with torch.no_grad():
        model.projector.weight.add_(1)
fit(model, plan, Run(Path(out), SHORT), pairs)
sums = [round(p.double().sum().item(), 5) for p in model.trainable()]
Path(out).with_name(f"sums-{rank}.json").write_text(json.dumps(sums))  # what both print at once may be mixed up
"""


def test_two_processes_learn_what_one_does(tmp_path, small_mae, small_llm, plan):
    folder = colours(tmp_path / "colours", 9)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [small_mae, small_llm, folder, tmp_path / "out", Path(__file__).parent]
    found = subprocess.run(
        [*command, str(tmp_path / "script.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    alone, pairs = made(plan, load_dataset(folder))
    history = fit.fit(alone, plan, Run(tmp_path / "alone", SHORT), pairs)
    _, _, together = fit.read(tmp_path / "out")
    for name, x in alone.state_dict().items():
        assert float((together[name] - x).norm() / x.norm()) < 1e-5
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    for one, other in zip(state["log"], history["log"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    first, second = (json.loads((tmp_path / f"sums-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(list((tmp_path / "out" / "logs").iterdir())) == 1  # of the first process alone
