"""`alignlab restore train`, `eval` and `apply` from the command line, on small random models and a folder of pictures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab import training
from alignlab.cli import run
from alignlab.data import resize, to_tensor
from alignlab.restoration import design, fit
from alignlab.restoration.design import find


@pytest.fixture(scope="module")
def photos(blurs):
    return blurs("photos", 15)


@pytest.fixture(scope="module")
def command(small_mae, small_llm, photos):
    def make(*more: object) -> list[str]:
        models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", str(photos), "--dtype", "float32"]
        size = ["--steps", "4", "--batch-size", "3", "--warmup", "1", "--task-tokens", "2", "--device", "cpu"]
        return ["restore", "train", *models, *size, *map(str, more)]

    return make


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    assert run(command("--task", "denoise", "--task", "rotate", "--out", folder)) == 0
    return folder


def plain(folder):
    """result.json, read as strictly as JSON is."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "result.json").read_text(), parse_constant=refuse)


def test_what_a_training_leaves(trained, photos, small_mae, small_llm):
    result = plain(trained)
    assert result["schema"] == "alignlab.restore-train/1"
    assert [(one["task"], one["n"], one["misaligned"] >= 0) for one in result["evaluations"]] == [
        ("denoise", 3, True),  # each fifth of 15 is held out
        ("rotate", 3, True),
    ]
    assert result["evaluations"][1]["degraded"]["psnr"] == {"mean": None, "ci95": None, "infinite": 3}
    assert result["learnt"]["images"] == 12
    assert (result["recipe"]["steps"], result["recipe"]["dtype"]) == (4, "float32")
    assert (result["design"]["encoder"], result["design"]["llm"]) == ("small-mae", "small-llm")
    assert result["data"][0]["name"] == "photos"
    result["environment"].pop("command")  # as it was typed
    said = json.dumps(result) + (trained / "README.md").read_text()
    assert not any(str(path.parent) in said for path in (photos, small_mae, small_llm, trained))
    for one in result["evaluations"]:
        with Image.open(trained / one["picture"]) as picture:
            assert min(picture.size) > 100
    for task in ("denoise", "rotate"):
        assert len(list((trained / "samples").glob(f"{task}-*.jpg"))) == 4
        with Image.open(trained / "samples" / f"{task}-000004.jpg") as picture:
            picture.load()


def test_tensorboard_has_curves_and_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "logs"))
    events.Reload()
    assert {"loss/visual", "loss/text"} <= set(events.Tags()["scalars"])
    assert events.Scalars("loss/visual")[-1].step == 4
    for label in ("denoise/given", "denoise/lm4lv", "rotate/truth"):
        tag = next(tag for tag in events.Tags()["images"] if tag.startswith(label))
        assert [one.step for one in events.Images(tag)] == [1, 2, 3, 4]


def test_a_finished_run_is_read_and_another_one_refused(trained, command, capsys, monkeypatch, tmp_path):
    both = ("--task", "denoise", "--task", "rotate", "--out", trained)
    before = (trained / "result.json").read_text()
    monkeypatch.setattr(fit, "fit", None)  # nothing trains
    assert run(command(*both, "--json", tmp_path / "copy.json")) == 0
    shown = capsys.readouterr().out
    assert "misaligned" in shown
    result = json.loads(before)
    psnr, ssim = (result["evaluations"][0][key][name] for key, name in (("lift", "psnr"), ("gain", "ssim")))
    above = f"{psnr['mean']:+.2f} ({psnr['ci95'][0]:+.2f} to {psnr['ci95'][1]:+.2f})"
    told = f"{ssim['mean']:+.3f} ({ssim['ci95'][0]:+.3f} to {ssim['ci95'][1]:+.3f})"
    assert f"denoise on photos: restored minus degraded {above} dB; gain in SSIM {told}" in shown
    assert "rotate on photos: gain in SSIM" in shown
    card = (trained / "README.md").read_text()
    assert f"| {above} |" in card
    assert f"| {told} |" in card
    assert " --dtype float32" in card
    assert json.loads((tmp_path / "copy.json").read_text()) == result
    for options, said in (
        (("--lr", "0.1"), "its lr is 0.003, not 0.1"),
        (("--steps", "5"), "its steps is 4, not 5"),
        (("--lora", "1"), "its design's lora is 0, not 1"),
        (("--features", "raw"), "its design's features is whitened, not raw"),
        (("--encoder", "pca"), "not pca"),
        (("--dtype", "bfloat16"), "its dtype is float32, not bfloat16"),
    ):
        assert run(command(*both, *options)) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert "state.pt belongs to another run" in error[0]
        assert said in error[0]
    assert (trained / "result.json").read_text() == before


def test_other_pictures_of_the_same_name_are_refused(command, photos, tmp_path, capsys):
    other = tmp_path / "photos"
    shutil.copytree(photos, other)
    assert run(command("--data", other, "--n", "0", "--out", tmp_path / "out")) == 0
    (other / "01.txt").unlink()  # captions are not read
    assert run(command("--data", f"{other}/", "--n", "0", "--out", tmp_path / "out")) == 0
    shutil.copy(other / "02.png", other / "01.png")
    assert run(command("--data", other, "--n", "0", "--out", tmp_path / "out")) == 2
    assert "belongs to another run: its data is" in capsys.readouterr().err


def test_more_images_to_measure_on_train_nothing_again(command, monkeypatch, tmp_path):
    assert run(command("--n", "1", "--out", tmp_path)) == 0
    first = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "state.pt").unlink()  # which resumes a training, and is not needed any more
    monkeypatch.setattr(fit, "fit", None)  # nothing trains
    assert run(command("--n", "2", "--out", tmp_path)) == 0
    second = json.loads((tmp_path / "result.json").read_text())
    assert (second["learnt"], second["trained"]) == (first["learnt"], first["trained"])
    assert [one["n"] for one in second["evaluations"]] == [2]
    assert second["evaluations"][0]["each"]["psnr"][0] == first["evaluations"][0]["each"]["psnr"][0]
    assert plain(tmp_path)["evaluations"][0]["n"] == 2


def test_killed_and_run_again_it_is_the_same(command, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    assert run(command("--out", tmp_path / "whole")) == 0
    step, done = fit.Restoring.step, []

    def until_killed(self, images, share):
        done.append(share)
        if len(done) == 3:
            raise KeyboardInterrupt
        return step(self, images, share)

    monkeypatch.setattr(fit.Restoring, "step", until_killed)
    assert run(command("--out", tmp_path / "again")) == 1
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(fit.Restoring, "step", step)
    # The whitening that it began with counts, not another fit of it.
    monkeypatch.setattr("alignlab.restoration.design.whitened", None)
    assert run(command("--out", tmp_path / "again")) == 0
    one, other = (load_file(tmp_path / name / "adapters.safetensors") for name in ("whole", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    for column in ("learnt", "evaluations"):
        found = [plain(tmp_path / name)[column] for name in ("whole", "again")]
        if column == "learnt":
            for x in found:
                x.pop("seconds")
        assert found[0] == found[1]


def test_whitening_without_a_state_is_of_no_run(command, tmp_path):
    from safetensors.torch import load_file, save_file

    assert run(command("--n", "0", "--out", tmp_path / "a")) == 0
    (tmp_path / "b").mkdir()
    stale = {k: x * 2 if k != "components" else x for k, x in load_file(tmp_path / "a/coordinates.safetensors").items()}
    save_file(stale, tmp_path / "b" / "coordinates.safetensors")
    assert run(command("--n", "0", "--out", tmp_path / "b")) == 0
    one, other = (load_file(tmp_path / name / "adapters.safetensors") for name in ("a", "b"))
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_a_damaged_or_lost_whitening_is_named(command, tmp_path, capsys):
    assert run(command("--n", "0", "--out", tmp_path)) == 0
    (tmp_path / "coordinates.safetensors").write_bytes(b"nothing")
    (tmp_path / "result.json").unlink()
    assert run(command("--n", "0", "--out", tmp_path)) == 2
    assert "coordinates.safetensors is damaged" in capsys.readouterr().err
    (tmp_path / "coordinates.safetensors").unlink()
    assert run(command("--n", "0", "--out", tmp_path)) == 2
    assert "coordinates.safetensors is gone, and the run cannot go on" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_exits_1(command, tmp_path, capsys):
    assert run(command("--lr", "1e30", "--out", tmp_path)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train lm4lv: the loss is not finite at step" in error
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "blur"], "--task must be one of denoise"),
        (["--task", "mask", "--task", "mask"], "--task must be different names"),
        (["--how", "magic"], "--how must be one of lm4lv, vit-llm, linear, mlp, transformer, got 'magic'"),
        (["--features", "cooked"], "--features must be one of whitened, raw"),
        (["--task-tokens", "0"], "--task-tokens must be more than 0"),
        (["--lora", "-1"], "--lora must be 0 or more"),
        (["--lora", "1", "--how", "linear"], "--lora is for lm4lv"),
        (["--causal"], "--causal and rotary are for vit-llm"),
        (["--begin", "plainly"], "--begin must be one of fitted, scaled, plain, got 'plainly'"),
        (["--begin", "plain", "--how", "mlp"], "--begin is for lm4lv and vit-llm; mlp begins as the identity"),
        (["--recipe", "mine"], "--recipe must be embedded or paper"),
        (["--steps", "0"], "--steps must be more than 0"),
        (["--steps", "3", "--epochs", "1"], "--steps and --epochs both say how long to train"),
        (["--batch-size", "-3"], "--batch-size must be more than 0"),
        (["--accumulate", "0"], "--accumulate must be more than 0"),
        (["--lr", "nan"], "--lr must be more than 0"),
        (["--warmup", "-1"], "--warmup must be 0 or more"),
        (["--n", "-1"], "--n must be 0 or more"),
        (["--workers", "-1"], "--workers must be 0 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--crops", "0"], "--crops must be more than 0"),
        (["--dtype", "float16"], "--dtype must be auto, bfloat16 or float32"),
        (["--how", "linear", "--dtype", "int8"], "--dtype must be auto, bfloat16 or float32"),
        (["--device", "tpu"], "--device must be auto, cpu or cuda"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
        (["--encoder", "nothing"], "unknown encoder 'nothing'"),
        (["--encoder", "timm:test_vit.r160_in1k@random"], "has no decoder; --encoder takes a MAE"),
        (["--encoder", "mae+whitened"], "whitening is fitted to pictures"),
        (["--decoder", "nowhere-to-be-found"], "nowhere-to-be-found"),
        (["--llm", "nothing-of-this-name"], "nothing-of-this-name"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_bad_options_exit_2(command, tmp_path, capsys, arguments, said):
    assert run(command("--n", "0", "--out", tmp_path / "out", *arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "out").exists()


def test_several_processes_need_a_named_folder(command, capsys, monkeypatch):
    monkeypatch.setattr(training, "processes", lambda device="cpu": training.Processes(1, 2))
    assert run(command()) == 2
    assert "--out is needed under accelerate launch" in capsys.readouterr().err


# --- eval ---


def test_eval(trained, photos, tmp_path, capsys, report_of):
    command = ["restore", "eval", "--checkpoint", str(trained), "--data", str(photos), "--dtype", "float32"]
    assert run([*command, "--out", str(tmp_path), "--json", str(tmp_path / "too.json")]) == 0
    result = plain(tmp_path)
    assert result == json.loads((tmp_path / "too.json").read_text())
    ours = {one["task"]: one for one in plain(trained)["evaluations"]}
    assert [one["task"] for one in result["results"]] == ["denoise", "rotate"]
    page = report_of(tmp_path, trained)
    assert "alignlab restore eval" in page
    assert "alignlab restore train" in page
    assert "denoise on" in page
    assert {one["trained"].partition("@")[2][:7] for one in result["results"]} == {"sha256:"}
    for one in result["results"]:  # what training measured, on the pictures it left out
        for column in ("degraded", "alone", "restored", "gain"):
            for figure in ("psnr", "ssim"):
                wanted = ours[one["task"]][column][figure]["mean"]
                assert one[column][figure]["mean"] == (wanted and pytest.approx(wanted, rel=1e-4, abs=1e-4))
        assert (tmp_path / one["picture"]).stat().st_size > 1000
    result["environment"].pop("command")
    assert str(photos.parent) not in json.dumps(result)
    assert "misaligned" in capsys.readouterr().out


def test_eval_with_other_strengths_in_free_mode(trained, photos, tmp_path, capsys):
    """Of two checkpoints whose folders have one name."""
    other = tmp_path / "others" / trained.name
    shutil.copytree(trained, other)
    checkpoints = [part for folder in (trained, other, trained) for part in ("--checkpoint", str(folder))]
    more = ["--task", "denoise", "--strength", "sigma=80,80", "--mode", "free", "--n", "2", "--out", str(tmp_path)]
    assert run(["restore", "eval", *checkpoints, "--data", str(photos), *more]) == 0
    first, second = plain(tmp_path)["results"]
    assert (first["strength"], first["mode"], first["n"]) == ({"sigma": [80, 80]}, "free", 2)
    assert (first["checkpoint"], second["checkpoint"]) == ("tiny", "tiny-2")
    assert first["picture"] != second["picture"]
    shown = capsys.readouterr().out
    assert "tiny-2, denoise (sigma=80,80) on photos: " in shown
    assert "where it reads the true answer so far" in shown


def test_eval_of_several_strengths(trained, photos, tmp_path, capsys):
    """Of the first there are pictures; a page tells of each how strongly was spoilt, and so does the terminal."""
    more = [part for x in ("90,90", "0,20") for part in ("--strength", f"sigma={x}")]
    command = ["restore", "eval", "--checkpoint", str(trained), "--data", str(photos), *more, "--n", "3"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    results = plain(tmp_path / "out")["results"]
    asked = [(one["task"], (one["strength"] or {}).get("sigma"), "picture" in one) for one in results]
    assert asked == [("denoise", [90, 90], True), ("denoise", [0, 20], False), ("rotate", None, True)]
    strong, weak = (one["degraded"]["psnr"]["mean"] for one in results[:2])
    assert strong < weak - 5
    assert "denoise (sigma=90,90)" in told
    assert "denoise (sigma=0,20)" in told
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".jpg", ".png"}
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2
    assert run(["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "denoise (sigma=90,90) on photos" in page
    assert "denoise (sigma=0,20) on photos" in page
    assert "missing" not in capsys.readouterr().err


def test_eval_opens_all_sets_before_it_measures_one(trained, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alignlab.restoration.design.load", None)
    command = ["restore", "eval", "--checkpoint", str(trained), "--data", str(photos), "--data", "nowhere"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    assert "no data set 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sets_whose_names_are_no_file_names(command, photos, tmp_path):
    """A set of the hub's is called hf:OWNER/NAME:SPLIT."""
    hub = pytest.importorskip("datasets")
    pictures = [str(path) for path in sorted(photos.iterdir()) if path.suffix in (".png", ".jpg")]
    columns = {"image": pictures, "caption": ["a picture"] * len(pictures)}
    hub.Dataset.from_dict(columns).cast_column("image", hub.Image()).save_to_disk(str(tmp_path / "set"))
    words = [
        str(word) if word != str(photos) else f"hf:{tmp_path / 'set'}" for word in command("--out", tmp_path / "out")
    ]
    assert run(words) == 0
    (one,) = plain(tmp_path / "out")["evaluations"]
    assert (one["data"]["name"], one["picture"]) == ("hf:set", "hf-set-denoise.jpg")
    evaluated = ["restore", "eval", "--checkpoint", str(tmp_path / "out"), "--data", f"hf:{tmp_path / 'set'}"]
    assert run([*evaluated, "--dtype", "float32", "--out", str(tmp_path / "eval")]) == 0
    (two,) = plain(tmp_path / "eval")["results"]
    assert two["restored"]["psnr"]["mean"] == pytest.approx(one["restored"]["psnr"]["mean"], abs=1e-3)
    assert (tmp_path / "eval" / two["picture"]).is_file()


def test_eval_says_what_is_not_known_to_be_unseen(trained, photos, tmp_path, capsys):
    """The same pictures as another set: what was learnt from is told by a set's content."""
    (tmp_path / "few").mkdir()
    for path in sorted(photos.glob("0[0-5].*")):
        shutil.copy(path, tmp_path / "few")
    command = ["restore", "eval", "--checkpoint", str(trained), "--task", "denoise", "--task", "denoise"]
    for data, unsure in ((photos, False), (tmp_path / "few", True)):
        assert run([*command, "--data", str(data), "--dtype", "float32", "--out", str(tmp_path / "out")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("images that were not trained on" in shown) is not unsure
        assert (f"learnt from pictures of {data.name} is not known" in shown) is unsure
        (one,) = plain(tmp_path / "out")["results"]  # a task given twice is one
        assert one["held_out"] is not unsure
        assert one["laboratory"] == "own"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "blur"], "--task must be one of"),
        (["--task", "flip"], "has learnt denoise, rotate"),
        (["--strength", "sigma=9,9", "--strength", "sigma=9, 9"], "--strength sigma=9, 9 is given twice"),
        (["--strength", "grain=1"], "--strength grain=1: denoise takes sigma; rotate takes turns"),
        (["--task", "denoise", "--strength", "sigma"], "--strength must be NAME=NUMBER"),
        (["--task", "denoise", "--strength", "sigma=9"], "--strength of denoise: sigma must be two numbers"),
        (["--mode", "loud"], "--mode must be forced or free"),
        (["--n", "0"], "--n must be more than 0"),
        (["--dtype", "int8"], "--dtype must be"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
        (["--encoder", "pca"], "was trained with the encoder small-mae@"),
        (["--checkpoint", "nowhere"], "give a folder that `alignlab restore train` wrote"),
    ],
)
def test_bad_options_of_eval_exit_2(trained, photos, tmp_path, capsys, arguments, said):
    command = ["restore", "eval", "--checkpoint", str(trained), "--out", str(tmp_path)]
    assert run([*command, *([] if "--data" in arguments else ["--data", str(photos)]), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


# --- apply ---


def test_apply(trained, photos, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "01.png", tmp_path / "more" / "00.png")
    pictures = [str(photos / "00.png"), str(tmp_path / "more" / "00.png")]
    command = ["restore", "apply", *pictures, "--checkpoint", str(trained), "--dtype", "float32"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    assert "read at 32 x 32 pixels" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00-denoise-2.png",
        "00-denoise.png",
        "result.json",
    ]
    first, second = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").glob("*.png")))
    assert first.shape == (32, 32, 3)
    assert not np.array_equal(first, second)
    model, _, _ = design.load(str(trained), dtype="float32")
    given = resize(to_tensor(Image.open(pictures[1]).convert("RGB"))[None], 32)
    # Rounded as evaluation does, not cut off; a last digit of the sums may tip a pixel.
    apart = model.restore(given, "denoise")[0].permute(1, 2, 0).mul(255).numpy() - first
    assert np.abs(apart).max() <= 0.51


def test_apply_tells_what_it_did_to_a_picture(trained, tmp_path, capsys):
    Image.new("RGB", (50, 3), "red").save(tmp_path / "wide.png")
    command = ["restore", "apply", str(tmp_path / "wide.png"), "--checkpoint", str(trained), "--dtype", "float32"]
    assert run([*command, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "too.json")]) == 0
    assert "wide.png (50 x 3): squeezed into a square" in capsys.readouterr().out
    result = plain(tmp_path / "out")
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert result["pictures"] == [{"image": "wide.png", "size": [50, 3], "restored": "wide-denoise.png"}]
    assert (result["read_at"], result["laboratory"]) == (32, "own")
    assert result["steps"] == {"done": 4, "planned": 4, "images": 12}
    assert result["trained"].startswith("tiny@sha256:")


def test_apply_without_an_image_writes_none(trained, photos, tmp_path, capsys):
    """The small language model was never taught to open an image by itself."""
    command = ["restore", "apply", str(photos / "00.png"), "--checkpoint", str(trained), "--mode", "free"]
    assert run([*command, "--dtype", "float32", "--out", str(tmp_path)]) == 1
    assert "1 of 1 answers never opened an image, so that there is no picture of 00.png" in capsys.readouterr().err
    assert plain(tmp_path)["pictures"][0]["restored"] is None
    assert list(tmp_path.glob("*.png")) == []


def test_unfinished_adapters_are_called_so(trained, photos, tmp_path, capsys):
    from alignlab import trained as files

    described, state = files.read(trained, "restore train")
    about = {**described["about"], "steps": 2}
    files.write(tmp_path / "half", state, described["design"], described["frozen"], about)
    command = ["--checkpoint", str(tmp_path / "half"), "--dtype", "float32", "--out", str(tmp_path / "out")]
    assert run(["restore", "apply", str(photos / "00.png"), *command]) == 0
    assert "half is unfinished: step 2 of 4" in capsys.readouterr().out
    assert run(["restore", "eval", "--data", str(photos), "--task", "denoise", *command]) == 0
    assert "half is unfinished: step 2 of 4" in capsys.readouterr().out
    assert plain(tmp_path / "out")["results"][0]["steps"] == {"done": 2, "planned": 4, "images": 6}


def test_a_name_of_both_is_not_guessed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "denoise-mae-smollm2")
    assert run(["restore", "eval", "--checkpoint", "denoise-mae-smollm2"]) == 2
    assert "comes with alignlab, and is a folder here too; for the folder write ./denoise" in capsys.readouterr().err
    assert find("./denoise-mae-smollm2").resolve() == (tmp_path / "denoise-mae-smollm2").resolve()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{photo}", "--task", "flip"], "--task flip: "),
        (["{photo}", "--mode", "loud"], "--mode must be forced or free"),
        (["{photo}", "--batch-size", "0"], "--batch-size must be more than 0"),
        (["nothing.png"], "nothing.png"),
        (["{text}"], "00.txt"),
        ([], "Missing argument"),
    ],
)
def test_bad_options_of_apply_exit_2(trained, photos, tmp_path, capsys, arguments, said):
    given = [one.format(photo=photos / "00.png", text=photos / "00.txt") for one in arguments]
    assert run(["restore", "apply", *given, "--checkpoint", str(trained), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


def test_data_that_are_not_there_leave_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["restore", "train", "--data", "nowhere"]) == 2
    assert "no data set 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
