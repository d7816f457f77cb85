"""Files that want to run code, or memory that nobody has: a ValueError of one line, and nothing happens."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BeitConfig, BeitForMaskedImageModeling

from alignlab.models import load_encoder, load_llm
from alignlab.models.checkpoint_file import open_checkpoint
from alignlab.models.convert import convert
from alignlab.models.dvae import DVAE, DVAEConfig
from alignlab.models.mae import write_decoder
from alignlab.models.unpickle import StoredTensor
from alignlab.models.vqgan import VQGAN, VQGANConfig
from alignlab.pretrain.run import save

SMALL = VQGANConfig(32, (1, 2), 1, (16,), 6, 6, 50, 32)  # of layouts.vqgan_yaml


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    """On Linux, this module within 6 GB of addresses more than at its start: what grows beyond fails."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 6 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


class Evaluation(Command):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.target)!r}, 'w')",)


def refused(path: Path, why: str, *, also_by_convert: bool = False) -> None:
    """`load_encoder` says why in one line."""
    with pytest.raises(ValueError, match=why) as caught:
        load_encoder(str(path))
    assert len(str(caught.value).splitlines()) == 1
    if also_by_convert:
        with pytest.raises(ValueError, match=why):
            convert(path, path.parent / "converted")


def taming(folder: Path, value: Any, yaml: str | None = None, *, zipped: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(value, folder / "last.ckpt", _use_new_zipfile_serialization=zipped)
    (folder / "model.yaml").write_text(yaml or layouts.vqgan_yaml())
    return folder


# Code


@pytest.mark.parametrize("kind", [Command, Evaluation])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["whole", "beside", "tensor", "argument", "key"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, kind: type[Command], zipped: bool, place: str) -> None:
    mark = tmp_path / "was-here"
    bad = kind(mark)
    state = dict(VQGAN(SMALL).state_dict())
    value: Any = {
        "whole": bad,
        "beside": {"state_dict": state, "callbacks": [bad]},
        "tensor": {"state_dict": {**state, "quant_conv.bias": bad}},
        "argument": {"state_dict": state, "hyper_parameters": {"a": {"b": (1, [bad])}}},
        "key": {"state_dict": state, bad: 1},
    }[place]
    name = "posix.system|nt.system" if kind is Command else "builtins.eval|__builtin__.eval"
    folder = taming(tmp_path / "vqgan", value, zipped=zipped)
    refused(folder, f"refers to ({name})", also_by_convert=True)
    _, beit = layouts.beit()
    file = tmp_path / "beit.pth"
    content = {"model": {**beit, "norm.bias": bad}} if place == "tensor" else {"model": beit, "args": value}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    refused(file, f"refers to ({name})", also_by_convert=True)
    layouts.write_dalle(tmp_path)
    torch.save(value, tmp_path / "decoder.pkl", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "encoder.pkl", f"refers to ({name})", also_by_convert=True)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "was-here"
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Command(mark), protocol=protocol))
    refused(tmp_path / "x.pth", "system", also_by_convert=True)
    (tmp_path / "y.pth").write_bytes(b"(cposix\nsystem\nS'touch " + str(mark).encode() + b"'\no.")  # OBJ, no REDUCE
    refused(tmp_path / "y.pth", r"posix\.system", also_by_convert=True)
    assert not mark.exists()


def test_code_in_a_transformers_folder_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    beit_folder(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    torch.save({"lm_head.bias": Command(mark)}, tmp_path / "b" / "pytorch_model.bin")
    refused(tmp_path / "b", "they are damaged, or a pickle that would run code")
    with pytest.raises(ValueError, match=r"refers to posix\.system"):
        convert(tmp_path / "b")
    assert not mark.exists()


def test_a_tensor_made_by_a_call_is_refused(tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path, ("a",)  # harmless, but no tensor

    state = dict(VQGAN(SMALL).state_dict())
    folder = taming(tmp_path / "v", {"state_dict": {**state, "quant_conv.bias": Odd()}})
    refused(folder, "the tensor 'quant_conv.bias' .* is not stored but made by a call of pathlib", also_by_convert=True)
    refused(
        taming(folder, {"state_dict": {**state, "quant_conv.bias": 3}}), "'quant_conv.bias' .* is no tensor but a int"
    )
    refused(taming(folder, [1, 2]), "holds no state dict")


def test_torchscript_and_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pth")
    refused(tmp_path / "script.pth", "TorchScript", also_by_convert=True)
    torch.save({"a": torch.zeros(2)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "small.pth", "is compressed")


# Damage


@pytest.mark.parametrize("zipped", [True, False])
def test_files_cut_short_are_refused_wherever_they_end(tmp_path: Path, zipped: bool) -> None:
    folder = taming(tmp_path / "v", {"state_dict": VQGAN(SMALL).state_dict()}, zipped=zipped)
    whole = (folder / "last.ckpt").read_bytes()
    for length in (0, 1, 2, 3, 4, 10, 500, 5000, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        (folder / "last.ckpt").write_bytes(whole[:length])
        refused(folder, r"last\.ckpt.*(damaged|cannot be read)", also_by_convert=True)


def test_bytes_changed_at_random_never_do_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    random = torch.Generator().manual_seed(0)
    for zipped in (True, False):
        torch.save({"a": torch.arange(6.0).view(2, 3), "b": [1, "x"]}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(300):
            changed = bytearray(whole)
            for _ in range(3):
                at, to = (
                    torch.randint(min(len(whole), 700), (), generator=random),
                    torch.randint(256, (), generator=random),
                )
                changed[int(at)] = int(to)
            path.write_bytes(changed)
            try:
                found = open_checkpoint(path, convert=True)
            except ValueError:
                continue
            tensor = found.value.get("a") if isinstance(found.value, dict) else None
            if isinstance(tensor, StoredTensor):
                with contextlib.suppress(ValueError):
                    found.read(tensor)


def test_a_safetensors_file_cut_short_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    save(VQGAN(SMALL), folder)
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        refused(folder, "cannot be read as safetensors")
    beit_folder(tmp_path / "b")
    whole = (tmp_path / "b" / "model.safetensors").read_bytes()
    (tmp_path / "b" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "b", "cannot be read")


def test_configurations_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for text in ("", "{", "[]", "[" * 10_000, '{"model_type": "nothing-like-it"}', "{}", '{"model_type": 3}'):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, "config|model")


# Too much


def beit_folder(folder: Path) -> Path:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BeitConfig(**sizes, vocab_size=40, use_mask_token=True, use_shared_relative_position_bias=True)
    BeitForMaskedImageModeling(config).save_pretrained(folder)
    return folder


def rewrite(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**6},
        {"hidden_size": 24 * 10**9},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 60},
        {"num_labels": 10**9},
        {"intermediate_size": 10**12},
        {"vocab_size": 10**12},
        {"image_size": 10**7},
        {"image_size": -8},
        {"num_attention_heads": 0},
        {"hidden_size": "24"},
        {"hidden_size": 48},
    ],
)
def test_a_transformers_configuration_that_asks_too_much(
    tmp_path: Path, small_mae: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(small_mae, tmp_path / "m")
    for folder in (beit_folder(tmp_path / "b"), tmp_path / "m"):
        if folder.name == "m" and "vocab_size" in change:
            continue
        rewrite(folder / "config.json", change)
        refused(folder, folder.name)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 32 * 10**9},
        {"channels": -32},
        {"channels": 32.0},
        {"channel_multipliers": [1] * 100},
        {"channel_multipliers": 3},
        {"residual_blocks": 10**9},
        {"codes": 10**12},
        {"codes": True},
        {"embedding": 10**6},
        {"image_size": 10**9},
        {"image_size": 0},
        {"unknown": 1},
        {"gumbel": True},
    ],
)
def test_a_vqgan_configuration_that_asks_too_much(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "v").mkdir()
    save(VQGAN(SMALL), tmp_path / "v")
    rewrite(tmp_path / "v" / "config.json", change)
    refused(tmp_path / "v", "v ")
    if set(change) <= {"unknown"}:
        return
    names = {"channels": "ch", "channel_multipliers": "ch_mult", "residual_blocks": "num_res_blocks"}
    names |= {"image_size": "resolution"}
    sizes = {names[key]: value for key, value in change.items() if key in names}
    if sizes:
        state = {"state_dict": VQGAN(SMALL).state_dict()}
        refused(taming(tmp_path / "t", state, layouts.vqgan_yaml(**sizes)), "t/")


@pytest.mark.parametrize("change", [{"hidden": 4 * 10**9}, {"blocks_per_group": 10**9}, {"vocab": -1}, {"hidden": 6}])
def test_a_dvae_configuration_that_asks_too_much(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "d").mkdir()
    save(DVAE(DVAEConfig(hidden=8, blocks_per_group=1, vocab=16, decoder_init=8, image_size=32)), tmp_path / "d")
    rewrite(tmp_path / "d" / "config.json", change)
    refused(tmp_path / "d", "d ")


def test_tensors_larger_than_their_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "wide.pth")  # one number, said to be 10^12
    refused(tmp_path / "wide.pth", "a storage of 1 numbers")
    one = torch.zeros(1000)
    shared = {f"t{i}": one[:] for i in range(100)}
    torch.save({"model": shared}, tmp_path / "shared.pth")
    refused(tmp_path / "shared.pth", "more than twice its size")
    _, state = layouts.beit()
    torch.save({"model": {**state, "mask_token": torch.zeros(1, 1, 10**6)}}, tmp_path / "beit.pth")
    refused(tmp_path / "beit.pth", "has shape .*, the other tensors ask for")


def test_a_fresh_model_without_bounds_is_refused(tmp_path: Path) -> None:
    beit_folder(tmp_path / "b")
    rewrite(tmp_path / "b" / "config.json", {"vocab_size": 10**12})
    with pytest.raises(ValueError, match=r"asks for 2\.5e\+13 parameters"):
        load_encoder(f"{tmp_path / 'b'}@random")


def deep() -> bytes:
    """A key of tuples in tuples, each twice the last: comparing it takes 2^60 steps."""
    out = io.BytesIO(b"")
    out.write(b"\x80\x02}K\x01")
    for _ in range(60):
        out.write(b"2\x86")  # DUP, TUPLE2
    out.write(b"K\x02s.")
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        deep(),
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f" + b"x.",
        b"\x80\x02" + b"(" * 10**5 + b".",
        b"\x80\x02]r\xff\xff\xff\x7f.",
    ],
    ids=["nested keys", "bytes without end", "marks", "memo"],
)
def test_pickles_that_want_time_or_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    refused(tmp_path / "x.pth", "cannot be read as a checkpoint")


# Names


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    state = VQGAN(SMALL).state_dict()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"quant_conv.bias": None}, "lacks 1 of the model's weights, the first of them quant_conv.bias"),
        ({"classifier.weight": torch.zeros(2)}, "1 tensors that the model has no place for, .* classifier.weight"),
        ({"quant_conv.bias": torch.zeros(7)}, r"quant_conv.bias has shape \(7,\), its configuration asks for \(6,\)"),
    ]
    for change, why in changes:
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        refused(taming(tmp_path / "v", {"state_dict": changed}), why, also_by_convert=True)
    _, beit = layouts.beit()
    changes = [
        ({"blocks.1.gamma_1": None}, r"lacks 1 of BEiT's weights, the first of them blocks\.1\.gamma_1"),
        ({"blocks.1.gamma_3": torch.zeros(2)}, r"1 tensors that BEiT has no place for, .* blocks\.1\.gamma_3"),
        ({"norm.bias": torch.zeros(7)}, r"norm\.bias has shape \(7,\), the other tensors ask for \(24,\)"),
    ]
    for change, why in changes:
        torch.save({"model": {k: v for k, v in {**beit, **change}.items() if v is not None}}, tmp_path / "b.pth")
        refused(tmp_path / "b.pth", why, also_by_convert=True)


def test_misshapen_tensors_of_transformers_are_named(tmp_path: Path) -> None:
    beit_folder(tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    save_file(load_file(file) | {"lm_head.bias": torch.zeros(41)}, file, metadata={"format": "pt"})
    refused(tmp_path / "b", r"lm_head\.bias has shape \(41,\), its configuration asks for \(40,\)")


# YAML


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("model: !!python/object/apply:os.system ['touch {mark}']", "could not determine a constructor"),
        ("!!python/object/new:os.system ['touch {mark}']", "could not determine a constructor"),
        (BOMB, "no VQGAN's configuration"),
        (BOMB + layouts.vqgan_yaml().replace("n_embed: 50", "n_embed: *a29"), "codes must be .* got list"),
        (MERGES, "merge keys"),
        ("[" * 1_200, "cannot be read as YAML"),
        ("x" * (2 << 20), "too many for a configuration"),
        ("\x00", "cannot be read as YAML"),
    ],
    ids=["apply", "new", "bomb", "bomb in a size", "merges", "nested", "long", "binary"],
)
def test_yaml_makes_nothing_but_plain_values(tmp_path: Path, yaml: str, why: str) -> None:
    mark = tmp_path / "was-here"
    text = yaml.replace("{mark}", str(mark))
    refused(taming(tmp_path / "v", {"state_dict": VQGAN(SMALL).state_dict()}, text), why, also_by_convert=True)
    assert not mark.exists()


def test_no_unsafe_reader_is_in_the_package() -> None:
    source = Path(__file__).parents[2] / "alignlab"
    unsafe = ("weights_only=False", "pickle.load", "pickle_module", "yaml.unsafe", "trust_remote_code=True")
    found = [(file.name, word) for file in source.rglob("*.py") for word in unsafe if word in file.read_text()]
    assert not found


# Classes of transformers that read no repository's code, and so ask for no consent.
CONCRETE = ("ViTMAEForPreTraining", "ViTMAEConfig", "PreTrainedConfig", "PretrainedConfig")


def test_every_reader_of_transformers_refuses_remote_code() -> None:
    """Where nothing is said, a terminal is asked."""
    readers = ("from_pretrained", "from_config")
    calls = []
    for file in (Path(__file__).parents[2] / "alignlab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in readers:
                calls.append((file.name, node.lineno, ast.unparse(node.func.value), node.keywords))
    assert len(calls) >= 8
    for file_name, line, of, given in calls:
        refuses = any(k.arg == "trust_remote_code" and ast.unparse(k.value) == "False" for k in given)
        assert refuses or of.rpartition(".")[2] in CONCRETE, f"{file_name}:{line}"


YES = """
import sys
from alignlab.models import load_encoder, load_llm
encoder = load_encoder(sys.argv[1])
print(encoder.mean)
for load, folder in ((load_encoder, sys.argv[2]), (load_llm, sys.argv[2]), (load_llm, sys.argv[3])):
    try:
        load(folder)
    except ValueError as error:
        print(len(str(error).splitlines()))
    else:
        print("loaded")
"""


def test_a_repositorys_code_is_not_run_whatever_the_terminal_says(
    tmp_path: Path, small_mae: Path, small_llm: Path
) -> None:
    mark = tmp_path / "was-here"
    for name, source in (("mae", small_mae), ("other", small_mae), ("llm", small_llm)):
        shutil.copytree(source, tmp_path / name)
        code = f"open({str(mark)!r}, 'w')\nclass Own: pass\n"
        (tmp_path / name / "own.py").write_text(code)
    processor = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (tmp_path / "mae" / "preprocessor_config.json").write_text(json.dumps(processor))
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor")
    auto = {"auto_map": dict.fromkeys(classes, "own.Own")}
    rewrite(tmp_path / "other" / "config.json", auto | {"model_type": "own"})
    rewrite(tmp_path / "llm" / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}})
    rewrite(tmp_path / "llm" / "config.json", auto)
    env = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    folders = [str(tmp_path / name) for name in ("mae", "other", "llm")]
    command = [sys.executable, "-c", YES, *folders]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "(0.485, 0.456, 0.406)"  # the family's, without a question before it
    assert said[1:3] == ["1", "1"]
    assert len(said) == 4
    assert not mark.exists()


# Language models


@pytest.mark.parametrize("variant", ["", "@random", "[:1]"])
@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**6, "head_dim": 10**6},
        {"intermediate_size": 10**12},
        {"vocab_size": 10**12},
        {"num_hidden_layers": -1},
        {"hidden_size": "24"},
    ],
)
def test_a_language_models_configuration_that_asks_too_much(
    tmp_path: Path, small_llm: Path, variant: str, change: dict[str, Any]
) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(small_llm, folder)
    rewrite(folder / "config.json", change)
    why = "num_hidden_layers is .*; at most|asks for .* parameters|'hidden_size'"
    with pytest.raises(ValueError, match=why) as caught:
        load_llm(f"{folder}{variant}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "gpt2", "n_layer": 10**9}, "n_layer"),
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 10**9]]}, "attention_types"),
        ({"model_type": "mixtral", "num_local_experts": 10**9}, "num_local_experts"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
    ],
)
def test_counts_of_every_family_are_bounded(tmp_path: Path, small_llm: Path, config: dict[str, Any], key: str) -> None:
    shutil.copytree(small_llm, tmp_path / "llm")
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key} is .* at most"):
        load_llm(f"{tmp_path / 'llm'}@random")


def test_misshapen_tensors_of_language_models_are_named(tmp_path: Path, small_llm: Path) -> None:
    shutil.copytree(small_llm, tmp_path / "llm")
    rewrite(tmp_path / "llm" / "config.json", {"intermediate_size": 40})
    why = r"layers\.0\.mlp\.down_proj\.weight has shape \(24, 32\), its configuration asks for \(24, 40\)"
    with pytest.raises(ValueError, match=why):
        load_llm(str(tmp_path / "llm"))


def add_tensor(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name: torch.zeros(3)}, file, metadata={"format": "pt"})


def test_extra_tensors_of_transformers_are_named(tmp_path: Path, small_mae: Path, small_llm: Path) -> None:
    shutil.copytree(small_mae, tmp_path / "m")
    for folder in (beit_folder(tmp_path / "b"), tmp_path / "m"):
        add_tensor(folder, "beit.encoder.relative_position_bias.relative_position_index")  # as old versions wrote it
        load_encoder(str(folder))
        add_tensor(folder, "foo.weight")
        refused(folder, r"holds 1 tensors that the model has no place for, the first of them foo\.weight")
    shutil.copytree(small_llm, tmp_path / "llm")
    add_tensor(tmp_path / "llm", "model.layers.0.self_attn.rotary_emb.inv_freq")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_llm(str(tmp_path / "llm"))
        load_llm(f"{tmp_path / 'llm'}[:1]")  # the other block's are no surprise
    add_tensor(tmp_path / "llm", "foo.weight")
    with pytest.warns(
        UserWarning, match=r"holds 1 tensors .* the first of them foo\.weight; they are not read"
    ) as told:
        load_llm(str(tmp_path / "llm"))
    assert len(told) == 1


# MAE's decoder


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "change", [{"decoder_hidden_size": 2**17}, {"decoder_num_hidden_layers": 10**9}, {"decoder_hidden_size": 32}]
)
def test_a_decoders_configuration_that_asks_too_much(
    tmp_path: Path, small_mae: Path, whole: bool, change: dict[str, int]
) -> None:
    folder = tmp_path / "decoder"
    if whole:
        shutil.copytree(small_mae, folder)
    else:
        write_decoder(load_encoder(str(small_mae)), folder)
    rewrite(folder / "config.json", change)
    with pytest.raises(ValueError, match="decoder"):
        load_encoder(str(small_mae), decoder=str(folder))


# OpenAI's modules


class Nested:
    """Pickled as a module: its state holds the modules within it."""


def test_modules_that_are_their_siblings_are_not_walked_through(tmp_path: Path) -> None:
    layouts.write_dalle(tmp_path)
    inner = Nested()
    for _ in range(10):
        outer = Nested()
        outer.__dict__["_modules"] = {str(i): inner for i in range(100)}  # 100^10 of them, one behind another
        inner = outer
    wide = Nested()  # every one with the same thousand tensors
    tensors = {str(i): torch.zeros(1) for i in range(1000)}
    wide.__dict__["_modules"] = {str(i): Nested() for i in range(1000)}
    for child in wide.__dict__["_modules"].values():
        child.__dict__["_parameters"] = tensors
    for top in (inner, wide):
        with layouts.package(Nested, within="dall_e.encoder"):
            torch.save(top, tmp_path / "encoder.pkl")
        assert (tmp_path / "encoder.pkl").stat().st_size < 500_000
        refused(tmp_path / "encoder.pkl", "more than 10000 modules or tensors", also_by_convert=True)
