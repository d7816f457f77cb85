"""Linear probes against scikit-learn's, and on features whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignlab.data import load_dataset
from alignlab.probing.labels import Label, control, labels_of
from alignlab.probing.linear import classify, constant, regress
from alignlab.probing.ridge import PENALTIES, Decomposed, cross_validate, fewer_columns, folds_of, nearest, standardised


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [6, 50])
def test_predictions_are_scikit_learns(width):
    """More items than features, and fewer; a standardised feature that is always the same counts as 0 in both."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x = noise(40, width) * torch.arange(1, width + 1) + 5
    x[:, 2] = 7.0
    y = noise(40, 3, seed=1) + x[:, :1]
    fold = folds_of(40, 4, seed=0)
    found = next(iter(cross_validate([x], [y], fold)))
    missed, spread = np.zeros(40), np.zeros(40)
    for part in range(4):
        train, test = (fold != part).numpy(), (fold == part).numpy()
        a, b = StandardScaler().fit(x[train].double().numpy()), StandardScaler().fit(y[train].double().numpy())
        features = a.transform(x[train].double().numpy())
        values = np.linalg.eigvalsh(features.T @ features)
        values = values[values > values[-1] * 1e-12]
        penalty = float(found.penalties[part, 0, 0]) * values.mean()
        model = Ridge(alpha=penalty, fit_intercept=False).fit(features, b.transform(y[train].double().numpy()))
        wanted = b.transform(y[test].double().numpy())
        missed[test] = ((model.predict(a.transform(x[test].double().numpy())) - wanted) ** 2).sum(1)
        spread[test] = (wanted**2).sum(1)
    np.testing.assert_allclose(found.missed[0, 0].numpy(), missed, rtol=1e-6)
    np.testing.assert_allclose(found.spread[0].numpy(), spread, rtol=1e-6)
    assert float(found.r2[0, 0]) == pytest.approx(1 - missed.sum() / spread.sum(), rel=1e-6)


@pytest.mark.parametrize("width", [5, 60])
def test_the_penalty_is_that_of_the_least_generalised_cross_validation_error(width):
    x = standardised(noise(40, width), torch.ones(40, dtype=torch.bool))
    y = standardised(noise(40, 4, seed=1) + x[:, :4].float(), torch.ones(40, dtype=torch.bool))
    train = torch.arange(40) < 30
    known, wanted = x[train] - x[train].mean(0), y[train] - y[train].mean(0)
    _, chosen = Decomposed.of(torch.cat([known, x[~train]]), torch.arange(40) < 30).predict(wanted)
    gram = known @ known.T
    values = torch.linalg.eigvalsh(gram)
    mean = values[values > 1e-9].mean()
    errors = []
    for penalty in PENALTIES:
        hat = gram @ torch.linalg.inv(gram + penalty * mean * torch.eye(30, dtype=torch.float64))
        left = (wanted - hat @ wanted).square().sum()
        errors.append(float(left / (30 - 1 - hat.trace()) ** 2))
    assert chosen == PENALTIES[int(np.argmin(errors))]


def test_nothing_of_the_held_out_items_reaches_the_regression():
    x, y = noise(30, 4), noise(30, 3, seed=1)
    fold = folds_of(30, 3, seed=0)
    train = fold != 0
    changed_x, changed_y = x.clone(), y.clone()
    last = int((~train).nonzero()[-1])
    changed_x[last] += 100
    changed_y[last] -= 100
    one = next(iter(cross_validate([x], [y], fold)))
    other = next(iter(cross_validate([changed_x], [changed_y], fold)))
    rest = ~train & (torch.arange(30) != last)
    assert torch.equal(one.missed[0, 0, rest], other.missed[0, 0, rest])
    assert torch.equal(one.penalties[0], other.penalties[0])
    assert not torch.equal(one.missed[0, 0, train], other.missed[0, 0, train])


def test_fewer_columns_keep_lengths_and_products():
    y = noise(10, 300).double()
    turned = fewer_columns(y)
    assert turned.shape == (10, 10)
    torch.testing.assert_close(turned @ turned.T, y @ y.T)
    assert torch.equal(fewer_columns(y.T), y.T)


def test_retrieval_counts_ties_as_the_share_of_draws_that_they_win():
    features = torch.tensor([[1.0, 0], [0, 1], [0, 1], [-1, 0]]).double()
    predicted = torch.tensor([[1.0, 0.1], [0.1, 1], [-0.1, 1], [0, 0]]).double()
    found = nearest(predicted, features, torch.arange(4))  # [ranks, m]
    assert found[0].tolist() == [1, 0.5, 0.5, 0.25]  # two alike; a prediction without direction is as near to all
    assert found[1].tolist() == [1, 1, 1, 1]


def test_a_linear_relation_is_found_and_unrelated_features_are_not():
    x = noise(200, 10)
    y = x @ noise(10, 8, seed=1)
    unrelated = noise(200, 8, seed=2)
    found = regress([unrelated, x], [y], nulls=19, seed=0)
    curve = found.curve(None, 0, 0)
    assert curve["r2"][1] > 0.99
    assert curve["recall"]["1"]["value"][1] > 0.99
    assert curve["p"][1] == 0.05 < curve["p"][0]
    assert curve["best_p"] == 0.05
    assert -0.1 < curve["r2"][0] < 0.05
    assert abs(curve["null_mean"][1]) < 0.1
    assert curve["recall"]["10"]["chance"] == 0.05
    assert curve["recall"]["10"]["null_mean"][1] == pytest.approx(0.05, abs=0.02)
    low, high = curve["ci95"][1]
    assert low <= curve["r2"][1] <= high
    low, high = curve["recall"]["10"]["ci95"][0]
    assert low < curve["recall"]["10"]["value"][0] < high


def test_intervals_cover_the_truth_of_new_items():
    """R2 of new items by the same kind of regression lies in most intervals."""
    covered = 0
    weights = noise(3, 2, seed=99)
    for seed in range(20):
        x = noise(150, 3, seed=seed)
        y = x @ weights + 2 * noise(150, 2, seed=seed + 1000)
        low, high = regress([x], [y], seed=seed).curve(None, 0, seed)["ci95"][0]
        expected = float((weights.square().sum(0) / (weights.square().sum(0) + 4)).mean())
        covered += low <= expected <= high
    assert covered >= 16


def test_layers_that_are_the_same_for_every_item_have_no_r2():
    x = noise(40, 4)
    same = torch.ones(40, 3)
    assert constant([x, same]) == [1]
    curve = regress([x], [same, x], nulls=2).curve(0, None, 0)
    assert curve["r2"][0] is None
    assert curve["ci95"][0] is None
    assert curve["recall"]["1"]["value"][0] is None
    assert curve["r2"][1] > 0.9
    assert regress([same], [x]).curve(None, 0, 0)["r2"] == [pytest.approx(0, abs=1e-9)]


def test_bad_regressions():
    x = noise(10, 2)
    for folds in (1, 6):
        with pytest.raises(ValueError, match=r"folds must be in 2\.\.5 for 10 items"):
            regress([x], [x], folds=folds)
    with pytest.raises(ValueError, match=r"ys\[0\] has 9"):
        regress([x], [x[:9]])
    broken = x.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(ValueError, match="layer 1 of xs holds nan"):
        regress([x, broken], [x])


# --- labels ---


def label(values, types=None, name="thing"):
    return Label(name, "made up", tuple(values), tuple(types or values))


def test_probes_are_scikit_learns_and_selectivity_is_what_the_control_leaves():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = [i % 3 for i in range(90)]
    clear = noise(90, 5) + torch.nn.functional.one_hot(torch.tensor(values), 5) * 2
    blind = noise(90, 5, seed=1)
    found, notes = classify([clear, blind], label(values, [i // 3 for i in range(90)]), seed=0, controls=4)
    assert notes == []
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for number, features in enumerate((clear, blind)):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=100 / 5, max_iter=1000, random_state=0))
        expected = cross_val_predict(pipeline, features.numpy(), np.array(values), cv=folds) == np.array(values)
        assert found.right[number].bool().tolist() == expected.tolist()
    assert found.majority == pytest.approx(1 / 3)
    plain = found.plain(0)
    assert plain["accuracy"]["value"][0] > 0.75 > 0.5 > plain["accuracy"]["value"][1]
    for i in range(2):
        difference = plain["accuracy"]["value"][i] - plain["control"]["value"][i]
        assert plain["selectivity"]["value"][i] == pytest.approx(difference, abs=2e-6)
        low, high = plain["accuracy"]["ci95"][i]
        assert low <= plain["accuracy"]["value"][i] <= high


def test_a_probe_that_can_learn_by_heart_has_a_high_control_and_little_selectivity():
    """Features that name an item's type: any function of the type can be read off them, the random one too."""
    types = [i % 12 for i in range(240)]
    values = [t % 2 for t in types]
    features = torch.nn.functional.one_hot(torch.tensor(types), 12) + 0.05 * noise(240, 12)
    named, _ = classify([features], label(values, types), seed=0)
    assert named.plain(0)["accuracy"]["value"][0] == 1
    assert named.plain(0)["control"]["value"][0] > 0.95
    assert named.shared == 1
    coarse = torch.nn.functional.one_hot(torch.tensor(values), 2) + 0.05 * noise(240, 2)
    general, _ = classify([coarse], label(values, types), seed=0)
    assert general.plain(0)["accuracy"]["value"][0] == 1
    assert general.plain(0)["control"]["value"][0] < 0.85


def test_a_label_whose_classes_are_single_types_has_no_control_task():
    """Where a caption names the class, a random answer by caption is the class under another name."""
    values = tuple("abc"[i % 3] for i in range(60))
    by_caption = Label("class", "", values, tuple(f"a photo of a {value}." for value in values))
    features = noise(60, 6)
    found, notes = classify([features], by_caption, folds=3)
    plain = found.plain(0)
    assert plain["control"] is plain["selectivity"] is None
    assert plain["accuracy"] is not None
    assert any("no control task" in note for note in notes)
    finer = Label("class", "", values, tuple(f"{value} {i % 2}" for i, value in enumerate(values)))
    assert classify([features], finer, folds=3)[0].plain(0)["control"] is not None


def test_control_answers_are_a_random_function_of_the_type_with_classes_as_large():
    types = np.array([0, 1, 2, 3, 4, 5] * 50)
    values = np.array([0, 0, 0, 0, 0, 1] * 50)
    rng = np.random.default_rng(0)
    of_type = np.zeros(6)
    for _ in range(200):
        answers = control(values, types, rng)
        assert all(len(set(answers[types == t])) == 1 for t in range(6))
        assert answers.sum() == values.sum()
        of_type += [answers[types == t][0] for t in range(6)]
    assert of_type.min() > 15  # of about 33: no type is more likely than another
    uneven = np.array([0] * 7 + [1] * 3 + [2] * 2)
    for _ in range(50):  # one type of most items leaves no class without an answer
        assert len(set(control(np.array([0, 1] * 6), uneven, rng))) == 2


def test_labels_that_cannot_be_probed():
    with pytest.raises(ValueError, match="label thing: all 10 items are red; a probe needs two classes"):
        classify([noise(10, 2)], label(["red"] * 10))
    with pytest.raises(ValueError, match=r"1 of its 3 classes have 5 items, one for each fold \(the largest has 8\)"):
        classify([noise(10, 2)], label(["red"] * 8 + ["blue", "green"]))
    items, values, _, notes = label(["red"] * 6 + ["blue"] * 5 + ["green", None]).usable(5)
    assert items.tolist() == list(range(11))
    assert values.tolist() == [1] * 6 + [0] * 5
    assert notes == ["label thing: 1 class(es) of fewer than 5 items left out (1 items)"]
    with pytest.raises(ValueError, match="folds must be 2 or more"):
        classify([noise(10, 2)], label([0, 1] * 5), folds=1)


def test_labels_of_the_shipped_scenes_are_what_they_say():
    scenes = load_dataset("scenes")
    found = labels_of(scenes)
    assert list(found) == ["count", "shape", "colour", "relation"]
    for i, (said, meta) in enumerate(zip(scenes.captions, scenes.meta, strict=True)):
        things, places = meta["scene"]["things"], meta["scene"]["places"]
        assert found["count"].values[i] == len(things)
        assert (found["shape"].values[i] is None) == (len(things) != 1)
        if len(things) == 1:
            assert found["shape"].values[i] == things[0]["shape"]
            assert found["colour"].values[i] in said[0].lower()
        side = found["relation"].values[i]
        if side is not None:
            left = things[0 if places[0][0] < places[1][0] else 1]["shape"]
            assert len(things) == 2
            assert side == ("left" if left == min(t["shape"] for t in things) else "right")
    for one in found.values():
        items, values, types, _ = one.usable(5)
        assert len(items) > 100
        # A type settles the value, and is finer.
        assert all(len(set(values[types == t])) == 1 for t in set(types))
        assert len(set(types)) > len(set(values))
        assert (np.bincount(types)[types] > 1).mean() > 0.75


def test_labels_of_other_sets(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    lines = []
    kinds = ("n01440764", "n02979186", "n07753592")
    for i in range(12):
        name = f"images/{kinds[i % 3]}_{i}.png"
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        more = {
            "label": f"class {i % 3}",
            "again": i % 3,
            "name": f"picture {i}",
            "indoors": i % 2 == 0,
            "size": [1, 2],
        }
        lines.append(json.dumps({"image": name, "caption": f"caption {i}", **more, "empty": None, "scene": "none"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    found = labels_of(load_dataset(tmp_path))
    assert list(found) == ["class", "indoors", "kind"]  # `again` has the same classes, `name` names each picture
    assert found["kind"].values[:3] == ("animal", "artefact", "food")
    assert found["indoors"].values[:2] == (True, False)
    assert found["class"].types[4] == "caption 4"


def test_a_set_without_labels(blurs):
    assert labels_of(load_dataset(blurs("plain", 4))) == {}
