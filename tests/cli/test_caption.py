"""`alignlab caption train`, `generate` and `eval` from the command line, on small random models and a folder of pictures."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alignlab import training
from alignlab.captioning import CLIPScorer, coco_metrics, fit
from alignlab.cli import run
from alignlab.data import load_dataset


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture(scope="module")
def photos(blurs):
    return blurs("photos", 15, caption="a blur of number {}\nit is a blur\n")


@pytest.fixture(scope="module")
def judge(small_judge):
    return small_judge


@pytest.fixture(scope="module")
def command(small_mae, small_llm, photos):
    def make(*more: object) -> list[str]:
        models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", str(photos), "--dtype", "float32"]
        size = ["--steps", "4", "--batch-size", "3", "--lr", "0.05", "--device", "cpu"]
        return ["caption", "train", *models, *size, *map(str, more)]

    return make


@pytest.fixture(scope="module")
def trained(command, judge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        assert run(command("--judge", judge, "--out", folder)) == 0
    return folder


@pytest.fixture(scope="module")
def control(command, small_mae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "tiny-random"
    assert run(command("--encoder", f"{small_mae}@random", "--n", "0", "--out", folder)) == 0
    return folder


def plain(folder):
    """result.json, read as strictly as JSON is."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "result.json").read_text(), parse_constant=refuse)


def test_what_a_training_leaves(trained, photos, small_mae, small_llm, judge):
    result = plain(trained)
    assert result["schema"] == "alignlab.caption-train/1"
    assert result["laboratory"] == "own"
    (one,) = result["evaluations"]
    assert (one["n"], one["items"]) == (3, [0, 5, 10])  # each fifth of 15 is held out
    assert one["judge"].startswith("open_clip:small-judge/judge.safetensors@sha256:")
    assert set(one["scores"]) == {"generated", "shuffled", "human"}
    assert {"CLIPScore", "RefCLIPScore", "BLEU-4", "ROUGE-L", "CIDEr"} <= set(one["scores"]["generated"])
    assert set(one["left_out"]) == {"METEOR", "SPICE"}
    assert (result["learnt"]["images"], result["learnt"]["learnt"], result["learnt"]["parameters"]) == (12, 12, 600)
    assert (result["recipe"]["steps"], result["recipe"]["warmup"], result["recipe"]["dtype"]) == (4, 1, "float32")
    assert (result["design"]["encoder"], result["design"]["llm"]) == ("small-mae", "small-llm")
    assert result["judge"] == "small-judge/judge.safetensors"
    result["environment"].pop("command")  # as it was typed
    said = json.dumps(result) + (trained / "README.md").read_text()
    assert not any(str(path.parent) in said for path in (photos, small_mae, small_llm, trained))
    assert judge.rpartition("/")[0].partition("/")[2] not in said
    for picture in (one["picture"], "loss.png", "samples/000004.jpg"):
        with Image.open(trained / picture) as made:
            assert min(made.size) > 100
    readme = (trained / "README.md").read_text()
    assert "| CIDEr | " in readme
    assert "--steps 4" in readme
    assert "each fifth is held out" in readme


def test_tensorboard_has_the_curve_and_captions(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "logs"))
    events.Reload()
    assert events.Scalars("loss/loss")[-1].step == 4
    assert [one.step for one in events.Tensors("captions/text_summary")] == [1, 2, 3, 4]


def test_a_finished_run_is_read_and_another_one_refused(trained, command, judge, capsys, monkeypatch, tmp_path):
    before = (trained / "result.json").read_text()
    monkeypatch.setattr(fit, "fit", None)  # nothing trains
    assert run(command("--judge", judge, "--out", trained, "--json", tmp_path / "copy.json")) == 0
    assert "shuffled" in capsys.readouterr().out
    assert json.loads((tmp_path / "copy.json").read_text()) == json.loads(before)
    for options, said in (
        (("--lr", "0.1"), "its lr is 0.05, not 0.1"),
        (("--steps", "5"), "its steps is 4, not 5"),
        (("--prefix", "A picture of"), "its design's prefix is , not A picture of"),
        (("--subset", "3"), "its data's learnt is 12, not 3"),
        (("--encoder", "pca"), "not pca"),
        (("--test", "scenes"), "its data's learnt is 12, not 15"),
    ):
        assert run(command("--judge", judge, "--out", trained, *options)) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert "state.pt belongs to another run" in error[0]
        assert said in error[0]
    assert (trained / "result.json").read_text() == before


def test_killed_and_run_again_it_is_the_same(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    assert run(command("--judge", "none", "--out", tmp_path / "whole")) == 0
    step = fit.Captioning.step

    def until_killed(self, items, done):
        if done == 0.5:
            raise KeyboardInterrupt
        return step(self, items, done)

    monkeypatch.setattr(fit.Captioning, "step", until_killed)
    assert run(command("--judge", "none", "--out", tmp_path / "again")) == 1
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(fit.Captioning, "step", step)
    assert run(command("--judge", "none", "--out", tmp_path / "again")) == 0
    one, other = (load_file(tmp_path / name / "adapters.safetensors") for name in ("whole", "again"))
    assert one.keys() == other.keys() == {"projector.weight", "projector.bias"}
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    found = [plain(tmp_path / name) for name in ("whole", "again")]
    assert found[0]["evaluations"] == found[1]["evaluations"]
    assert found[0]["learnt"]["log"] == found[1]["learnt"]["log"]


def test_another_judge_trains_nothing_again(command, judge, tmp_path):
    assert run(command("--judge", "none", "--n", "2", "--out", tmp_path)) == 0
    state = (tmp_path / "state.pt").read_bytes()
    assert plain(tmp_path)["evaluations"][0]["left_out"]["CLIPScore"] == "no judge was wanted"
    assert run(command("--judge", judge, "--out", tmp_path)) == 0
    assert (tmp_path / "state.pt").read_bytes() == state
    assert "CLIPScore" in plain(tmp_path)["evaluations"][0]["scores"]["generated"]


def test_epochs_and_the_papers_recipe(command, tmp_path):
    few = ["--steps", "4", "--batch-size", "3"]
    words = [word for word in command("--epochs", "1.5", "--n", "0", "--out", tmp_path / "a") if word not in few]
    assert run([*words, "--batch-size", "3"]) == 0
    recipe = plain(tmp_path / "a")["recipe"]
    assert (recipe["steps"], recipe["batch"], recipe["warmup"]) == (6, 3, 1)  # of 12 items
    words = [word for word in command("--recipe", "paper", "--n", "0", "--out", tmp_path / "b") if word not in few]
    assert run([*words, "--accumulate", "16"]) == 0
    result = plain(tmp_path / "b")
    assert (result["recipe"]["steps"], result["recipe"]["batch"], result["subset"]) == (1, 128, 100_000)
    assert result["evaluations"] == []


def test_a_loss_that_is_not_finite_exits_1(command, tmp_path, capsys):
    assert run(command("--lr", "3e37", "--n", "0", "--out", tmp_path)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train the captioning probe: the loss is not finite at step" in error
    assert not (tmp_path / "adapters.safetensors").exists()


@pytest.mark.parametrize("encoder", ["timm:test_vit.r160_in1k@random", "timm:test_efficientnet.r160_in1k@random"])
def test_encoders_without_a_decoder_will_do(command, tmp_path, encoder):
    assert run(command("--encoder", encoder, "--n", "2", "--judge", "none", "--steps", "1", "--out", tmp_path)) == 0
    assert plain(tmp_path)["design"]["encoder"] == encoder
    assert plain(tmp_path)["frozen"]["encoder"].startswith(encoder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "mine"], "--recipe must be embedded or paper"),
        (["--steps", "0"], "--steps must be more than 0"),
        (["--steps", "3", "--epochs", "1"], "--steps and --epochs both say how long to train"),
        (["--batch-size", "-3"], "--batch-size must be more than 0"),
        (["--accumulate", "0"], "--accumulate must be more than 0"),
        (["--lr", "nan"], "--lr must be more than 0"),
        (["--subset", "0"], "--subset must be more than 0"),
        (["--warmup", "-1"], "--warmup must be 0 or more"),
        (["--n", "-1"], "--n must be 0 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--dtype", "float16"], "--dtype must be auto, bfloat16 or float32"),
        (["--device", "tpu"], "--device must be auto, cpu or cuda"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
        (["--test", "nowhere", "--n", "1"], "no data set 'nowhere'"),
        (["--encoder", "nothing"], "unknown encoder 'nothing'"),
        (["--llm", "nothing-of-this-name"], "nothing-of-this-name"),
        (["--judge", "nobody", "--n", "1"], "open_clip has no model 'nobody'"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_bad_options_of_train_exit_2(command, tmp_path, capsys, arguments, said):
    assert run(command("--n", "0", "--out", tmp_path / "out", *arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "out" / "adapters.safetensors").exists()


def test_processes_that_share_a_training_need_a_folder(command, monkeypatch, capsys):
    monkeypatch.setattr(training, "processes", lambda device="cpu": training.Processes(1, 2))
    assert run(command()) == 2
    assert "--out is needed under accelerate launch" in capsys.readouterr().err


# --- generate ---


def test_generate_says_the_same_of_images_alone_and_together(trained, photos, tmp_path, capsys):
    pictures = [str(photos / name) for name in ("00.png", "07.png")]
    together = ["caption", "generate", "--checkpoint", str(trained), "--dtype", "float32", "--longest", "12"]
    assert run([*together, *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == pictures
    for picture, line in zip(pictures, lines, strict=True):
        assert run([*together, picture]) == 0
        assert capsys.readouterr().out.splitlines() == [line]
    assert run([*together, "--data", str(photos), "--batch-size", "4", "--beams", "2", "--out", str(tmp_path)]) == 0
    found = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [one["item"] for one in found] == list(range(15))
    assert found[3]["references"] == ["a blur of number 3", "it is a blur"]
    assert all(isinstance(one["caption"], str) for one in found)
    assert found[3]["id"] == "03.png"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give pictures, or --data with a set of them, and not both"),
        (["{photo}", "--data", "scenes"], "give pictures, or --data"),
        (["{photo}", "--n", "3"], "--n and --out are for --data"),
        (["{photo}", "--beams", "0"], "--beams must be more than 0"),
        (["{photo}", "--longest", "0"], "--longest must be more than 0"),
        (["{photo}", "--dtype", "int8"], "--dtype must be"),
        (["nothing.png"], "nothing.png"),
        (["{text}"], "00.txt"),
        (["{photo}", "--checkpoint", "nowhere"], "give a folder that `alignlab caption train` wrote"),
        (["{photo}", "--encoder", "pca"], "was trained with the encoder small-mae@"),
    ],
)
def test_bad_options_of_generate_exit_2(trained, photos, capsys, arguments, said):
    given = [one.format(photo=photos / "00.png", text=photos / "00.txt") for one in arguments]
    assert run(["caption", "generate", "--checkpoint", str(trained), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


# --- eval ---


def test_eval_with_a_control(trained, control, photos, judge, tmp_path, capsys, report_of):
    command = ["caption", "eval", "--checkpoint", str(trained), "--control", str(control), "--data", str(photos)]
    options = ["--judge", judge, "--dtype", "float32", "--out", str(tmp_path), "--json", str(tmp_path / "too.json")]
    assert run([*command, *options]) == 0
    result = plain(tmp_path)
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert result["schema"] == "alignlab.caption-eval/1"
    (one,) = result["results"]
    page = report_of(tmp_path)
    assert one["says"] in page
    assert " ".join((one["captions"][0] or "(nothing)").split())[:20] in page
    assert (one["checkpoint"], one["control"], one["items"]) == ("tiny", "tiny-random", [0, 5, 10])
    assert set(one["scores"]) == {"generated", "shuffled", "human", "random"}
    assert set(one["differences"]) == {"shuffled", "human", "random"}
    trained_on = plain(trained)["evaluations"][0]
    for column in ("captions", "scores", "each", "says"):  # what training measured, but for the control
        ours, theirs = one[column], trained_on[column]
        if isinstance(ours, dict):
            ours = {name: ours[name] for name in theirs}
        if column == "says":
            assert ours.startswith(theirs)
        else:
            assert ours == theirs
    data = load_dataset(photos)
    references = [list(data.captions[i]) for i in (0, 5, 10)]
    said = [caption or "." for caption in one["captions"]]
    coco = coco_metrics(said, references)
    assert one["scores"]["generated"]["ROUGE-L"]["score"] == pytest.approx(coco["ROUGE-L"], abs=1e-6)
    name, _, weights = judge.partition("/")
    clip = CLIPScorer(name, weights).score([data[i].image for i in (0, 5, 10)], said, references)
    assert one["each"]["generated"]["CLIPScore"] == pytest.approx(clip.clip_score.tolist(), abs=1e-5)
    assert (tmp_path / one["picture"]).stat().st_size > 1000
    result["environment"].pop("command")
    assert not any(str(path.parent) in json.dumps(result) for path in (photos, trained, control))
    out = capsys.readouterr().out
    assert "generated - shuffled" in out
    assert "with 95% intervals apart" in out
    assert "METEOR" in out  # and why there is none


def test_a_control_among_the_checkpoints_is_found(trained, control, photos, tmp_path):
    command = ["caption", "eval", "--checkpoint", str(control), "--checkpoint", str(trained), "--data", str(photos)]
    assert run([*command, "--judge", "none", "--n", "2", "--out", str(tmp_path)]) == 0
    random, ours = plain(tmp_path)["results"]
    assert (random["control"], ours["control"]) == (None, "tiny-random")
    assert ours["scores"]["random"] == random["scores"]["generated"]
    assert random["picture"] != ours["picture"]


def test_eval_on_images_learnt_from_is_refused(command, photos, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    (other / "00.txt").write_text("another caption\n")
    assert run(command("--test", other, "--n", "1", "--judge", "none", "--out", tmp_path / "out")) == 0
    evaluate = ["caption", "eval", "--checkpoint", str(tmp_path / "out"), "--judge", "none"]
    assert run([*evaluate, "--data", str(photos), "--out", str(tmp_path / "eval")]) == 2
    assert "photos was learnt from, all of it; give images that the probe never saw" in capsys.readouterr().err
    assert run([*evaluate, "--data", str(other), "--n", "2", "--out", str(tmp_path / "eval")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--n", "0"], "--n must be more than 0"),
        (["--beams", "0"], "--beams must be more than 0"),
        (["--dtype", "int8"], "--dtype must be"),
        (["--data", "nowhere"], "no data set 'nowhere'"),
        (["--judge", "nobody"], "open_clip has no model 'nobody'"),
        (["--judge", "small-judge"], "small-judge"),
        (["--judge", "ViT-B-32@random"], "has random weights, which judge nothing"),
        (["--encoder", "pca"], "was trained with the encoder small-mae@"),
        (["--control", "nowhere"], "give a folder that `alignlab caption train` wrote"),
        (["--control", "{trained}"], "reads small-mae; give a probe trained on small-mae@random"),
        (["--checkpoint", "nowhere"], "give a folder that `alignlab caption train` wrote"),
    ],
)
def test_bad_options_of_eval_exit_2(trained, photos, tmp_path, capsys, arguments, said):
    given = [one.format(trained=trained) for one in arguments]
    command = ["caption", "eval", "--checkpoint", str(trained), "--out", str(tmp_path)]
    command += [] if "--data" in given else ["--data", str(photos)]
    assert run([*command, *([] if "--judge" in given else ["--judge", "none"]), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


def test_a_control_that_was_trained_otherwise_is_refused(trained, command, small_mae, photos, tmp_path, capsys):
    options = ["--encoder", f"{small_mae}@random", "--steps", "2", "--n", "0", "--out", tmp_path / "other"]
    assert run(command(*options)) == 0
    evaluate = ["caption", "eval", "--checkpoint", str(trained), "--data", str(photos), "--judge", "none"]
    assert run([*evaluate, "--control", str(tmp_path / "other"), "--out", str(tmp_path / "out")]) == 2
    assert "is no fair control: its recipe's steps is 2, not 4; train both alike" in capsys.readouterr().err


def test_data_that_are_not_there_leave_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["caption", "train", "--data", "nowhere"]) == 2
    assert "no data set 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
