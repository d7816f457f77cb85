"""A = W_out W_in: the measures of Table 6 against their definitions, and what is wrong with two of them."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from alignlab import paper, trained
from alignlab.analysis import adapters
from alignlab.analysis.adapters import Affine, diagonal_ratios, distance, measures, product, simulate, unwhitened
from alignlab.restoration.coordinates import Whitened
from alignlab.restoration.design import Design

D, L = 12, 20


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Encoder:
    """As much of an encoder as `Whitened` asks for."""

    name, checkpoint, width, image_size, num_layers, pools, model = "e", "e@0", D, 8, 1, ("mean",), None

    def decode(self, tokens):
        return tokens


def whitening(seed: int = 5) -> dict[str, torch.Tensor]:
    components = torch.linalg.qr(gaussian(D, D, seed=seed)).Q
    return {"mean": gaussian(D, seed=6), "components": components, "scale": gaussian(D, seed=7).abs() + 0.1}


def layers() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(1)
    return nn.Linear(D, L), nn.Linear(L, D)


def save(folder, how="lm4lv", features="raw", **changed):
    into, out = layers()
    state = {"adapter_in.weight": into.weight, "adapter_in.bias": into.bias}
    state |= {"adapter_out.weight": out.weight, "adapter_out.bias": out.bias}
    if how == "linear":
        state = {"layer.weight": torch.eye(D) * 3, "layer.bias": torch.ones(D)}
    if features == "whitened":
        state |= {f"coordinates.{k}": v.float() for k, v in whitening().items()}
    state |= changed
    described = asdict(Design(how=how, features=features))
    trained.write(folder, {k: v for k, v in state.items() if v is not None}, described, {}, {})
    return folder


# --- definitions ---


def test_the_product_is_what_the_two_layers_do():
    into, out = layers()
    found = product(into.weight, out.weight, into.bias, out.bias)
    h = gaussian(5, D)
    torch.testing.assert_close(h @ found.matrix.T + found.bias, out.double()(into.double()(h)))
    assert not product(into.weight, out.weight).bias.any()


@pytest.mark.parametrize("shapes", [((L, D), (L, D)), ((L, D), (D, L + 1)), ((L, D), (D + 1, L)), ((L,), (D, L))])
def test_layers_that_do_not_compose(shapes):
    with pytest.raises(ValueError, match="do not compose"):
        product(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="bias of the layer in"):
        product(torch.zeros(L, D), torch.zeros(D, L), torch.zeros(D))
    with pytest.raises(ValueError, match="not finite"):
        product(torch.full((L, D), math.nan), torch.zeros(D, L))


def test_measures_against_loops():
    a = gaussian(D, D)
    found = measures(a)
    grid = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    losses = (a[None] - grid[:, None, None] * torch.eye(D, dtype=torch.float64)).square().mean((1, 2))
    assert found.distance == pytest.approx(float(losses.min()), abs=1e-6)
    assert found.alpha == pytest.approx(float(grid[losses.argmin()]), abs=1e-3)
    cosine = float(a.trace() / (a.norm() * math.sqrt(D)))
    assert found.ratio == pytest.approx(1 - cosine**2)
    ratios = [abs(float(a[i, i] / a[i, j])) for i in range(D) for j in range(D) if i != j]
    assert found.diagonal_mean == pytest.approx(sum(ratios) / (D * (D - 1)))
    assert found.diagonal_median == pytest.approx(float(np.median(ratios)))
    s = np.linalg.svd(a.numpy(), compute_uv=False)
    share = s / s.sum()
    assert found.rank_entropy == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    assert found.rank_participation == pytest.approx((s**2).sum() ** 2 / (s**4).sum())


def test_the_identity_column():
    found = measures(0.3 * torch.eye(D))
    assert (found.distance, found.diagonal_mean) == (pytest.approx(0), math.inf)
    assert found.diagonal_mean == paper.TABLE6["D"]["Identity"]
    assert (found.alpha, found.ratio, found.diagonal_median) == (pytest.approx(0.3), pytest.approx(0), math.inf)
    assert (found.rank_entropy, found.rank_participation) == (pytest.approx(D), pytest.approx(D))


def test_the_random_column():
    a = gaussian(400, 400)
    assert distance(a)[1] == pytest.approx(paper.TABLE6["L"]["Random"], abs=0.02)
    assert distance(a)[2] == pytest.approx(1, abs=1e-4)


def test_degenerate_matrices():
    assert math.isnan(measures(torch.zeros(3, 3)).ratio)
    assert (diagonal_ratios(torch.zeros(3, 3)) == 1).all()  # neither stands out
    for shape in ((3,), (3, 4), (1, 1)):
        with pytest.raises(ValueError, match="square"):
            measures(torch.zeros(shape))


# --- what is wrong with L and D ---


def test_l_goes_with_the_square_of_the_scale_and_the_ratio_stays():
    found = simulate(sizes=(40,), scales=(0.1, 1, 7), draws=1)["scale"]
    one = next(row for row in found if row["scale"] == 1)
    for row in found:
        assert row["distance"] == pytest.approx(row["scale"] ** 2 * one["distance"])
        assert row["ratio"] == pytest.approx(one["ratio"])
    # So that random adapters of small entries have a smaller L than the paper's trained ones.
    assert distance(0.01 * gaussian(100, 100))[1] < paper.TABLE6["L"]["Ours"]


def test_the_mean_of_d_grows_with_the_sample_and_the_median_stays():
    found = simulate(sizes=(10, 100, 1000), draws=9)["sample"]
    means = [row["diagonal_mean"] for row in found]
    assert means[0] + 1 < means[1] < means[2] - 1
    growth = found[2]["expected_growth"] - found[0]["expected_growth"]
    assert means[2] - means[0] == pytest.approx(growth, rel=0.6)
    assert found[2]["diagonal_median"] == pytest.approx(1, abs=0.05)
    assert found[1]["diagonal_median"] == pytest.approx(1, abs=0.15)
    assert found[2]["largest_share"] > 0.01  # one of a million ratios
    assert [row["entries"] for row in found] == [90, 9_900, 999_000]


def test_simulate_needs_sizes():
    for sizes, draws in (((), 1), ((1,), 1), ((5,), 0)):
        with pytest.raises(ValueError, match="simulate needs"):
            simulate(sizes=sizes, draws=draws)


# --- coordinates ---


def test_unwhitened_is_what_adapters_between_whitening_and_back_do():
    into, out = layers()
    fitted = Whitened(Encoder(), *whitening().values())
    found = unwhitened(product(into.weight, out.weight, into.bias, out.bias), *fitted.state().values())
    tokens = gaussian(7, D).float()  # [7, D], the encoder's own
    with torch.no_grad():
        through = fitted.back(out(into(fitted.forth(tokens))))
    torch.testing.assert_close((tokens.double() @ found.matrix.T + found.bias).float(), through, atol=1e-4, rtol=1e-4)


def test_the_best_alpha_is_the_same_in_both_coordinates_and_alpha_i_stays():
    a = Affine(gaussian(D, D), gaussian(D))
    assert distance(unwhitened(a, *whitening().values()).matrix)[0] == pytest.approx(distance(a.matrix)[0])
    eye = Affine(2 * torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64))
    torch.testing.assert_close(unwhitened(eye, *whitening().values()).matrix, eye.matrix)


# --- checkpoints ---


def test_reading_both_kinds_of_features(tmp_path):
    raw = adapters.read(str(save(tmp_path / "raw")))
    assert list(raw.coordinates()) == ["raw"]
    both = adapters.read(str(save(tmp_path / "whitened", features="whitened")))
    found = both.coordinates()
    assert list(found) == ["raw", "whitened"]
    torch.testing.assert_close(found["whitened"].matrix, raw.learnt.matrix)
    assert not torch.allclose(found["raw"].matrix, found["whitened"].matrix)


def test_a_linear_layer_is_a_itself(tmp_path):
    found = adapters.read(str(save(tmp_path, how="linear")))
    torch.testing.assert_close(found.learnt.matrix, 3 * torch.eye(D, dtype=torch.float64))
    assert found.learnt.bias.tolist() == [1.0] * D
    plain = adapters.analyse(found, draws=3)
    assert plain["llm_width"] is None
    assert plain["coordinates"]["raw"]["trained"]["diagonal_mean"] is None  # inf
    assert plain["coordinates"]["raw"]["bias"] == {"rms": 1.0, "largest": 1.0}


def test_random_layers_are_of_the_same_scale_and_trained_ones_stand_out(tmp_path):
    found = adapters.read(str(save(tmp_path, features="whitened")))
    random = adapters.random_like(found, draws=40)
    level = float(found.learnt.matrix.square().mean())
    middle, low, high = random["whitened"].each["distance"]
    assert low < middle < high
    assert middle == pytest.approx(level, rel=0.4)
    assert random["raw"].each["alpha"] == pytest.approx(random["whitened"].each["alpha"])
    assert random["raw"].singular.shape == (3, D)
    assert adapters.random_like(found, draws=4)["raw"].each == adapters.random_like(found, draws=4)["raw"].each
    with pytest.raises(ValueError, match="draws"):
        adapters.random_like(found, draws=0)


@pytest.mark.parametrize("how", ["mlp", "transformer"])
def test_experts_without_adapters(tmp_path, how):
    with pytest.raises(ValueError, match=f"is a {how}, which has no pair of linear layers"):
        adapters.read(str(save(tmp_path, how=how)))


def test_bad_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        adapters.read(str(tmp_path))
    with pytest.raises(ValueError, match="do not compose"):
        adapters.read(str(save(tmp_path / "a", **{"adapter_out.weight": torch.zeros(D, L + 1)})))
    with pytest.raises(ValueError, match=r"lacks adapter_in\.bias"):
        adapters.read(str(save(tmp_path / "b", **{"adapter_in.bias": None})))
    with pytest.raises(ValueError, match="whitening's scale must be"):
        adapters.read(str(save(tmp_path / "c", features="whitened", **{"coordinates.scale": torch.zeros(3)})))
    with pytest.raises(ValueError, match="above 0"):
        adapters.read(str(save(tmp_path / "d", features="whitened", **{"coordinates.scale": torch.zeros(D)})))
    with pytest.raises(ValueError, match="do not compose"):
        adapters.read(str(save(tmp_path / "e", how="linear", **{"layer.weight": torch.zeros(D)})))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / trained.ADAPTERS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        adapters.read(str(tmp_path / "f"))


@pytest.mark.parametrize("part", ["mean", "components", "scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_whitening_that_is_not_finite_is_refused(tmp_path, part, value):
    damaged = whitening()[part].float().contiguous()
    damaged.view(-1)[0] = value
    folder = save(tmp_path / "run", features="whitened", **{f"coordinates.{part}": damaged})
    with pytest.raises(ValueError, match=f"the whitening's {part} holds nan or inf"):
        adapters.read(str(folder))


def test_pictures_of_large_and_small_matrices(tmp_path, monkeypatch):
    found = adapters.read(str(save(tmp_path, features="whitened")))
    assert len(adapters.heatmaps(found).axes) == 8  # with colour bars
    monkeypatch.setattr(adapters, "SHOWN", 5)
    assert "one row and column in 3" in adapters.heatmaps(found).get_suptitle()
    assert len(adapters.spectra(adapters.analyse(found, draws=2)).axes) == 2
