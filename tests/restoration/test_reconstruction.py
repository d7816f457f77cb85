"""Reconstruction end to end on small models; LPIPS and Inception through weights of their own layout."""

from __future__ import annotations

import math

import pytest
import torch

from alignlab.data import load_dataset
from alignlab.models import load_encoder
from alignlab.restoration import frechet_distance, psnr, reconstruct
from alignlab.restoration.inception import load_inception
from alignlab.restoration.perceptual import load_lpips
from alignlab.restoration.reconstruction import pictures, squares


class Identity:
    """An encoder that keeps every pixel."""

    name, checkpoint, image_size, model = "identity", "identity@1", 32, None

    def encode(self, images):
        return images

    def decode(self, tokens):
        return tokens


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", n=12)


def test_nothing_is_lost_by_the_identity(scenes):
    found = reconstruct(Identity(), scenes, features={"FD(mean)": lambda x: x.mean((2, 3))}, batch_size=5)
    assert (found.n, found.size) == (12, 32)
    assert (found.psnr.value, found.psnr.infinite) == (math.inf, 12)
    assert found.ssim.value == pytest.approx(1)
    assert found.l1.value == 0
    assert found.lpips is None
    (one,) = found.sets
    assert one.distance == pytest.approx(0, abs=1e-9)
    assert (one.precision, one.recall) == (1, 1)
    assert found.shown[0].shape == (8, 3, 32, 32)


def test_figures_are_those_of_the_parts(scenes):
    encoder = load_encoder("vqgan")
    features = {"FD(mean)": lambda x: x.mean((2, 3))}
    found = reconstruct(encoder, scenes, features=features, batch_size=5)
    truth = torch.cat([squares(batch, 64) for batch in pictures(scenes, 7)])
    made = encoder.decode(encoder.encode(truth))
    assert found.psnr.value == pytest.approx(float(psnr(truth, made).mean()), abs=1e-3)
    (one,) = found.sets
    assert one.distance == pytest.approx(frechet_distance(truth.mean((2, 3)), made.mean((2, 3))), rel=1e-3)
    assert found.psnr.ci95[0] < found.psnr.value < found.psnr.ci95[1]


def test_truth_is_resized_once(scenes):
    class Half(Identity):
        """Paints at half the size that it reads, as BEiT does."""

        def decode(self, tokens):
            return self.at_half

    half = Half()
    half.at_half = squares(next(pictures(scenes, 12)), 20)
    found = reconstruct(half, scenes, batch_size=12)
    assert (found.size, found.psnr.infinite) == (20, 12)


def test_three_images_are_no_set():
    found = reconstruct(Identity(), load_dataset("scenes", n=3), features={"FD(mean)": lambda x: x.mean((2, 3))})
    assert (found.n, found.sets) == (3, ())


def test_an_encoder_without_a_decoder_is_refused(scenes):
    class Blind:
        name = "blind"

    with pytest.raises(ValueError, match="blind has no decoder"):
        reconstruct(Blind(), scenes)


def test_a_decoder_of_normalised_patches_is_lent_the_brightness(tmp_path, scenes):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(
        image_size=32, patch_size=8, norm_pix_loss=True, **sizes, **decoder, decoder_intermediate_size=32
    )
    ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    assert reconstruct(load_encoder(str(tmp_path)), scenes).n == 12


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_lpips_is_the_packages_own(torch_home):
    lpips = pytest.importorskip("lpips")
    import torchvision

    torch.manual_seed(0)
    backbone = torchvision.models.alexnet(weights=None)
    kept = {key: x for key, x in backbone.state_dict().items() if key.startswith("features.")}
    torch.save(kept, torch_home / "alexnet-owt-7be5be79.pth")
    distance = load_lpips("alex")
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for slice_name, part in reference.net.named_children():  # layers are numbered as in torchvision
        for number, layer in part.named_children():
            if list(layer.parameters()):
                layer.load_state_dict(backbone.features[int(number)].state_dict())
        assert slice_name.startswith("slice")
    x, y = torch.rand(2, 2, 3, 64, 64).mul(2).sub(1).unbind()
    with torch.no_grad():
        torch.testing.assert_close(distance(x, y), reference(x, y).flatten())
        assert (distance(x, x) == 0).all()
        assert (distance(x, y) > 0).all()


def test_lpips_says_what_is_missing(torch_home):
    pytest.importorskip("lpips")
    with pytest.raises(
        RuntimeError, match=r"needs vgg16-397923af\.pth, which is not here: alignlab models fetch lpips-vgg"
    ):
        load_lpips("vgg")
    with pytest.raises(ValueError, match="net must be one of vgg, alex"):
        load_lpips("resnet")
    torch.save({"features.0.weight": torch.zeros(1)}, torch_home / "alexnet-owt-7be5be79.pth")
    with pytest.raises(ValueError, match="does not hold alex's weights"):
        load_lpips("alex")
    (torch_home / "alexnet-owt-7be5be79.pth").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_lpips("alex")


def test_inception_reads_tensors_and_nothing_else(torch_home):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.raises(RuntimeError, match="which is not here: alignlab models fetch inception"):
        load_inception()
    path = torch_home / "weights-inception-2015-12-05-6726825d.pth"
    touched = torch_home / "touched"
    torch.save({"a": Bomb(str(touched))}, path)
    with pytest.raises(ValueError, match="a pickle that would run code"):
        load_inception()
    assert not touched.exists()
    torch.manual_seed(0)
    state = _random_inception(module)
    torch.save(state, path)
    features = load_inception()(torch.rand(2, 3, 40, 40))
    assert features.shape == (2, 2048)
    assert features.isfinite().all()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def _random_inception(module):
    """A state dict of the right names and shapes; the class has no way to be built without a file."""
    from unittest import mock

    captured = {}

    def keep(self, state, strict=True):
        captured.update({key: x.clone() for key, x in torch.nn.Module.state_dict(self).items()})

    with (
        mock.patch.object(module.FeatureExtractorInceptionV3, "load_state_dict", keep),
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
    ):
        module.FeatureExtractorInceptionV3("inception-v3", ["2048"])
    return captured
