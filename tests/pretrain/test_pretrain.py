"""Pretraining: it learns, it resumes to the same result, and every kind ends in a checkpoint that loads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab.models import load_encoder
from alignlab.models.vision import load_dvae
from alignlab.pretrain.card import write_card
from alignlab.pretrain.evaluate import masked_pixels, psnr
from alignlab.pretrain.objectives import CodeBook, block_mask
from alignlab.pretrain.pool import PoolConfig, batch, held_out, open_pool
from alignlab.pretrain.run import RECIPES, Run, build_mae, build_vqgan, pretrain
from alignlab.training import Recipe, rate

POOL = PoolConfig(size=72, count=24)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        colours = rng.integers(0, 255, size=(4, 5, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((100, 80), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a picture")
    return folder


def small(kind, photos, out, **changes):
    recipe = replace(RECIPES[kind], steps=3, batch=4, dtype="float32", **changes)
    return Run(kind, ("scenes", str(photos)), recipe, out, pool=POOL)


def test_a_new_mae_has_its_fixed_positions():
    """transformers 5.23 zeroes them; without them nothing but a mean colour can be learned."""
    model = build_mae()
    assert model.vit.embeddings.position_embeddings[0, 1:].std() > 0.3
    assert model.decoder.decoder_pos_embed[0, 1:].std() > 0.3


@pytest.mark.parametrize("kind", ["mae", "dvae", "vqgan"])
def test_a_stopped_run_goes_on_to_the_same_weights(kind, photos, tmp_path, monkeypatch):
    whole = small(kind, photos, tmp_path / "whole")
    pretrain(whole)
    stopped = small(kind, photos, tmp_path / "stopped")
    from alignlab import training
    from alignlab.pretrain import run as running

    made = []

    def fails_at_2(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(arguments)
        return batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_EVERY", 0)
        patch.setattr(running, "batch", fails_at_2)
        with pytest.raises(KeyboardInterrupt):
            pretrain(stopped)
    pretrain(stopped)
    from safetensors.torch import load_file

    a, b = (load_file(run.out / "model.safetensors") for run in (whole, stopped))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5, msg=name)


def test_another_recipe_does_not_go_on_from_a_state(photos, tmp_path):
    pretrain(small("mae", photos, tmp_path))
    with pytest.raises(ValueError, match="belongs to another run: its"):
        pretrain(small("mae", photos, tmp_path, lr=0.5))


def test_every_kind_ends_in_a_checkpoint_with_a_card(photos, tmp_path):
    for kind in ("dvae", "beit", "mae", "vqgan", "pca"):
        run = replace(small(kind, photos, tmp_path / kind), tokenizer=str(tmp_path / "dvae"))
        history = pretrain(run)
        if kind == "mae":
            measured = write_card(run, history)  # the others' evaluation takes the same road
            assert set(measured) == {"scenes (1024 items)", f"{photos.name} (2 items)"}
            card = json.loads((run.out / "card.json").read_text())
            assert card["data"] == ["scenes", photos.name]
            assert (run.out / "samples.png").stat().st_size > 1000
            assert str(photos.parent) not in (run.out / "README.md").read_text()
        if kind == "pca":
            write_card(run, history)
            assert json.loads((run.out / "card.json").read_text())["recipe"] == {"steps": 3, "batch": 4, "seed": 0}
            assert not (run.out / "loss.png").exists()
            assert "AdamW" not in (run.out / "README.md").read_text()
        if kind == "dvae":
            assert load_dvae(str(run.out)).codes(torch.rand(1, 3, 64, 64)).shape == (1, 8, 8)
        else:
            encoder = load_encoder(str(run.out))
            assert encoder.decode(encoder.encode(torch.rand(1, 3, 64, 64))).shape == (1, 3, 64, 64)


def test_mae_learns():
    """A hundred steps on two pictures bring the error on hidden patches well under the mean colour's."""
    torch.manual_seed(0)
    from alignlab.pretrain.objectives import MaskedPixels
    from alignlab.training import train

    gradient = torch.linspace(0, 1, 64).expand(3, 64, 64)
    images = torch.stack([gradient, gradient.transpose(1, 2)])
    recipe = Recipe(steps=100, batch=2, lr=1e-3, warmup=5, dtype="float32")
    goal = MaskedPixels(build_mae(), recipe)
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        train(goal, lambda step: images, recipe, Path(folder), "mae")
    figures, _ = masked_pixels(goal.modules["model"], images)
    assert figures["ratio"] < 0.35


def test_dead_codes_start_again():
    recipe = replace(RECIPES["vqgan"], dtype="float32", batch=4)
    goal = CodeBook(build_vqgan(), recipe)
    images = torch.rand(4, 3, 64, 64)
    before = goal.modules["model"].quantize.embedding.weight.clone()
    goal.step(images, done=0.0)
    assert torch.equal(before, goal.modules["model"].quantize.embedding.weight)  # no rounding yet
    log = goal.step(images, done=0.1)
    assert log["codes"] > 900  # started from latents
    assert "critic" in goal.step(images, done=0.9)


def test_pool_holds_out_every_fifth_and_is_reused(photos):
    from alignlab.data import load_dataset

    assert held_out(load_dataset(photos)) == [0, 5]
    pool = open_pool(str(photos), POOL)
    assert pool.shape == (24, 72, 72, 3)
    again = open_pool(str(photos), POOL)
    assert pool.filename == again.filename


def test_batches_follow_from_the_step_alone(photos):
    pools = [open_pool("scenes", POOL), open_pool(str(photos), POOL)]
    a, b, c = (batch(pools, 6, 64, step, seed=0) for step in (5, 5, 6))
    assert a.shape == (6, 3, 64, 64)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert 0 <= a.min() <= a.max() <= 1


def test_rate_rises_and_falls():
    recipe = Recipe(steps=100, warmup=10, lr=1.0)
    assert rate(0, recipe) == 0.1
    assert rate(9, recipe) == 1.0
    assert rate(55, recipe) == pytest.approx(0.505, abs=0.01)
    assert rate(99, recipe) < 0.02


def test_masks_hide_the_share_asked_for():
    generator = torch.Generator().manual_seed(0)
    shares = [block_mask(8, 0.4, generator).float().mean() for _ in range(50)]
    assert min(shares) >= 25 / 64
    assert np.mean(shares) < 0.55


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 8)
    assert psnr(a, a + 0.1) == pytest.approx(torch.tensor([20.0, 20.0]), abs=1e-4)
