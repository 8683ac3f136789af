from pathlib import Path

import pytest

from mezzotint.common.errors import UserError
from trainer.recipe import apply_override, dump, load, read_tree

RECIPES = sorted(Path("recipes").glob("*.yaml"))
DVAE = "recipes/emoji_dvae.yaml"


def refusal(*overrides: str, recipe: str | Path = DVAE) -> str:
    with pytest.raises(UserError) as caught:
        load(recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_is_named_after_its_file(path):
    assert load(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dumped_recipe_loads_back_equal(path, tmp_path):
    recipe = load(path, ["optimizer.lr.peak=1e-5", "ema=null", "batch=16", "micro_batch=8"])
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump(recipe))
    assert load(copy) == recipe
    assert dump(load(copy)) == dump(recipe)


@pytest.mark.parametrize(
    "key",
    [
        "stepss",
        "model.vocabb",
        "task.kl.stepss",
        "data.image.siz",
        "optimizer.lr.peek",
        "optimizers.model.lr.peek",
        "engine.offload",
    ],
)
def test_a_misspelt_key_is_named_by_its_full_path(key):
    assert f"{DVAE}: {key}: unknown key; remove it or check its spelling" in refusal(f"{key}=3")


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("optimizer.clip", "max_grad_norm"),
        ("engine.zeros", "zero_per_part"),
        ("optimizers.model.clip_each", "max_grad_norm_per_parameter"),
        ("model.first", "initial_width"),
        ("data.memory", "cache_in_memory"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(key, new):
    assert f"{DVAE}: {key}: was renamed to {new}; use the new name" in refusal(f"{key}=1")


@pytest.mark.parametrize("key", ["data.first", "log.clip", "model.share", "of"])
def test_a_key_that_was_never_there_is_not_called_renamed(key):
    assert f"{DVAE}: {key}: unknown key; remove it or check its spelling" in refusal(f"{key}=1")


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("steps=0", "steps: Input should be greater than 0"),
        ("steps=many", "steps: Input should be a valid integer"),
        ("model.width=12.5", "model.width: Input should be a valid integer"),
        ("optimizer.lr.peak=-1e-3", "optimizer.lr.peak: Input should be greater than 0"),
        ("engine.zero=4", "engine.zero: Input should be 0, 1, 2 or 3"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: Field required"),
        (
            "data.select=[{split: composition, part: tran}]",
            "data.select.0.part: Input should be 'train' or 'test'",
        ),
        ("model.kind=vae", "model.kind: there is no 'vae'; choose 'dvae', "),
        ("task.kl.kind=cubic", "task.kl.kind: there is no 'cubic'; choose 'constant', "),
        ("name=../elsewhere", "name: String should match pattern"),
    ],
)
def test_an_impossible_value_is_named_by_its_full_path(override, fault):
    assert refusal(override).startswith(f"{DVAE}: {fault}")


def test_a_missing_key_is_named():
    assert f"{DVAE}: model.text_vocab: Field required" in refusal("model={kind: clip}")


def test_every_fault_has_a_line_of_its_own():
    lines = refusal("steps=0", "model.vocabb=1", "engine.zero=9").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["steps", "model.vocabb", "engine.zero"]


def test_dotted_overrides_reach_every_depth_and_read_their_values_as_yaml():
    recipe = load(
        DVAE,
        [
            "optimizer.lr.peak=1e-3",
            "optimizer.eps=1E-06",
            "optimizer.betas=[0.5, 0.75]",
            "data.select=[{split: concept, part: test, where: {group: [food-drink]}}]",
            "task.kl={kind: constant, value: .5e1}",
            "engine.zero=3",
            "data.cache_in_memory=false",
            "log.previews=null",
        ],
    )
    assert recipe.optimizer.lr.peak == 1e-3
    assert recipe.optimizer.eps == 1e-6
    assert recipe.optimizer.betas == (0.5, 0.75)
    assert recipe.data.select[0].where == {"group": ("food-drink",)}
    assert recipe.model_dump()["task"]["kl"] == {"kind": "constant", "value": 5.0}
    assert recipe.engine.zero == 3
    assert recipe.data.cache_in_memory is False
    assert recipe.log.previews is None


def test_an_override_makes_the_keys_it_needs_and_the_last_one_counts():
    tree = {"a": 1}
    for override in ("b.c.d=2", "b.c.d=3", "url=s3://bucket/set?x=1"):
        apply_override(tree, override)
    assert tree == {"a": 1, "b": {"c": {"d": 3}}, "url": "s3://bucket/set?x=1"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab.size=3", "model.vocab.size: vocab holds a single value, it has no keys"),
        ("steps", "'steps': an override looks like key.path=value"),
        ("=3", "'=3': an override looks like key.path=value"),
        ("steps=[1", "steps: '[1' is not a valid YAML value"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused_by_its_key(override, message):
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [unclosed\n", "is not valid YAML: "),
        (b"name: a\n\tsteps: 3\n", "is not valid YAML: "),
        (b"name: !!python/object/apply:os.getcwd []\n", "is not valid YAML: "),
        (b"- a\n- b\n", "must hold a mapping of keys"),
        (b"", "must hold a mapping of keys"),
        (b"name: \xff\xfe\n", "is not a UTF-8 text file"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    assert refusal(recipe=path).startswith(f"{path}: {message}")


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "none.yaml"
    assert refusal(recipe=path).startswith(f"{path}: cannot be read (No such file or directory)")


def test_numbers_with_an_exponent_and_no_dot_are_numbers(tmp_path):
    path = tmp_path / "tree.yaml"
    path.write_text("a: 1e-3\nb: 2E5\nc: .5e1\nd: 1.e+2\ne: 1e\nf: e3\n")
    assert read_tree(path) == {"a": 1e-3, "b": 2e5, "c": 5.0, "d": 100.0, "e": "1e", "f": "e3"}


def test_a_batch_is_shared_evenly_or_refused_with_the_next_step():
    recipe = load(DVAE, ["batch=12"])
    assert [recipe.micro_batch_for(world) for world in (1, 2, 3, 4)] == [12, 6, 4, 3]
    with pytest.raises(UserError, match=r"batch: 12 samples .* 5 processes; .* multiple of 5"):
        recipe.micro_batch_for(5)
    with pytest.raises(UserError, match=r"batch: 12 samples .* 16 processes; .* multiple of 16"):
        recipe.micro_batch_for(16)
    small = load(DVAE, ["batch=12", "micro_batch=4"])
    assert small.micro_batch_for(3) == 4
    with pytest.raises(UserError, match=r"2 processes in micro-batches of 4; .* multiple of 8"):
        small.micro_batch_for(2)


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused():
    assert "batch 16 is not a multiple of micro_batch 5" in refusal("batch=16", "micro_batch=5")


FEATURES = (
    "task.condition={kind: features, encoder: {kind: t5, directory: t5}}",
    "model.text=null",
    "model.features={width: 8}",
    "data.text=null",
)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("emoji_clip", ()),
        ("emoji_caption", ()),
        ("emoji_caption", FEATURES),
        ("emoji_caption_clip", ()),
        ("emoji_base", ()),
    ],
)
def test_images_with_captions_are_mirrored_only_where_the_recipe_says_so(recipe, overrides):
    path = f"recipes/{recipe}.yaml"
    message = refusal("data.image.flip=true", *overrides, recipe=path)
    assert "left or right; set data.image.flip=false, or data.image.flip_with_captions" in message
    for permission in ("true", "guarded"):
        permitted = f"data.image.flip_with_captions={permission}"
        load(path, ["data.image.flip=true", permitted, *overrides])


def test_an_autoencoder_and_a_model_of_classes_may_mirror():
    for recipe in ("emoji_dvae", "emoji_class", "emoji_upsampler"):
        load(f"recipes/{recipe}.yaml", ["data.image.flip=true"])


@pytest.mark.parametrize(
    "values", ["[up, left]", "[left-pointing, up]", "[Right_hand, x]", "[counterclockwise, x]"]
)
def test_classes_that_name_a_side_are_mirrored_only_where_the_recipe_says_so(values):
    label = f"data.label={{attribute: way, values: {values}}}"
    message = refusal("data.image.flip=true", label)
    assert "data.label.values has '" in message
    assert "data.image.flip_with_labels=true" in message
    load(DVAE, ["data.image.flip=true", "data.image.flip_with_labels=true", label])
    load(DVAE, ["data.image.flip=true", "data.label={attribute: way, values: [bright, cleft]}"])


def test_images_are_not_mirrored_beside_arrays_that_stay_as_they_are():
    message = refusal("data.image.flip=true", "data.arrays=[codes, hints]")
    assert "mirrors images, but not codes, hints (data.arrays)" in message


def test_a_permission_to_mirror_needs_something_that_mirrors():
    assert "need flip: true" in refusal("data.image.flip_with_captions=true")
    assert "need flip_arrays: true" in refusal("data.flip_with_labels=true")


def test_arrays_of_mirrored_images_need_the_same_permissions():
    captions = "data.text={tokenizer: t, length: 8}"
    message = refusal("data.flip_arrays=true", captions)
    assert "set data.flip_arrays=false, or data.flip_with_captions=guarded" in message
    load(DVAE, ["data.flip_arrays=true", "data.flip_with_captions=true", captions])
    label = "data.label={attribute: way, values: [left, right]}"
    message = refusal("data.flip_arrays=true", label)
    assert "data.flip_arrays mirrors images, and data.label.values has 'left'" in message
    load(DVAE, ["data.flip_arrays=true", "data.flip_with_labels=true", label])
