"""Fine-tuning a MAE's decoder: the encoder stays, the loss falls, a killed run goes on to the same weights."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab.models import load_encoder
from alignlab.paper import DECODER_RECIPE
from alignlab.restoration.batches import picture_batches
from alignlab.restoration.decoder import RECIPE, Run, paper_recipe, tune
from alignlab.restoration.decoder_card import diagonal, open_tests, part_psnr, pixels_of, write_card
from alignlab.training import Processes

RECIPE_SHORT = replace(RECIPE, steps=12, batch=4, warmup=2, dtype="float32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(11):
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 30), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("a blur\n")
    return folder


def test_the_recipe_is_the_papers():
    assert (RECIPE.lr, RECIPE.warmup, RECIPE.betas, RECIPE.weight_decay) == (1.6e-3, 100, (0.9, 0.95), 0.0)
    assert DECODER_RECIPE["lr"] == RECIPE.lr


def test_only_the_decoder_learns_and_a_killed_run_goes_on(tmp_path, small_mae, pictures, monkeypatch):
    before = load_encoder(str(small_mae))
    run = Run((str(pictures),), tmp_path / "whole", RECIPE_SHORT)
    encoder = load_encoder(str(small_mae))
    history = tune(encoder, run)
    assert history["log"][-1]["l1"] < history["log"][0]["l1"]
    frozen = dict(before.model.vit.state_dict())
    assert all(torch.equal(x, frozen[key]) for key, x in encoder.model.vit.state_dict().items())
    old, new = before.model.decoder.state_dict(), encoder.model.decoder.state_dict()
    same = {key for key in old if torch.equal(old[key], new[key])}
    assert same == {"decoder_pos_embed", "mask_token"}

    class Killed(Exception):
        pass

    from alignlab import training
    from alignlab.restoration.decoder import DecoderTuning

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    step = DecoderTuning.step
    taken = []

    def until_killed(self, images, done):
        if len(taken) == 7:
            raise Killed
        taken.append(done)
        return step(self, images, done)

    monkeypatch.setattr(DecoderTuning, "step", until_killed)
    again = replace(run, out=tmp_path / "again")
    with pytest.raises(Killed):
        tune(load_encoder(str(small_mae)), again)
    monkeypatch.setattr(DecoderTuning, "step", step)
    resumed = load_encoder(str(small_mae))
    tune(resumed, again)
    for key, x in resumed.model.decoder.state_dict().items():
        torch.testing.assert_close(x, new[key], atol=0, rtol=0)


def test_a_decoder_of_normalised_patches_learns_plain_pixels(tmp_path, pictures):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(
        image_size=32, patch_size=8, norm_pix_loss=True, **sizes, **decoder, decoder_intermediate_size=32
    )
    ViTMAEForPreTraining(config).save_pretrained(tmp_path / "mae")
    encoder = load_encoder(str(tmp_path / "mae"))
    run = Run((str(pictures),), tmp_path / "out", RECIPE_SHORT)
    history = tune(encoder, run)
    tests = open_tests(run, (str(pictures),))
    card = write_card(encoder, load_encoder(str(tmp_path / "mae")), run, tests, history)
    assert "PSNR (dB)" in next(iter(card["held_out"].values()))["after"]
    tuned = load_encoder(str(tmp_path / "mae"), decoder=str(tmp_path / "out"))
    assert tuned.decode(tuned.encode(torch.rand(1, 3, 32, 32))).shape == (1, 3, 32, 32)


def test_wrong_models_and_losses_are_named(tmp_path, small_mae):
    with pytest.raises(ValueError, match="only a MAE has a decoder"):
        tune(load_encoder("vqgan"), Run(("scenes",), tmp_path))
    with pytest.raises(ValueError, match=r"loss must be one of l1, l1\+lpips, got 'l2'"):
        tune(load_encoder(str(small_mae)), Run(("scenes",), tmp_path, loss="l2"))


def test_batches_follow_from_their_step_alone(pictures):
    batches = picture_batches((str(pictures),), 16, 4, seed=3)
    first = [batches(i) for i in range(6)]
    again = picture_batches((str(pictures),), 16, 4, seed=3)
    torch.testing.assert_close(again(4), first[4])  # not in order
    torch.testing.assert_close(again(2), first[2])
    assert first[0].shape == (4, 3, 16, 16)
    assert not torch.equal(first[0], first[1])
    other = picture_batches((str(pictures),), 16, 4, seed=4)
    assert not torch.equal(other(0), first[0])


def test_every_epoch_has_every_picture_once_and_none_that_is_held_out(pictures):
    batches = picture_batches((str(pictures),), 16, 4, seed=0)
    drawn = torch.cat([batches(i) for i in range(4)])  # 16 pictures: two epochs of the 8 that are not held out
    kinds = {tuple(x.flatten().tolist()) for x in drawn}
    assert len(kinds) == 8
    assert {tuple(x.flatten().tolist()) for x in drawn[:8]} == kinds
    everything = torch.cat([picture_batches((str(pictures),), 16, 11, seed=0, all_items=True)(0)])
    assert len({tuple(x.flatten().tolist()) for x in everything}) == 11


def test_workers_give_the_same_pictures(pictures):
    alone = picture_batches((str(pictures),), 16, 4, seed=0)
    helped = picture_batches((str(pictures),), 16, 4, seed=0, workers=2)
    for step in range(3):
        torch.testing.assert_close(helped(step), alone(step))


def test_sources_share_a_batch(pictures):
    mixed = picture_batches((str(pictures), str(pictures)), 16, 6, seed=0, crops=40)
    assert mixed(0).shape == (6, 3, 16, 16)
    with pytest.raises(ValueError, match="a batch of 1 cannot hold pictures of 2 sources"):
        picture_batches((str(pictures), str(pictures)), 16, 1, seed=0)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_each_process_reads_its_block_of_a_batch_and_nothing_else(pictures, count, monkeypatch):
    from alignlab.restoration.batches import SquarePictures

    read = []
    real = SquarePictures.__getitem__
    monkeypatch.setattr(SquarePictures, "__getitem__", lambda self, index: read.append(index) or real(self, index))

    scenes = np.random.default_rng(0).integers(0, 256, (40, 18, 18, 3), dtype=np.uint8)
    monkeypatch.setattr("alignlab.restoration.batches.open_pool", lambda source, config: scenes)

    def drawn(sources, **options):
        return picture_batches(sources, 16, 6, seed=0, **options)

    mixed = ("scenes", str(pictures), str(pictures))
    for sources, whole in (((str(pictures),), 6), (mixed, 4)):
        alone = drawn(sources)
        blocks = [drawn(sources, among=Processes(rank, count)) for rank in range(count)]
        for step in (0, 1, 5):
            read.clear()
            theirs = [block(step) for block in blocks]
            assert len(read) == whole  # all of them together read what one does
            torch.testing.assert_close(torch.cat(theirs), alone(step), rtol=0, atol=0)
            assert {len(one) for one in theirs} == {6 // count}


def test_what_all_copies_keep_of_a_set_is_bounded(pictures, monkeypatch):
    from alignlab.restoration import batches

    monkeypatch.setattr(batches, "KEPT_BYTES", 12 * 3 * 16**2)  # a dozen pictures
    data, items = batches.load_dataset(str(pictures)), list(range(4))
    for workers, processes, room in ((0, 1, 12), (1, 1, 12), (3, 1, 4), (0, 2, 6), (3, 2, 2)):
        reader = batches.WholePictures(data, items, 16, 4, 0, workers, processes=processes)
        assert reader.pictures.room == room
    reader = batches.WholePictures(data, items, 16, 4, 0, processes=6)
    reader(0)
    assert len(reader.pictures.kept) == 2


def test_the_diagonal_in_patches_and_pixels(small_mae):
    hidden = diagonal(load_encoder(str(small_mae)))
    assert hidden.nonzero().flatten().tolist() == [0, 5, 10, 15]
    pixels = pixels_of(hidden, 32)
    assert pixels.sum() == 4 * 64
    assert pixels[:8, :8].all()
    assert not pixels[:8, 8:].any()
    a = torch.zeros(1, 3, 32, 32)
    b = a + 0.2 * pixels
    assert float(part_psnr(a, b, pixels)) == pytest.approx(10 * np.log10(1 / 0.04), abs=1e-6)
    assert part_psnr(a, b, ~pixels).isinf().all()


def test_the_card_names_no_place(tmp_path, small_mae, pictures):
    encoder, run = load_encoder(str(small_mae)), Run((str(pictures),), tmp_path / "out", replace(RECIPE_SHORT, steps=2))
    history = tune(encoder, run)
    write_card(encoder, load_encoder(str(small_mae)), run, open_tests(run, (str(pictures),)), history)
    written = {p.name for p in run.out.iterdir()}
    assert {"README.md", "card.json", "loss.png", "before-after.jpg", "diagonal.jpg", "decoder.safetensors"} <= written
    for name in ("README.md", "card.json"):
        assert str(tmp_path) not in (run.out / name).read_text()
    card = json.loads((run.out / "card.json").read_text())
    (figures,) = card["held_out"].values()
    assert set(figures["before"]) == set(figures["after"])
    text = (run.out / "README.md").read_text()
    made = f"`alignlab restore decoder --data {pictures.name} --encoder small-mae --loss l1 --steps 2 --batch-size 4"
    assert f"{made} --dtype float32`" in text  # whatever differs from what it would do by itself


def test_a_state_of_another_run_is_refused(tmp_path, small_mae, pictures):
    run = Run((str(pictures),), tmp_path, replace(RECIPE_SHORT, steps=1))
    tune(load_encoder(str(small_mae)), run)
    for other, said in (
        (replace(run, crops=8), "its crops is None, not 8"),
        (replace(run, all_items=True), "its held out is True, not False"),
        (replace(run, recipe=replace(run.recipe, lr=1.0)), "its lr is 0.0016, not 1.0"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run: {said}"):
            tune(load_encoder(str(small_mae)), other)
    with pytest.raises(ValueError, match="belongs to another run: its encoder is small-mae@"):
        tune(load_encoder(f"{small_mae}@random"), run)
    (tmp_path / "state.pt").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=r"state\.pt is damaged or of another version; delete it"):
        tune(load_encoder(str(small_mae)), run)


def test_a_batch_in_parts_gives_the_same_decoder(tmp_path, small_mae, pictures):
    whole, parts = load_encoder(str(small_mae)), load_encoder(str(small_mae))
    run = Run((str(pictures),), tmp_path / "whole", replace(RECIPE_SHORT, steps=2))
    tune(whole, run)
    tune(parts, replace(run, out=tmp_path / "parts", accumulate=3))
    for key, x in parts.model.decoder.state_dict().items():
        torch.testing.assert_close(x, whole.model.decoder.state_dict()[key], atol=1e-5, rtol=1e-3)


def test_the_papers_recipe_follows_its_rule():
    recipe = paper_recipe(1_281_167)
    assert (recipe.batch, recipe.lr, recipe.warmup) == (4096, 1e-4 * 4096 / 256, 100)
    assert recipe.steps == -(-28 * 1_281_167 // 4096)
    assert paper_recipe(1000, batch=256, epochs=1).lr == pytest.approx(1e-4)


def test_a_set_with_nothing_left_to_learn_from(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("one\n")
    with pytest.raises(ValueError, match=r"has 1 item\(s\); with every fifth held out none is left"):
        picture_batches((str(tmp_path),), 16, 4, seed=0)
