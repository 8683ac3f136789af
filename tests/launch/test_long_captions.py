"""What commands say of captions that are cut."""

import json

import pytest
from tiny_run import write_run

from data_pipeline.dataset import open_dataset
from data_pipeline.text.tokenizer import Tokenizer
from launch.sampling.lost_captions import find_lost, lost_captions
from mezzotint.inference.load import load_generator
from mezzotint.inference.model_lookup import pipeline_systems
from models import store
from trainer.caption_lengths import log_cut_captions
from trainer.recipe import load

LONG = "woman pilot, man cook and everybody else"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pipeline's run of untrained networks that read 6 tokens."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("system", "roles"),
    [
        ("dalle", ["model", "ranker"]),
        ("plain", ["model"]),
        ("cascade", ["model"]),
        ("hierarchy", ["model", "ranker"]),
    ],
)
def test_every_system_knows_what_it_does_not_read(run, system, roles):
    generator = load_generator(pipeline_systems(run)[system])
    content = store.tokenizer_bytes(str(run / "prior" / "model"))
    wanted = Tokenizer(content).lost(LONG, 6)
    assert wanted
    assert generator.lost(LONG) == dict.fromkeys(roles, wanted)
    assert generator.lost("man") == {}
    lost = find_lost(generator, [LONG, "man", None, LONG])
    assert list(lost) == [LONG]
    assert lost_captions(lost) == [
        f"warning: '{LONG}' is too long: the {role} does not read '{wanted}'" for role in roles
    ]


def test_sample_says_what_of_a_prompt_is_lost(run, mezzotint, tmp_path):
    words = ("sample", run, "man", LONG, "--system", "cascade", "--number", 1, "--device", "cpu")
    out = ("--out", tmp_path / "x.png")
    text = mezzotint(*words, *out)
    assert text.code == 0, text.err
    (warning,) = [line for line in text.out.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: '{LONG}' is too long: the model does not read '")
    tree = json.loads(mezzotint(*words, *out, "--json").out)
    assert list(tree["lost"]) == [LONG]
    assert LONG.endswith(tree["lost"][LONG]["model"])


@pytest.fixture
def recipe(write_set, tokenizer_directory):
    """Overrides of a recipe whose captions are cut."""
    return [
        f"data.url={write_set()}",
        "data.select=[]",
        f"data.text.tokenizer={tokenizer_directory}",
        "data.text.length=5",
        "model.text_vocab=40",
        "model.text_length=5",
    ]


def test_check_states_the_share_of_captions_that_are_cut(recipe, mezzotint, tmp_path):
    words = ("check", "recipes/emoji_clip.yaml", *recipe, "--runs", tmp_path / "runs")
    text = mezzotint(*words)
    assert text.code == 0, text.err
    (line,) = [line for line in text.out.splitlines() if line.startswith("captions: ")]
    assert " of 12 captions read (" in line
    assert "longer than the 5 tokens of data.text and cut, one before '" in line
    captions = json.loads(mezzotint(*words, "--json").out)["captions"]
    (count,) = captions["counts"]
    assert (count["read"], count["length"]) == (12, 5)
    assert 0 < count["cut"] <= 12


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.url=s3://bucket/set", "s3://bucket/set is not on this machine"),
        ("data.url=nowhere", "nowhere"),
        ("data.text.tokenizer=nowhere", "nowhere/tokenizer.model: no such file"),
    ],
)
def test_check_says_why_captions_were_not_counted(recipe, override, reason, mezzotint, tmp_path):
    words = ("check", "recipes/emoji_clip.yaml", *recipe, override, "--runs", tmp_path / "runs")
    text = mezzotint(*words)
    assert text.code == 0, text.err
    (line,) = [line for line in text.out.splitlines() if line.startswith("captions: ")]
    assert line.startswith("captions: not counted which of them are cut (")
    assert reason in line


@pytest.mark.parametrize(("length", "said"), [(5, True), (60, False)])
def test_training_says_so_once_where_captions_are_cut(recipe, length, said, caplog):
    changed = [f"data.text.length={length}", f"model.text_length={length}"]
    loaded = load("recipes/emoji_clip.yaml", [*recipe, *changed])
    log_cut_captions(loaded, open_dataset(loaded.data))
    messages = [record.message for record in caplog.records]
    assert len(messages) == said
    for message in messages:
        assert "of 12 captions read (" in message
        assert message.endswith("; raise its length, or shorten them")


def test_captions_of_a_frozen_encoder_are_counted_with_its_own_tokenizer(
    run, write_set, mezzotint, tmp_path
):
    clip = run / "clip" / "model"
    encoder = f"task.condition.encoder={{kind: clip, model: {clip}}}"
    words = ("check", "recipes/emoji_caption_clip.yaml", encoder, f"data.url={write_set()}")
    text = mezzotint(*words, "data.select=[]", "--runs", tmp_path / "runs")
    assert text.code == 0, text.err
    (line,) = [line for line in text.out.splitlines() if line.startswith("captions: ")]
    assert "captions: 12 of 12 captions read (100.0%) are longer than the 6 tokens of " in line
    assert "task.condition.encoder and cut" in line


def test_a_caption_whose_letters_are_unknown_is_cut_by_its_own_text():
    tokenizer = Tokenizer(Tokenizer.train(["abc abd"] * 3, 12))
    assert tokenizer.lost("abc éü abd", 3) != ""
    assert "abc éü abd".endswith(tokenizer.lost("abc éü abd", 3))


def test_inspect_states_lengths_in_tokens_and_what_a_length_cuts(
    write_set, tokenizer_directory, mezzotint
):
    words = ("data", "inspect", write_set(), "--tokenizer", tokenizer_directory)
    text = mezzotint(*words, "--length", 5)
    assert text.code == 0, text.err
    (line,) = [line for line in text.out.splitlines() if line.startswith("tokens (")]
    assert "12 captions read (" in line
    assert "are longer than the 5 tokens of --length and cut, one before '" in line
    tokens = json.loads(mezzotint(*words, "--json").out)["tokens"]
    tokenizer = Tokenizer.load(str(tokenizer_directory))
    colours = ("red", "green", "blue")
    counts = [tokenizer.count(f"{colours[n % 3]} square number {n}") for n in range(12)]
    assert tokens["mean"] == pytest.approx(sum(counts) / 12)
    assert tokens["longest"] == max(counts)
    assert tokens["cut"] is None


def test_a_length_without_a_tokenizer_is_refused(write_set, refused):
    message = refused("data", "inspect", write_set(), "--length", 5)
    assert message.startswith("--length: is in tokens of a tokenizer; give --tokenizer too")
