"""Training LM4LV on small random models: the loss falls, a killed run goes on to the same parameters, files fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignlab.models import load_encoder, load_llm
from alignlab.restoration.fit import RECIPE, Restoring, Run, fit, load_adapters
from alignlab.restoration.lm4lv import LM4LV

SHORT = replace(RECIPE, steps=8, batch=4, warmup=2, lr=1e-2)


@pytest.fixture
def build(small_mae, small_llm):
    return lambda **options: LM4LV(load_encoder(str(small_mae)), load_llm(str(small_llm)), task_tokens=3, **options)


def batches(step):
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))


def test_the_recipe_is_the_papers():
    assert (RECIPE.betas, RECIPE.weight_decay, RECIPE.clip, RECIPE.schedule) == ((0.9, 0.95), 0.0, 1.0, "linear")


def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path, build, monkeypatch):
    from alignlab import training

    whole = build()
    history = fit(whole, Run(("x",), tmp_path / "whole", recipe=SHORT), batches)
    assert history["log"][-1]["visual"] < history["log"][0]["visual"]

    class Killed(Exception):
        pass

    def until_killed(step):
        if step == 5:
            raise Killed
        return batches(step)

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    run = Run(("x",), tmp_path / "again", recipe=SHORT)
    with pytest.raises(Killed):
        fit(build(), run, until_killed)
    resumed = build()
    fit(resumed, run, batches)
    for name, x in resumed.state_dict().items():
        torch.testing.assert_close(x, whole.state_dict()[name], atol=0, rtol=0)


def test_what_was_written_comes_back(tmp_path, build):
    model = build()
    fit(model, Run(("x",), tmp_path, recipe=replace(SHORT, steps=2)), batches)
    back = build(seed=5)
    tokens = model.encoder.encode(batches(0))
    assert not torch.equal(back.generate(tokens, "denoise").tokens, model.generate(tokens, "denoise").tokens)
    load_adapters(back, tmp_path)
    torch.testing.assert_close(back.generate(tokens, "denoise").tokens, model.generate(tokens, "denoise").tokens)
    with pytest.raises(ValueError, match="does not fit"):
        load_adapters(build(tasks=("mask",)), tmp_path)


def test_tasks_take_turns_and_share_the_adapters(build):
    model = build(tasks=("denoise", "mask"))
    goal = Restoring(model, ("denoise", "mask"), SHORT)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for optimiser in goal.optimisers.values():
        optimiser.param_groups[0]["lr"] = 1e-2
    goal.step(batches(0), 0 / SHORT.steps)
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert "task_tokens.denoise" in moved
    assert "task_tokens.mask" not in moved
    goal.step(batches(1), 1 / SHORT.steps)
    assert not torch.equal(model.state_dict()["task_tokens.mask"], before["task_tokens.mask"])
