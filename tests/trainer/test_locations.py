"""Paths in a recipe stay valid in another working directory."""

from pathlib import Path

from trainer.locations import absolute
from trainer.recipe import load

ENCODER = "{kind: features, encoder: {kind: clip, model: c/model}}"


def test_paths_in_conditions_become_absolute(monkeypatch, tmp_path):
    recipe = load("recipes/emoji_caption_clip.yaml")
    several = f"task.condition={{kind: several, conditions: [{{kind: class}}, {ENCODER}]}}"
    embedded = f"task.condition={{kind: clip_image, captions: {ENCODER}}}"
    found = load("recipes/emoji_caption_clip.yaml", [several])
    other = load("recipes/emoji_caption_clip.yaml", [embedded])
    monkeypatch.chdir(tmp_path)
    wanted = str(Path("c/model").absolute())
    assert absolute(recipe).task.condition.encoder.model.startswith(str(tmp_path))
    assert absolute(found).task.condition.conditions[1].encoder.model == wanted
    assert absolute(other).task.condition.captions.encoder.model == wanted
