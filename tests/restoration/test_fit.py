"""Training on small random models: what learns, a killed run that goes on to the same parameters, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignlab import training
from alignlab.restoration import design
from alignlab.restoration.design import Design
from alignlab.restoration.fit import RECIPE, Restoring, Run, fit, plain_attention
from alignlab.training import Processes, Recipe, descend

SHORT = replace(RECIPE, steps=8, batch=4, warmup=2, lr=1e-2)


class Killed(Exception):
    pass


def batches(step: int) -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))


def pictures(size: int) -> torch.Tensor:
    return torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(99))


@pytest.fixture
def plan(small_mae, small_llm):
    return Design(encoder=str(small_mae), llm=str(small_llm), task_tokens=3, features="raw")


def build(plan, **options):
    return design.build(plan, pictures, dtype="float32", **options)


def same(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(x, second[name]) for name, x in first.items())


def test_the_recipe_is_the_papers():
    assert (RECIPE.betas, RECIPE.weight_decay, RECIPE.clip, RECIPE.schedule) == ((0.9, 0.95), 0.0, 1.0, "linear")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tasks": ("denoise", "mask", "rotate"), "features": "whitened"},
        {"how": "vit-llm", "tasks": ("mask", "flip")},
        {"how": "linear"},
        {"how": "mlp", "tasks": ("denoise", "derain")},
        {"how": "transformer", "features": "whitened"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path, plan, monkeypatch, changes):
    plan = replace(plan, **changes)
    whole = build(plan)
    began = {name: x.clone() for name, x in whole.state_dict().items()}
    history = fit(whole, plan, Run(("x",), tmp_path / "whole", recipe=SHORT), batches)
    assert any(not torch.equal(x, began[name]) for name, x in whole.state_dict().items())

    def until_killed(step):
        if step == 5:
            raise Killed
        return batches(step)

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    run = Run(("x",), tmp_path / "again", recipe=SHORT)
    with pytest.raises(Killed):
        fit(build(plan), plan, run, until_killed)
    assert design.read(tmp_path / "again")[1]["about"]["steps"] == 5  # what it had learnt by then can be tried
    resumed = build(plan)
    later = fit(resumed, plan, run, batches)
    assert same(resumed, whole)
    assert later["log"] == history["log"]
    assert "steps" not in design.read(tmp_path / "again")[1]["about"]


def test_the_loss_falls(tmp_path, plan):
    model, recipe = build(plan), replace(SHORT, steps=80, lr=3e-2)
    tokens = model.encoder.encode(batches(0))
    before = model(tokens, tokens, "denoise")
    fit(model, plan, Run(("x",), tmp_path, recipe=recipe), lambda step: batches(0))
    after = model(tokens, tokens, "denoise")
    assert after.visual < 0.9 * before.visual
    assert after.text < before.text


@pytest.mark.parametrize("how", ["lm4lv", "vit-llm"])
def test_the_encoder_and_the_language_model_stay_as_they_are(tmp_path, plan, how):
    plan = replace(plan, how=how)
    model = build(plan)
    frozen = {**model.llm.model.state_dict(), **{f"e.{k}": v for k, v in model.encoder.model.state_dict().items()}}
    before = {name: x.clone() for name, x in frozen.items()}
    fit(model, plan, Run(("x",), tmp_path, recipe=replace(SHORT, steps=3)), batches)
    assert all(torch.equal(x, before[name]) for name, x in frozen.items())
    assert all(p.grad is None for p in [*model.llm.model.parameters(), *model.encoder.model.parameters()])


def one_step(plan, accumulate=1, among=None):
    model = build(plan)
    goal = Restoring(model, SHORT, accumulate, among)
    mine = (among or Processes()).block(SHORT.batch)
    losses = goal.step(batches(0)[mine.start : mine.stop], 0.0)
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 3, 4, 9])
def test_a_batch_in_parts_is_the_same_batch(plan, parts):
    (whole, gradients), (cut, others) = one_step(plan), one_step(plan, parts)
    assert cut == pytest.approx(whole, rel=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).norm() / gradient.norm()) < 1e-5


def test_tasks_take_turns_and_share_the_adapters(plan):
    model = build(replace(plan, tasks=("denoise", "mask")))
    goal = Restoring(model, SHORT)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    goal.step(batches(0), 0 / SHORT.steps)
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert "task_tokens.denoise" in moved
    assert "task_tokens.mask" not in moved
    goal.step(batches(1), 1 / SHORT.steps)
    assert not torch.equal(model.state_dict()["task_tokens.mask"], before["task_tokens.mask"])


@pytest.mark.parametrize("steps", [7, 12, 333, 4651, 99_991])
def test_every_step_knows_its_number(steps):
    # `train` tells the share of the run that is done; the number decides the task and the noise.
    assert all(round(step / steps * steps) == step for step in range(steps))


# --- refusals ---


def test_a_state_of_another_run_is_refused_by_what_differs(tmp_path, plan, small_llm):
    run = Run(("x",), tmp_path, recipe=replace(SHORT, steps=1))
    fit(build(plan), plan, run, batches)
    kept = (tmp_path / "state.pt").read_bytes()
    for other_plan, other_run, said in (
        (replace(plan, tasks=("mask",)), run, r"its design's tasks is \['denoise'\], not \['mask'\]"),
        (replace(plan, task_tokens=4), run, "its design's task_tokens is 3, not 4"),
        (replace(plan, seed=1), run, "its design's seed is 0, not 1"),
        (plan, replace(run, data=("y",)), r"its data is \['x'\], not \['y'\]"),
        (plan, replace(run, crops=5), "its crops is None, not 5"),
        (plan, replace(run, all_items=True), "its held out is True, not False"),
        (plan, replace(run, recipe=replace(run.recipe, lr=0.5)), "its lr is 0.01, not 0.5"),
        (plan, replace(run, recipe=replace(run.recipe, dtype="float32")), "its dtype is bfloat16, not float32"),
    ):
        with pytest.raises(ValueError, match=f"state.pt belongs to another run: {said}; delete it, or choose another"):
            fit(build(other_plan), other_plan, other_run, batches)
    changed = build(plan)
    changed.llm.checkpoint = "small-llm@sha256:0"
    with pytest.raises(ValueError, match=r"its frozen's llm is small-llm@sha256:.*, not small-llm@sha256:0"):
        fit(changed, plan, run, batches)
    assert (tmp_path / "state.pt").read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"no state", None], ids=["empty", "text", "cut"])
def test_a_damaged_state_is_refused(tmp_path, plan, content):
    run = Run(("x",), tmp_path, recipe=replace(SHORT, steps=1))
    fit(build(plan), plan, run, batches)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:999] if content is None else content)
    with pytest.raises(ValueError, match=r"state.pt is damaged or of another version; delete it"):
        fit(build(plan), plan, run, batches)


def test_a_loss_that_is_not_finite_stops_and_the_last_good_state_goes_on(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    run = Run(("x",), tmp_path / "broken", recipe=SHORT)
    model = build(plan)
    encode, calls = model.encoder.encode, []

    def breaks(images):
        calls.append(1)
        tokens = encode(images)
        return tokens * float("nan") if len(calls) == 4 else tokens

    model.encoder.encode = breaks
    with pytest.raises(
        RuntimeError,
        match=r"train lm4lv: the loss is not finite at step 4 .*; last good state: .*state.pt; .*lower rate",
    ):
        fit(model, plan, run, batches)
    assert all(bool(p.isfinite().all()) for p in model.trainable())  # the step was not taken
    assert torch.load(run.out / "state.pt", weights_only=True)["step"] == 3
    assert design.read(run.out)[1]["about"]["steps"] == 3
    mended, whole = build(plan), build(plan)
    fit(mended, plan, run, batches)
    fit(whole, plan, replace(run, out=tmp_path / "whole"), batches)
    assert same(mended, whole)


def test_where_no_state_was_saved_that_is_said(tmp_path, plan):
    model = build(plan)
    model.llm.model.lm_head.weight.data *= float("inf")
    with pytest.raises(RuntimeError, match=r"not finite at step 1 .*; no state was saved yet"):
        fit(model, plan, Run(("x",), tmp_path, recipe=SHORT), batches)


def test_an_absurd_rate_stops_with_its_step(tmp_path, plan):
    with pytest.raises(RuntimeError, match=r"not finite at step [2-8] "):
        fit(build(plan), plan, Run(("x",), tmp_path, recipe=replace(SHORT, lr=1e30)), batches)


def test_an_endless_gradient_of_a_finite_loss_takes_no_step():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    with pytest.raises(FloatingPointError):
        descend(optimiser, (weight - 1).sqrt().sum(), 1.0)  # 0, and its slope is endless
    assert weight.item() == 1.0


def test_plain_attention_only_for_a_while(plan):
    model = design.build(plan, pictures, dtype="bfloat16")
    before = model.llm.model.config._attn_implementation
    with plain_attention(model.llm):
        assert model.llm.model.config._attn_implementation == "eager"
    assert model.llm.model.config._attn_implementation == before


# --- several processes ---


def test_a_batch_must_have_something_for_every_process(plan):
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 5 processes"):
        Restoring(build(plan), SHORT, among=Processes(0, 5))


def test_the_shares_of_processes_add_up(plan, monkeypatch):
    """Three processes' losses and gradients, summed by hand, are those of one with the whole batch."""
    whole, gradients = one_step(plan)
    monkeypatch.setattr(Processes, "add", lambda self, parameters: None)
    monkeypatch.setattr(Processes, "total", lambda self, values: values)
    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", lambda p, c: torch.ones(()))
    (_, plain) = one_step(plan)
    shares = [one_step(plan, among=Processes(rank, 3)) for rank in range(3)]  # 1, 1 and 2 of 4 pictures
    assert {k: sum(losses[k] for losses, _ in shares) for k in whole} == pytest.approx(whole, rel=1e-5)
    for name, gradient in plain.items():
        total = sum(found[name] for _, found in shares)
        assert float((total - gradient).norm() / gradient.norm()) < 1e-5
    assert gradients.keys() == plain.keys()


FAILS = """
from alignlab.training import processes
among = processes()
if among.rank == 1:
    raise SystemExit("process 1 has no more pictures")
among.share("what never comes")
"""

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[4])
from test_fit import SHORT, batches, build
from alignlab.restoration.design import Design
from alignlab.restoration.fit import Run, fit
from alignlab.training import processes
encoder, llm, out = sys.argv[1:4]
plan = Design(encoder=encoder, llm=llm, task_tokens=3, tasks=("denoise", "mask"))
rank = processes().rank
model = build(plan)
if rank == 1:  # each process begins by itself; the first one's beginning counts
    with torch.no_grad():
        model.adapter_in.weight.add_(1)
fit(model, plan, Run(("x",), Path(out), recipe=SHORT), batches)
print("parameters", [round(p.double().sum().item(), 5) for p in model.trainable()], flush=True)
"""


def launched(tmp_path, script: str, *arguments: object) -> subprocess.CompletedProcess:
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(tmp_path / "script.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_learn_what_one_does(tmp_path, small_mae, small_llm):
    found = launched(tmp_path, SCRIPT, small_mae, small_llm, tmp_path / "out", Path(__file__).parent)
    assert found.returncode == 0, found.stderr[-3000:]
    plan = Design(encoder=str(small_mae), llm=str(small_llm), task_tokens=3, tasks=("denoise", "mask"))
    alone = build(plan)
    history = fit(alone, plan, Run(("x",), tmp_path / "alone", recipe=SHORT), batches)
    _, _, together = design.read(tmp_path / "out")
    for name, x in alone.state_dict().items():
        assert float((together[name] - x).norm() / x.norm()) < 1e-5
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    for one, other in zip(state["log"], history["log"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    first, second = (line for line in found.stdout.splitlines() if line.startswith("parameters"))
    assert first == second
    assert len(list((tmp_path / "out" / "logs").iterdir())) == 1  # of the first process alone


def test_a_process_that_fails_ends_the_run_with_its_message(tmp_path):
    found = launched(tmp_path, FAILS)
    assert found.returncode != 0
    assert "process 1 has no more pictures" in found.stderr


def test_states_written_before_a_recipe_had_all_its_fields_are_named(tmp_path):
    torch.save({"identity": {"recipe": {"steps": 3}, "about": {}}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="belongs to another run: its batch is None, not 64"):
        training.check_state(tmp_path, Recipe(steps=3), {})
