"""Designs: each comes back from its file as it was trained; other models, other files and designs are refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from alignlab.models import load_encoder
from alignlab.restoration import design
from alignlab.restoration.coordinates import Whitened
from alignlab.restoration.design import Design
from alignlab.trained import ADAPTERS

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pictures(size: int) -> torch.Tensor:
    return torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.fixture
def plan(small_mae, small_llm):
    return Design(encoder=str(small_mae), llm=str(small_llm), task_tokens=2)


def build(plan):
    return design.build(plan, pictures, dtype="float32")


def saved(plan, folder):
    """A model whose parameters are no longer what its seed draws, and its file."""
    model = build(plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.trainable():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    design.save(model, plan, folder, {"data": ["x"]})
    return model


def two_steps(model):
    optimiser = torch.optim.AdamW(list(model.trainable()), lr=1e-3)
    images = torch.rand(2, 3, model.encoder.image_size, model.encoder.image_size)
    losses = []
    for _ in range(2):
        low, high = model.encoder.encode(images), model.encoder.encode(1 - images)
        optimiser.zero_grad()
        loss = model(low, high, model.tasks[0]).total
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"features": "raw"},
        {"tasks": ("denoise", "flip"), "seed": 3},
        {"how": "vit-llm"},
        {"how": "vit-llm", "causal": True, "rotary": True, "tasks": ("mask", "repeat")},
        {"how": "linear"},
        {"how": "mlp", "tasks": ("denoise", "pepper")},
        {"how": "transformer", "features": "raw"},
        {"begin": "scaled"},
        {"how": "vit-llm", "begin": "plain"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_what_was_saved_comes_back(tmp_path, plan, changes):
    plan = replace(plan, **changes)
    model = saved(plan, tmp_path)
    assert isinstance(model.encoder, Whitened) == (plan.features == "whitened")
    back, found, described = design.load(str(tmp_path), dtype="float32")
    assert found == plan
    assert described["about"] == {"data": ["x"]}
    for task in plan.tasks:
        assert torch.equal(back.restore(IMAGES, task), model.restore(IMAGES, task))
        assert not torch.equal(build(plan).restore(IMAGES, task), model.restore(IMAGES, task))
    assert os.stat(tmp_path / ADAPTERS).st_mode & 0o044
    assert [path.name for path in tmp_path.iterdir()] == [ADAPTERS]


def test_a_beginning_is_told_where_it_is_not_the_usual_one(plan):
    """So that results from before there was a choice are still of the same design."""
    assert "begin" not in plan.plain()
    assert replace(plan, begin="plain").plain()["begin"] == "plain"


def test_lora_comes_back(tmp_path, plan):
    pytest.importorskip("peft", reason="LoRA needs peft")
    plan = replace(plan, lora=2)
    model = saved(plan, tmp_path)
    back, _, _ = design.load(str(tmp_path), dtype="float32")
    assert torch.equal(back.restore(IMAGES), model.restore(IMAGES))
    with torch.no_grad():
        for name, p in back.lora.items():
            p.zero_() if "lora_B" in name else None
    assert not torch.equal(back.restore(IMAGES), model.restore(IMAGES))  # they do something


@pytest.mark.parametrize("encoder", ["vqgan", "beit", "pca", "vqgan+position", "pca+position"])
def test_every_encoder_with_a_decoder_learns(tmp_path, plan, encoder, long_llm):
    plan = replace(plan, encoder=encoder, llm=str(long_llm))
    model = build(plan)
    first, second = two_steps(model)
    assert second < first
    design.save(model, plan, tmp_path)
    back, _, _ = design.load(str(tmp_path), dtype="float32")
    images = pictures(model.encoder.image_size)[:1]
    assert torch.equal(back.restore(images), model.restore(images))


@pytest.fixture(scope="session")
def long_llm(small_llm, tmp_path_factory):
    """The small language model with a longer context."""
    folder = tmp_path_factory.mktemp("long") / "long-llm"
    shutil.copytree(small_llm, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return folder


# --- refusals ---


def retrained(folder, out):
    """Another model of the same shape."""
    from safetensors.torch import load_file

    shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    save_file({name: x + 0.01 for name, x in weights.items()}, out / "model.safetensors", metadata={"format": "pt"})
    return str(out)


def test_other_frozen_models_are_refused_by_hash(tmp_path, plan, small_mae, small_llm):
    saved(plan, tmp_path / "a")
    mae, llm = retrained(small_mae, tmp_path / "mae"), retrained(small_llm, tmp_path / "llm")
    with pytest.raises(ValueError, match=r"trained with the encoder small-mae@.*, and this is mae@.*\(--encoder\)"):
        design.load(str(tmp_path / "a"), encoder=mae, dtype="float32")
    with pytest.raises(ValueError, match=r"trained with the llm small-llm@.*, and this is llm@.*\(--llm\)"):
        design.load(str(tmp_path / "a"), llm=llm, dtype="float32")
    with pytest.raises(ValueError, match=r"trained with the encoder small-mae@.*, and this is pca"):  # of another width
        design.load(str(tmp_path / "a"), encoder="pca", dtype="float32")
    shutil.copytree(small_mae, tmp_path / "elsewhere" / "small-mae")
    shutil.copytree(small_llm, tmp_path / "elsewhere" / "moved-and-called-otherwise")
    back, _, _ = design.load(
        str(tmp_path / "a"),
        encoder=str(tmp_path / "elsewhere" / "small-mae"),
        llm=str(tmp_path / "elsewhere" / "moved-and-called-otherwise"),
        dtype="float32",
    )
    assert back.restore(IMAGES[:1]).shape == (1, 3, 32, 32)


def test_a_file_that_is_none_of_ours_is_refused(tmp_path, plan):
    saved(plan, tmp_path)
    path = tmp_path / ADAPTERS
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no tensors at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no file of `alignlab restore train`, or a damaged one"):
            design.load(str(tmp_path))
    for described in (None, "{", "[]", "{}", '{"design": {}, "frozen": {}, "about": {}}', '{"design": 3}'):
        save_file({"x": torch.zeros(1)}, path, metadata={"alignlab": described} if described else None)
        with pytest.raises(ValueError, match="is no file of `alignlab restore train`, or a damaged one"):
            design.load(str(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no .*adapters.safetensors; give a folder that"):
        design.load(str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no .*adapters.safetensors; give a folder that"):
        design.load(str(tmp_path / "nowhere"))


def test_tensors_that_do_not_fit_the_design_are_refused(tmp_path, plan):
    plan = replace(plan, features="raw")
    model = build(plan)
    design.save(model, replace(plan, task_tokens=5), tmp_path)
    with pytest.raises(ValueError, match=r"does not hold what its design asks for: .*size mismatch"):
        design.load(str(tmp_path), dtype="float32")


def test_a_beit_is_known_with_the_dvae_that_paints(plan, long_llm, monkeypatch, tmp_path):
    model = build(replace(plan, encoder="beit+position", llm=str(long_llm)))
    parts = design.frozen_parts(model)
    assert parts["encoder"].startswith("beit-tiny@sha256:")
    assert parts["decoder"].startswith("dvae-tiny@sha256:")
    monkeypatch.setattr("alignlab.models.vision.shipped", lambda *parts: tmp_path)  # where there is none
    with pytest.raises(ValueError, match="is no dVAE; give dvae-tiny"):
        getattr(load_encoder("beit"), "decoder_checkpoint")  # noqa: B009  # it is loaded when it is asked for


def test_an_encoder_that_cannot_paint_says_so_before_anything_is_fitted(plan, monkeypatch):
    def broken(self, tokens):
        raise ValueError("normalised pixels cannot be shown")

    monkeypatch.setattr("alignlab.models.mae.MAEEncoder.decode", broken)
    with pytest.raises(ValueError, match="normalised pixels cannot be shown"):
        design.build(plan, lambda size: pytest.fail("pictures were asked for"), dtype="float32")


def test_encoders_and_language_models_that_cannot_be_used(plan, small_llm, tmp_path):
    with pytest.raises(ValueError, match="has no decoder; --encoder takes a MAE"):
        build(replace(plan, encoder="timm:test_vit.r160_in1k@random"))
    with pytest.raises(ValueError, match=r"a conversation of .* tokens is longer than the 512 that small-llm can read"):
        build(replace(plan, encoder="vqgan", task_tokens=400))
    with pytest.raises(ValueError, match=r"unknown LLM|no LLM|unknown"):
        build(replace(plan, llm="nothing-of-this-name"))
    model = build(plan)
    assert model.restore(torch.rand(1, 3, 48, 40)).shape == (1, 3, 32, 32)  # resized, as an encoder does
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        model.restore(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="whitened features need pictures"):
        design.build(plan, dtype="float32")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"how": "magic"}, "how must be one of lm4lv, vit-llm, linear, mlp, transformer, got 'magic'"),
        ({"features": "cooked"}, "features must be one of whitened, raw, got 'cooked'"),
        ({"tasks": ("blur",)}, "task must be one of denoise, .*, got 'blur'"),
        ({"tasks": ("mask", "mask")}, "task must be different names, one at least, got mask, mask"),
        ({"tasks": ()}, "task must be different names, one at least, got none"),
        ({"task_tokens": 0}, "task_tokens must be 1 or more, got 0"),
        ({"lora": -1}, "lora must be a rank of 1 or more, or 0 for none, got -1"),
        ({"lora": 4, "how": "mlp"}, "lora is for lm4lv"),
        ({"rotary": True}, "causal and rotary are for vit-llm"),
    ],
)
def test_designs_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=said):
        Design(**changes)


def test_a_result_names_no_folder(small_mae, small_llm):
    plain = Design(encoder=f"{small_mae}+position", llm=f"{small_llm}[:1]@random", decoder=str(small_mae)).plain()
    assert (plain["encoder"], plain["llm"], plain["decoder"]) == (
        "small-mae+position",
        "small-llm[:1]@random",
        "small-mae",
    )
    hub = Design(encoder="timm:vit_tiny@random", llm="HuggingFaceTB/SmolLM2-135M@main")
    assert (hub.plain()["encoder"], hub.plain()["llm"]) == (hub.encoder, hub.llm)
    assert json.loads(json.dumps(plain)) == plain
