"""The adapters that come with alignlab: what their cards say they are, and that they restore."""

import json

import pytest
import torch

from alignlab.data import load_dataset, resize, to_tensor
from alignlab.data.degradations import Denoise
from alignlab.models.weights import sha256_file
from alignlab.restoration import degrade, design, psnr
from alignlab.trained import ADAPTERS


@pytest.mark.parametrize("name", design.SHIPPED)
def test_the_card_and_the_result_are_those_of_the_file(name):
    folder = design.find(name)
    digest = sha256_file(folder / ADAPTERS)
    card = (folder / "README.md").read_text()
    assert digest in card
    assert card.startswith(f"# {name}: lm4lv for ")
    result = json.loads((folder / "result.json").read_text())
    plan, described, _ = design.read(folder)
    assert result["frozen"] == described["frozen"]
    assert tuple(result["design"]["tasks"]) == plan.tasks
    assert f"{result['learnt']['images']:,}" in card
    (found,) = result["evaluations"]
    assert f"{found['restored']['psnr']['mean']:.2f}" in card


@pytest.mark.network
def test_denoise_brings_scenes_that_it_never_saw_nearer_to_the_truth():
    try:
        model, _, _ = design.load("denoise-mae-smollm2-30000")
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    clean = torch.cat(
        [resize(to_tensor(one.image)[None], model.encoder.image_size) for one in load_dataset("scenes").head(6)]
    )
    low = degrade(
        clean, "denoise", seed=3, parameters=Denoise(sigma=(40, 40))
    )  # as strong as it learnt at most, nearly
    restored = model.restore(low, "denoise")
    assert (psnr(restored, clean) - psnr(low, clean)).mean() > 2
    # And it is these pictures that it restores, not a usual one.
    assert psnr(restored, clean).mean() > psnr(restored, clean.roll(1, 0)).mean() + 3
