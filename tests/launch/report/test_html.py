"""The result page: self-contained, escaped, and open about what is missing."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from evaluation.result import EvaluationResult
from launch.report.html import StageView, duration, loss_series, write_page

EVIL = 'woman <script>alert("x")</script> & co: dark'


def score(value, n=40):
    return Score(value, max(0.0, value - 0.1), min(1.0, value + 0.1), n)


def fabricate(directory, system="dalle", caption=EVIL, name=None, **settings):
    """An evaluation as evaluation.text_to_image leaves it, in a few kilobytes."""
    for folder in ("samples", "real", "candidates"):
        (directory / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(directory / folder / "000000.png")
    line = {
        "part": "composition",
        "key": "../../k",
        "caption": caption,
        "repeat": 0,
        "sample": "samples/000000.png",
        "real": "real/000000.png",
        "candidates": "candidates/000000.png",
        "nearest": "another caption",
        "scores": [0.3],
    }
    (directory / "samples.jsonl").write_text(json.dumps(line) + "\n")
    both = {"composition": score(0.55), "train": score(0.8)}
    sizes = ("1", "2", "4", "8", "16")
    EvaluationResult(
        kind="text_to_image",
        name=name or system,
        protocol={
            "seed": 0,
            "system": {"kind": system, **settings},
            "reference": {"split": "composition"},
            "features": {"metric": "fd_efficientnet_lite0"},
        },
        metrics={
            "exact_match": both,
            "clip_retrieval": both,
            "clip_score": both,
            "clip_score_shuffled_captions": both,
            "fd_efficientnet_lite0": {"composition": FrechetDistance(12.5, 220, 238, None)},
            "exact_match_best_of_n": {size: score(0.2 + int(size) / 100) for size in sizes},
            "clip_score_best_of_n": dict.fromkeys(sizes, score(0.5)),
        },
        seconds={},
    ).write(directory)


def stage(root, name="dvae", kind="train", metrics=True):
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "metrics.jsonl"
    if metrics:
        lines = [
            {"step": step, "metrics": {"loss/model": 2.0 / (step + 1), "lr": 1.0}}
            for step in range(0, 100, 10)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    return StageView(
        name=name,
        kind=kind,
        run_dir=directory,
        seconds=83.2,
        facts={"steps": "100", "ZeRO": "2"},
    )


def evaluation(root, name):
    return stage(root, name, "evaluate", metrics=False)


@pytest.fixture
def page(tmp_path):
    fabricate(tmp_path / "dalle")
    fabricate(tmp_path / "cascade", "cascade")
    stages = [stage(tmp_path), stage(tmp_path, "spaced name")]
    stages += [evaluation(tmp_path, name) for name in ("cascade", "dalle")]
    target = write_page(tmp_path, "Pictures <from> captions", stages)
    assert target == tmp_path / "index.html"
    return target.read_text(encoding="utf-8")


class Links(HTMLParser):
    """Collects everything a browser would fetch or follow, and checks that tags close."""

    VOID = frozenset({"meta", "img", "link", "br", "line"})

    def __init__(self):
        super().__init__()
        self.fetched, self.followed, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [values[name] for name in ("src", "srcset", "data") if name in values]
        if tag == "a":
            self.followed.append(values["href"])
        elif "href" in values:
            self.fetched.append(values["href"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_loaded_from_elsewhere_and_links_stay_in_the_run(page):
    links = Links()
    links.feed(page)
    assert links.open == []
    assert links.fetched
    sources = ("data:image/png;base64,", "data:image/svg+xml;base64,")
    assert all(source.startswith(sources) for source in links.fetched)
    assert links.followed
    assert all(not re.match(r"[a-z]+:|/", target) for target in links.followed)
    assert "spaced%20name/" in links.followed
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_captions_and_titles_are_escaped(page):
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Pictures &lt;from&gt; captions" in page


def test_held_out_samples_come_first_and_are_marked_as_never_seen(page):
    assert page.index("Never seen in training") < page.index("Seen in training</span>")
    assert page.index('id="unseen"') < page.index('id="seen"') < page.index('id="scores"')
    assert "nearest: another caption" in page


def test_scores_carry_interval_count_and_protocol(page):
    assert "55.0%" in page
    assert "45.0 to 65.0, n = 40" in page
    assert "features.metric" in page
    assert "220 against 238 images" in page


def test_the_page_says_what_no_model_can_learn(page):
    assert "No model can generate those from this data" in page


def charts(page):
    """The SVG documents of a page."""
    return [
        base64.b64decode(content).decode()
        for content in re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page)
    ]


def test_best_of_n_and_losses_are_charts_in_the_page(page):
    assert page.count('<img class="chart"') == 2 * 2 + 2
    assert sum("candidates per caption" in chart for chart in charts(page)) == 4
    assert sum("loss/model" in chart for chart in charts(page)) == 2


def test_missing_pieces_are_shown_as_missing(tmp_path):
    (tmp_path / "cascade").mkdir()
    fabricate(tmp_path / "dalle")
    (tmp_path / "dalle" / "samples" / "000000.png").unlink()
    stages = [
        stage(tmp_path, "prior", metrics=False),
        evaluation(tmp_path, "cascade"),
        evaluation(tmp_path, "dalle"),
    ]
    page = write_page(tmp_path, "t", stages).read_text()
    assert "evaluation.json is missing: the evaluation has not finished" in page
    assert '<div class="gap">missing</div>' in page
    assert "No losses recorded." in page
    assert "No samples of training captions." in page
    assert "not measured" in page


def fabricate_reconstruction(directory):
    directory.mkdir()
    Image.new("RGB", (8, 8), "blue").save(directory / "grid_reconstructions.png")
    EvaluationResult(
        kind="reconstruction",
        name="VQ <GAN>",
        protocol={"autoencoder": {"kind": "autoencoder"}, "images": {"part": "test"}},
        metrics={
            "psnr": {"test": Score(23.44, 23.0, 24.04, 40)},
            "ssim": {"test": Score(0.8, 0.79, 0.81, 40)},
            "reconstruction_fid": {"test": FrechetDistance(12.34, 40, 40, None)},
            "codebook_size": {"codes": 8},
            "codes_used": {"codes": 7},
            "code_perplexity": {"codes": 6.4},
            "bits_per_pixel": {"codes": 0.5, "total": 0.5},
        },
        seconds={},
    ).write(directory)


def test_evaluated_autoencoders_are_shown_beside_systems_and_need_no_samples(tmp_path):
    fabricate(tmp_path / "dalle")
    fabricate_reconstruction(tmp_path / "back")
    stages = [
        evaluation(tmp_path, "dalle"),
        evaluation(tmp_path, "back"),
    ]
    page = write_page(tmp_path, "t", stages).read_text()
    assert "VQ &lt;GAN&gt;" in page
    assert "23.4 (23.0 to 24.0) dB" in page
    assert "fid 12.3, n = 40" in page
    assert "codes: 7 of 8 codes used, perplexity 6" in page
    assert "0.50 bits per pixel" in page
    assert "is missing" not in page
    assert page.count("data:image/png;base64,") == 4
    (tmp_path / "back" / "grid_reconstructions.png").unlink()
    assert (
        "The grid of reconstructions is missing." in write_page(tmp_path, "t", stages).read_text()
    )


def test_a_prior_over_another_autoencoders_codes_is_called_by_its_name(tmp_path):
    fabricate(tmp_path / "samples", name="VQ-GAN", decoder="autoencoder")
    page = write_page(tmp_path, "t", [evaluation(tmp_path, "samples")]).read_text()
    assert "Transformer prior + VQ-GAN" in page
    assert "dVAE" not in page


def test_a_page_without_any_evaluation_is_still_a_page(tmp_path):
    page = write_page(tmp_path, "t", []).read_text()
    assert "Nothing has been evaluated yet." in page
    assert "No samples of held-out captions." in page


def test_damaged_evaluations_are_said_to_be_damaged(tmp_path):
    fabricate(tmp_path / "dalle")
    (tmp_path / "dalle" / "evaluation.json").write_text("{")
    page = write_page(tmp_path, "t", [evaluation(tmp_path, "dalle")]).read_text()
    assert "its files are damaged" in page


def test_images_outside_the_evaluation_are_never_embedded(tmp_path):
    fabricate(tmp_path / "run" / "dalle")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "secret.png")
    index = tmp_path / "run" / "dalle" / "samples.jsonl"
    line = json.loads(index.read_text()) | {"sample": "../../secret.png"}
    index.write_text(json.dumps(line) + "\n")
    page = write_page(tmp_path / "run", "t", [evaluation(tmp_path / "run", "dalle")]).read_text()
    assert '<div class="gap">missing</div>' in page


def test_losses_are_read_by_name_and_a_cut_line_is_left_out(tmp_path):
    series, others = loss_series(stage(tmp_path).run_dir / "metrics.jsonl")
    assert others == 0
    assert [line.label for line in series] == ["loss/model"]
    assert [point.x for point in series[0].points] == list(range(0, 100, 10))
    assert loss_series(Path("nowhere")) == ([], 0)


def test_a_spike_of_one_step_among_twenty_thousand_is_drawn_at_its_height(tmp_path):
    view = stage(tmp_path, metrics=False)
    lines = [
        {"step": step, "metrics": {"loss/model": 100.0 if step == 12_345 else 1.0}}
        for step in range(20_000)
    ]
    write_lines(view, lines)
    (line,), _ = loss_series(view.run_dir / "metrics.jsonl")
    assert max((point.y, point.x) for point in line.points) == (100.0, 12_345.0)
    assert len(line.points) < 300


def test_losses_that_are_not_finite_are_counted_beside_the_curve(tmp_path):
    view = stage(tmp_path, metrics=False)
    write_lines(
        view,
        [
            {"step": 1, "metrics": {"loss/model": 1.0}},
            {"step": 2, "metrics": {}, "non_finite": {"loss/model": "inf", "grad_norm": "nan"}},
            {"step": 3, "metrics": {"loss/model": float("nan")}},  # of an earlier version
            {"step": 4, "metrics": {"loss/model": 0.5}},
        ],
    )
    (line,), others = loss_series(view.run_dir / "metrics.jsonl")
    assert ([point.y for point in line.points], others) == ([1.0, 0.5], 2)
    html = write_page(tmp_path, "x", [view]).read_text()
    assert "Not finite, so not drawn: 2 logged losses." in html
    write_lines(view, [{"step": 1, "metrics": {}, "non_finite": {"loss/model": "inf"}}])
    html = write_page(tmp_path, "x", [view]).read_text()
    assert "not drawn: 1 logged loss." in html
    assert "No losses recorded" not in html


def write_lines(view, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (view.run_dir / "metrics.jsonl").write_text(text)


def test_durations_are_minutes_and_seconds():
    assert [duration(None), duration(59.6), duration(3.2)] == ["–", "1 min 00 s", "3 s"]
