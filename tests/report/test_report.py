"""A page of result files: what it says, what it does with files that lack parts, and that nothing of them is executed."""

import copy
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup, escape
from matplotlib.text import Text

from alignlab.cli import run
from alignlab.report import figures, write_report
from alignlab.report.node import Node
from alignlab.report.page import render
from alignlab.report.source import KINDS, Source, read_all

RESULTS = Path(__file__).parents[2] / "reports" / "results"
KINDS_OF = {"fig5": "reproduce", "probe-linear": "probe-linear", "components": "analyse-components"}
HOSTILE = "<script>alert(1)</script>\"'&${x}{{ 7 * 7 }}$\\frac$"


class Page(HTMLParser):
    """The text of a page, its tags, and what each attribute holds."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.ids = [], [], [], []
        self.inside = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attributes]
        self.ids += [value for key, value in attributes if key == "id"]
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if "script" not in self.inside and "style" not in self.inside:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(path):
    return Page(Path(path).read_text(encoding="utf-8"))


def result(name):
    return json.loads((RESULTS / name / "result.json").read_text())


def altered(tmp_path, name, change):
    """A copy of a committed result with its pictures, changed."""
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder, dirs_exist_ok=True)
    value = result(name)
    change(value)
    (folder / "result.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The page of all that is committed, and what was said of writing it."""
    path = tmp_path_factory.mktemp("everything") / "all.html"
    return write_report([RESULTS], path), path


# --- what a page says ---


def test_one_measurement_makes_a_page_that_reads_well(tmp_path):
    written = write_report([RESULTS / "measure-scenes"], tmp_path / "one.html")
    html = page(tmp_path / "one.html")
    assert written.gaps == []
    assert written.sections == ["Alignment", "How to get these numbers again"]
    for told in (
        "mae, beit and vqgan, and smollm2: do they represent the world alike?",
        "On scenes all 3 encoders are more like smollm2 than shuffled pairings are (p 0.005), and none clearly leads by",
        "0.147 (0.137 to 0.159)",
        "0.029 ± 0.001",
        "Embedded laboratory.",
        "alignlab measure --encoder all",
    ):
        assert told in html.text
    # The files and models by their hashes.
    digest = hashlib.sha256((RESULTS / "measure-scenes" / "result.json").read_bytes()).hexdigest()
    assert digest in html.text
    assert result("measure-scenes")["pairs"][0]["checkpoint"].partition("sha256:")[2] in html.text


def test_the_answer_names_the_encoder_and_what_failed(tmp_path):
    """Of another encoder's row and of other images, too: a reader of the first lines must not take one for the other."""
    write_report([RESULTS / "table2", RESULTS / "denoise-photos"], tmp_path / "page.html")
    first = page(tmp_path / "page.html").text.partition("PSNR in dB and SSIM")[0]
    assert "on scenes, with mae+position, the frozen language model restores" in first.replace("On scenes", "on scenes")
    (photos,) = result("denoise-photos")["results"]
    given, alone, restored = (photos[key]["psnr"]["mean"] for key in ("degraded", "alone", "restored"))
    assert (
        f"Denoise on photos comes to {restored:.1f} dB with denoise-mae-smollm2, clearly below the degraded input ({given:.1f}) "
        f"and clearly below encoder and decoder alone ({alone:.1f})"
    ) in first


def test_the_answer_is_short_enough_to_be_read(everything):
    """Three sentences of everything; the last begins with what the correlation found, not with its caveats."""
    _, path = everything
    top = path.read_text().partition("<dt>Answer</dt>")[2].partition("</dl>")[0]
    said = [unescape(sentence) for sentence in re.findall("<dd>(.*?)</dd>", top)]
    assert len(said) == 3
    assert max(len(sentence.split()) for sentence in said) <= 80
    answer = result("correlation")["readings"][0]
    assert answer in said[2]


def test_a_folder_without_a_result_is_a_gap_beside_others(tmp_path):
    (tmp_path / "stopped").mkdir()
    deep = tmp_path / "runs" / "reproduce" / "embedded" / "fig6"
    shutil.copytree(RESULTS / "fig6", deep)
    written = write_report([tmp_path / "runs", tmp_path / "stopped"], tmp_path / "page.html")
    assert written.gaps == ["stopped: no result.json in it: it was not finished, or is no run"]
    assert "Restoration" in written.sections
    with pytest.raises(ValueError, match=r"stopped has no result\.json"):
        write_report([tmp_path / "stopped"], tmp_path / "page.html")


def test_what_there_is_no_file_of_is_a_gap_too(tmp_path):
    written = write_report([RESULTS / "fig6"], tmp_path / "page.html", lacking=["table7 is left out"])
    assert written.gaps == ["table7 is left out"]
    assert "table7 is left out" in page(tmp_path / "page.html").text


def test_everything_that_is_committed_makes_one_page(everything):
    written, path = everything
    assert [gap for gap in written.gaps if not gap.endswith("is not finished")] == []
    assert written.size < 10e6
    html = page(path)
    assert len(html.ids) == len(set(html.ids))
    table4 = result("table4")
    row = next(row for row in table4["rows"] if row["name"] == "MAE")
    score, paper = row["columns"]["CS"]["score"], row["paper"]["CS"]
    assert f"{score - paper:+.2f}" in html.text  # the difference stands beside both
    assert table4["rows"][0]["gallery"]["truth"][0] in html.text


def test_the_committed_page_is_of_the_committed_results():
    text = (RESULTS.parent / "embedded.html").read_text()
    for path in RESULTS.glob("*/result.json"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text, (
            f"make reports/embedded.html anew: {path.parent.name}"
        )


def test_runs_that_are_not_finished_are_gaps(tmp_path):
    def change(value):
        value["rows"][1] = {"name": "deblur", "status": "missing", "task": "deblur"}

    written = write_report([altered(tmp_path, "table2", change)], tmp_path / "page.html")
    assert "table2: Table 2: deblur is not finished" in written.gaps
    text = page(tmp_path / "page.html").text
    assert "not finished, so not here: deblur (missing)" in text
    assert "not finished)" in text.partition("Restoration")[0]  # the answer says so too


def test_controls_and_ties_are_called_so(tmp_path):
    """Untrained networks are no encoders to lead, and an encoder leads where intervals are apart."""
    write_report([RESULTS / "measure-scenes", RESULTS / "table4"], tmp_path / "page.html")
    answer = page(tmp_path / "page.html").text.partition("Alignment")[0]
    assert "all 3 encoders" in answer
    assert "so is the untrained mae@random" in answer
    assert "the untrained control mae@random" in answer
    assert "none clearly leads by mutual_knn (k=10) or cka" in answer
    write_report([RESULTS / "measure-photos"], tmp_path / "page.html")
    assert (
        "efficientnet-lite0 leads by mutual_knn (k=10) and cka, calibrated (0.102, 0.333)"
        in page(tmp_path / "page.html").text
    )


def test_encoders_by_language_models_are_a_matrix(tmp_path):
    def untrained(value):
        for one in value["pairs"]:
            one.update(llm="smollm2@random", score=0.5, calibrated=0.25, p=0.5)

    (tmp_path / "second").mkdir()
    second = altered(tmp_path / "second", "measure-scenes", untrained)
    write_report([RESULTS / "measure-scenes", second], tmp_path / "page.html")
    html = page(tmp_path / "page.html")
    cells = next(
        json.loads(value) for _, key, value in html.attributes if key == "data-values" and "calibrated" in value
    )
    rows = next(
        json.loads(value) for _, key, value in html.attributes if key == "data-rows" and json.loads(value)[-1] == "mae"
    )
    knn = {one["encoder"]: one for one in result("measure-scenes")["pairs"] if one["metric"] == "mutual_knn"}
    for encoder, (trained, random_) in zip(rows, cells, strict=True):
        assert trained.startswith(f"{knn[encoder]['score']:.3f} (")
        assert f"shuffled {knn[encoder]['null_mean']:.3f}" in trained
        assert trained.endswith(f"calibrated {knn[encoder]['calibrated']:.3f}")
        assert random_.startswith("0.500")
    assert "3 encoders and 2 language models" in html.text
    assert "not so with the untrained smollm2@random" in html.text
    # One language model is no matrix.
    write_report([RESULTS / "measure-scenes"], tmp_path / "page.html")
    assert "language models on" not in page(tmp_path / "page.html").text


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(path.name for path in RESULTS.iterdir())
        if name
        not in ("compute", "induction-random", "denoise-both", "measure-scenes", "reconstruct-photos", "fig6", "fig7")
    ],
)
def test_every_kind_of_result_has_an_answer(tmp_path, name):
    write_report([RESULTS / name], tmp_path / "page.html")
    assert re.search(r"Answer [A-Z0-9].{20,}\.", page(tmp_path / "page.html").text)


def test_the_answer_says_which_heads_restore(tmp_path):
    write_report([RESULTS / "induction"], tmp_path / "page.html")
    groups = {one["group"]: one for one in result("induction")["ablation"]}
    before, after = (groups[name]["visual"]["mean"] for name in ("none", "text"))
    drawn = {
        what: [x for name, one in groups.items() if name.startswith("random") for x in one[what]["rises"]]
        for what in ("visual", "restored")
    }
    change = groups["text"]["restored"]["rise"]["mean"]
    top = page(tmp_path / "page.html").text.partition("Layer by layer")[0]
    assert (
        f"the visual loss of LM4LV through smollm2 rises by {after - before:.3f} from {before:.3f}, without as many random "
        f"heads by {max(drawn['visual']):.3f} at most."
    ) in top
    # Random heads cost as much there, and that is said.
    assert f"changes by {change:.1f} dB, but random heads do as much ({min(drawn['restored']):.1f} at most)." in top
    strongest = result("induction")["text"][0]["attention"]["top"][0]
    assert f"head {strongest['block']}.{strongest['head']} attends most to what followed before" in top


def test_random_heads_are_those_that_the_result_compares_with(tmp_path):
    """Other random draws, of the blocks of another choice of heads, lose more here, and are no control of this one."""
    write_report([RESULTS / "induction-random"], tmp_path / "page.html")
    groups = {one["group"]: one for one in result("induction-random")["ablation"]}
    controls = [groups[name]["restored"]["rises"] for name in ("random, blocks of text", "random, other blocks")]
    change, most = groups["text"]["restored"]["rise"]["mean"], min(x for rises in controls for x in rises)
    assert min(groups["random, blocks of images"]["restored"]["rises"]) < change < most
    text = page(tmp_path / "page.html").text
    assert f"changes by {change:.1f} dB, more than random heads do ({most:.1f} at most)".replace(
        "-", "−"
    ) in text.replace("-", "−")
    assert "more than each of 10 random draws of heads does" in text


def test_scores_of_other_poolings_are_named_by_them(tmp_path):
    def pooled(value):
        for one in value["pairs"]:
            one["pool"] = "mean"

    other = altered(tmp_path, "measure-scenes", pooled)
    write_report([RESULTS / "measure-scenes", other], tmp_path / "page.html")
    text = page(tmp_path / "page.html").text
    for named in ("mae, cls", "mae, mean", "vqgan, concat", "vqgan, mean"):
        assert named in text
    write_report([RESULTS / "measure-scenes"], tmp_path / "page.html")
    assert "mae, cls" not in page(tmp_path / "page.html").text


def test_a_plan_of_one_target_lacks_nothing(tmp_path):
    for target in ("table3", "table4"):
        plan = tmp_path / f"{target}.json"
        assert run(["reproduce", target, "--dry-run", "--runs", str(tmp_path), "--json", str(plan)]) == 0
        assert write_report([plan], tmp_path / "page.html").gaps == []
        text = page(tmp_path / "page.html").text
        assert "GB of memory at most; " in text  # on a processor, there are no GPUs to speak of
        assert "GB of weights to get" in text


def test_models_of_plans_are_not_said_to_be_measured(tmp_path):
    write_report(
        [RESULTS / "measure-scenes", RESULTS / "paper-plan", RESULTS / "compute-paper"], tmp_path / "page.html"
    )
    asked = page(tmp_path / "page.html").text.partition("Asked")[2].partition("Answer")[0]
    assert "Llama" not in asked
    assert "mae, beit and vqgan" in asked


def test_half_a_character_spoils_nothing(tmp_path):
    folder = altered(tmp_path, "measure-scenes", lambda value: value["pairs"][0].update(encoder="a\ud800b"))
    assert "\\ud800" in (folder / "result.json").read_text()
    write_report([folder], tmp_path / "page.html")
    assert "a?b" in page(tmp_path / "page.html").text


def test_only_kinds_of_pictures_that_commands_write_are_opened(tmp_path):
    from PIL import Image

    folder = altered(tmp_path, "denoise-4000", lambda value: value["evaluations"][0].update(picture="x.png"))
    Image.new("RGB", (8, 8)).save(folder / "x.png", format="EPS")
    written = write_report([folder], tmp_path / "page.html")
    assert any("x.png cannot be shown" in gap for gap in written.gaps)


def test_a_page_needs_nothing_else(everything):
    _, path = everything
    html = page(path)
    for tag, key, value in html.attributes:
        if key in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
            assert value.startswith(("data:", "#")), (tag, key, value[:60])
        assert not key.startswith("on"), (tag, key)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"@import|url\((?!#)", text) == []
    policy = next(value for tag, _, value in html.attributes if tag == "meta" and value.startswith("default-src"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    import base64

    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_every_picture_has_its_words(everything):
    _, path = everything
    html = page(path)
    images = [value for tag, key, value in html.attributes if (tag, key) == ("img", "alt")]
    assert len(images) == html.tags.count("img") > 10
    assert all(images)


def test_a_picture_that_is_shown_again_is_written_once(everything):
    _, path = everything
    tags = re.findall(r"<img [^>]*>", path.read_text(encoding="utf-8"))
    sources = [re.search(r'src="([^"]*)"', tag) for tag in tags]
    numbers = [int(re.search(r'data-picture="(\d+)"', tag)[1]) for tag in tags]
    written = [source[1] for source in sources if source]
    assert len(written) == len(set(written)) < len(tags)
    before: set[int] = set()
    for number, source in zip(numbers, sources, strict=True):
        assert (number in before) == (source is None)
        before.add(number)


def test_the_same_files_make_the_same_page(tmp_path):
    write_report([RESULTS / "measure-scenes"], tmp_path / "a.html")
    write_report([RESULTS / "measure-scenes"], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_all_kinds_are_known_by_the_schemas_that_commands_write():
    written = set()
    for path in (Path(__file__).parents[2] / "alignlab").rglob("*.py"):
        written |= set(
            re.findall(r'"alignlab\.((?:re|cap|pro|ana|mea)[a-z0-9-]*)/1"', path.read_text(encoding="utf-8"))
        )
    # Bookkeeping is no result; restored pictures and fine-tuned decoders have nothing to compare.
    assert written - set(KINDS) <= {"reproduce-all", "restore-apply", "restore-decoder"}


# --- the command ---


def test_the_command_writes_the_page_and_tells_what_it_shows(tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    assert run(["report", str(RESULTS / "measure-scenes"), "-o", str(out), "--title", "Mine"]) == 0
    told = capsys.readouterr()
    assert "sections: Alignment" in told.out
    assert "Mine" in page(out).text
    assert told.err == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is no result of alignlab"),
        ("[1, 2]", "has no schema"),
        ('{"schema": "alignlab.measure"}', "has no schema"),
        ('{"schema": 3}', "has no schema"),
        ("[" * 100_000, "is no result of alignlab"),
        ('{"schema": "alignlab.measure/1"}', "nothing can be shown"),
        ('{"schema": "alignlab.measure/2", "pairs": []}', "a newer alignlab shows it"),
        ('{"schema": "alignlab.restore-apply/1"}', "does not show alignlab.restore-apply"),
    ],
)
def test_a_file_that_cannot_be_shown_is_named_with_the_reason(tmp_path, capsys, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    assert run(["report", str(path), "-o", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_paths_that_are_not_there_or_hold_nothing(tmp_path, capsys):
    assert run(["report", str(tmp_path / "none"), "-o", str(tmp_path / "page.html")]) == 2
    assert run(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert run(["report", str(RESULTS / "measure-scenes"), "-o", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "none" in told
    assert "has no result.json" in told
    assert "name a file" in told


def test_folders_of_one_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(RESULTS / "measure-scenes", tmp_path / parent / "run")
    found = read_all([tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "run"])
    assert [source.name for source in found] == ["a/run", "b/run"]


# --- files that lack parts ---


def test_a_newer_file_among_others_is_a_marked_gap(tmp_path):
    newer = altered(tmp_path, "measure-scenes", lambda value: value.update(schema="alignlab.measure/7"))
    written = write_report([RESULTS / "measure-photos", newer], tmp_path / "page.html")
    assert len(written.gaps) == 1
    assert "version 7" in page(tmp_path / "page.html").text


def test_scores_that_are_no_numbers_are_marked(tmp_path):
    def change(value):
        value["pairs"][0]["score"] = float("nan")
        value["pairs"][1]["matrix"][2][3] = None
        del value["pairs"][2]["calibrated"]
        value["pairs"][3]["matrix"] = "none"

    written = write_report([altered(tmp_path, "measure-scenes", change)], tmp_path / "page.html")
    text = page(tmp_path / "page.html").text
    assert [gap.partition(": ")[2] for gap in written.gaps] == [
        "pairs[0].score is nan, not a number",
        f"pairs[1].matrix has 1 of {7 * 31} cells that are no numbers",
        "pairs[2].calibrated is missing",
        "pairs[3].matrix is 'none', not a matrix",
    ]
    assert all(gap in text for gap in written.gaps)
    assert "nan" not in re.sub(r"is nan, not", "", text)


def _answer(tmp_path, name, change):
    """The answer at the top of the page of an altered result, and what is said to be missing."""
    written = write_report([altered(tmp_path, name, change)], tmp_path / "page.html")
    top = (tmp_path / "page.html").read_text().partition('<dl class="summary">')[2].partition("</dl>")[0]
    return unescape(re.sub("<[^>]*>", " ", top)), [gap for gap in written.gaps if not gap.endswith("is not finished")]


def _evaluated(value):
    return [found for row in value["rows"] if row["status"] == "done" for found in row["evaluations"]]


def test_what_is_not_there_is_neither_counted_nor_claimed(tmp_path):
    """A difference that a file lacks is not one that came out below 0."""

    def no_lift(value):
        for found in _evaluated(value):
            found.pop("lift")

    told, gaps = _answer(tmp_path, "table2", no_lift)
    assert "3 of 7 tasks clearly above encoder and decoder alone (denoise, pepper and mask)" in told
    assert "degraded input" not in told
    assert gaps == [f"table2: rows[{i}].evaluations[0].lift is missing" for i in (0, 1, 2, 3, 4, 7)]

    def one_gain(value):
        value["rows"][3]["evaluations"][0]["gain"]["psnr"]["ci95"] = [float("nan"), 1.0]

    told, gaps = _answer(tmp_path, "table2", one_gain)
    assert "3 of 5 tasks clearly above the degraded input" in told
    assert "2 of 6 tasks clearly above encoder and decoder alone (denoise and mask)" in told
    assert gaps == ["table2: rows[3].evaluations[0].gain.psnr.ci95 is [nan, 1.0], not an interval"]

    def no_apart(value):
        del value["rows"][1]["evaluation"]["apart"]

    told, gaps = _answer(tmp_path, "table4", no_apart)
    assert "for MAE and the untrained control mae@random, not clearly for VQGAN" in told
    assert gaps == ["table4: rows[1].evaluation.apart is missing"]

    def no_mlp(value):
        for row in value["layers"]:
            del row["over_mlp"]

    told, gaps = _answer(tmp_path, "probe-layers", no_mlp)
    assert "MLP" not in told
    assert "22 are clearly above" in told
    assert gaps == [f"probe-layers: layers[{i}].over_mlp is missing" for i in range(30)]

    def no_p(value):
        for pair in value["pairs"]:
            if pair["encoder"] == "vqgan":
                pair["p"] = None

    told, _ = _answer(tmp_path, "measure-scenes", no_p)
    assert (
        "On scenes mae and beit are more like smollm2 than shuffled pairings are (p 0.005) (not told of vqgan)" in told
    )


def _told(drawing):
    """What a drawing holds, in place of the drawing: its texts, and how much of everything. Drawing itself takes a second."""
    kinds = Counter(type(artist).__name__ for artist in drawing.findobj())
    points = [len(line.get_xdata()) for axes in drawing.axes for line in axes.get_lines()]
    areas = [len(path.vertices) for axes in drawing.axes for area in axes.collections for path in area.get_paths()]
    texts = sorted(text.get_text() for text in drawing.findobj(Text))
    return Markup(escape(f"{sorted(kinds.items())} {points} {areas} {texts}"))


@pytest.mark.parametrize("name", ["fig5", "probe-linear", "components"])
def test_no_part_that_a_page_shows_goes_missing_unmarked(tmp_path, name, monkeypatch):
    """Take away every key in turn: whatever changes the page is said to be missing."""
    monkeypatch.setattr("alignlab.report.images.uri", lambda picture, quality=90: "data:,")
    monkeypatch.setattr("alignlab.report.figures.svg", _told)
    value = result(name)
    if name == "fig5":
        value["rows"] = value["rows"][:2]

    def shown(one):
        gaps = []
        source = Source(name, KINDS_OF[name], RESULTS / name, "", Node(one, gaps), "", gaps)
        html, _, found = render([source])
        return html.partition('<dl class="summary">')[2].partition('<section id="reproduce"')[0], found

    before, known = shown(copy.deepcopy(value))
    tried, unmarked = set(), []
    for place in _places(value):
        kind = tuple(0 if isinstance(key, int) else key for key in place)
        if (
            not place
            or isinstance(place[-1], int)
            or kind in tried
            or {"each", "recipe", "schema", "config"} & set(place)
        ):
            continue
        tried.add(kind)
        broken = copy.deepcopy(value)
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]
        try:
            after, found = shown(broken)
        except ValueError:  # nothing is left to be shown, and that is said
            continue
        if after != before and len(found) <= len(known):
            unmarked.append(place)
    assert len(tried) > 40
    # Not every result is of a laboratory, not every row in the paper, and of older ones there are whole pictures.
    may_lack = {"laboratory", "sheets", "degraded", "alone", "restored"}
    assert [place for place in unmarked if place[-1] not in may_lack or "evaluations" in place] == []


def test_hostile_text_is_text(tmp_path):
    def change(value):
        value["pairs"][0].update(encoder=HOSTILE, metric=HOSTILE, llm=HOSTILE)
        value["data"]["name"] = HOSTILE
        value["notes"] = [HOSTILE]
        value["environment"]["command"] = HOSTILE
        value["config"][HOSTILE] = HOSTILE

    write_report([altered(tmp_path, "measure-scenes", change)], tmp_path / "page.html", title=HOSTILE)
    html = page(tmp_path / "page.html")
    assert html.tags.count("script") == 1
    assert " ".join(HOSTILE.split()) in html.text  # as it is: nothing of it was computed or cut
    assert not any(key.startswith("on") for _, key, _ in html.attributes)


def test_a_hostile_caption_is_text(tmp_path):
    def change(value):
        value["rows"][0]["gallery"]["said"][0] = HOSTILE
        value["rows"][0]["gallery"]["truth"][0] = HOSTILE
        value["rows"][0]["name"] = HOSTILE

    written = write_report([altered(tmp_path, "table4", change)], tmp_path / "page.html")
    html = page(tmp_path / "page.html")
    assert html.tags.count("script") == 1
    assert written.gaps == []
    assert html.text.count("alert(1)") >= 3


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", ".hidden.png", "..", "missing.png", "text.png", 7])
def test_only_pictures_beside_the_result_are_read(tmp_path, name):
    folder = altered(tmp_path, "denoise-4000", lambda value: value["evaluations"][0].update(picture=name))
    (folder / "text.png").write_text("no picture")
    (folder / ".hidden.png").write_bytes((RESULTS / "denoise-4000" / "scenes-denoise.jpg").read_bytes())
    written = write_report([folder], tmp_path / "page.html")
    assert len(written.gaps) == 1
    assert "img" not in page(tmp_path / "page.html").tags


def test_a_link_beside_the_result_is_not_followed(tmp_path):
    folder = altered(tmp_path, "denoise-4000", lambda value: value["evaluations"][0].update(picture="link.jpg"))
    (folder / "link.jpg").symlink_to(RESULTS / "denoise-4000" / "scenes-denoise.jpg")
    assert len(write_report([folder], tmp_path / "page.html").gaps) == 1


def test_a_damaged_sheet_is_a_gap_and_not_a_broken_page(tmp_path):
    def change(value):
        value["rows"][0]["gallery"]["sheet"]["n"] = 3
        value["rows"][1]["gallery"]["said"].pop()

    written = write_report([altered(tmp_path, "table4", change)], tmp_path / "page.html")
    assert len(written.gaps) == 2
    assert "captions-VQGAN-sheet.png cannot be shown" in written.gaps[0]
    assert "15 captions" in written.gaps[1]


def _places(value, at=()):
    """Where every value of a result stands."""
    yield at
    members = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in members:
        yield from _places(inner, (*at, key))


@pytest.mark.parametrize("name", ["measure-scenes", "table4", "denoise-4000", "reconstruct-scenes", "compute-paper"])
def test_whatever_is_wrong_in_a_file_the_page_is_whole_or_refused(tmp_path, name):
    dice = random.Random(0)
    value = result(name)
    for several in ("rows", "pairs"):  # one is enough, and faster
        if several in value:
            value[several] = value[several][:1]
    places = [place for place in _places(value) if place and place != ("schema",)]
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder)
    wrong = [
        None,
        float("nan"),
        float("inf"),
        -1,
        10**400,
        "x" * 5000,
        HOSTILE,
        [],
        {},
        [[]],
        True,
        [None],
        {"mean": "a"},
    ]
    for _ in range(40):
        broken = copy.deepcopy(value)
        for place in dice.sample(places, dice.randint(1, 4)):
            inner = broken
            try:
                for key in place[:-1]:
                    inner = inner[key]
                if dice.random() < 0.3:
                    del inner[place[-1]]
                else:
                    inner[place[-1]] = dice.choice(wrong)
            except (KeyError, IndexError, TypeError):  # an earlier change has taken its place away
                continue
        (folder / "result.json").write_text(json.dumps(broken))
        try:
            write_report([folder], tmp_path / "page.html")
        except ValueError as error:
            assert "can be shown" in str(error) or "no result of alignlab" in str(error)  # noqa: PT017
            continue
        html = page(tmp_path / "page.html")
        assert html.tags.count("script") == 1
        assert {"main", "footer", "table"} <= set(html.tags)


def test_a_page_that_would_be_too_large_shows_fewer_pictures(tmp_path, monkeypatch):
    whole = write_report([RESULTS / "table2"], tmp_path / "whole.html")
    monkeypatch.setattr("alignlab.report.page.LARGEST", whole.size // 2)
    thinned = write_report([RESULTS / "table2"], tmp_path / "thinned.html")
    assert thinned.size <= whole.size // 2
    assert "Pictures are left out" in page(tmp_path / "thinned.html").text
    monkeypatch.setattr("alignlab.report.page.LARGEST", 1000)
    with pytest.raises(ValueError, match="give fewer results"):
        write_report([RESULTS / "table2"], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("name", ["depth", "correlation"])
def test_a_language_model_whose_name_is_none_breaks_no_curve_and_no_scatter(tmp_path, name):
    value = json.loads((RESULTS / name / "result.json").read_text())
    first = value["rows"][0]["design"] if name == "depth" else value["points"][0]
    first["llm"] = "smollm2[:x]"
    (tmp_path / "result.json").write_text(json.dumps(value))
    assert write_report([tmp_path], tmp_path / "page.html").size > 10_000


@pytest.mark.parametrize("length", [5, 20, 34])
def test_a_legend_is_not_cut_off(length):
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = drawing.add_subplot()
    names = [f"{letter * length} of images" for letter in "abcd"]
    figures._legend(drawing, {name: axes.plot([], [])[0] for name in names})
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= drawing.bbox.width
    assert 0 <= box.y0 < box.y1 < axes.get_window_extent().y0
