"""Data, tokenizer and task of a recipe, checked against each other."""

from dataclasses import dataclass, replace

import torch

from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.derive import encoded_preprocessing
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.digests import is_digest
from mezzotint.common.embedding_scaling import EmbeddingRecord
from mezzotint.common.errors import UserError
from mezzotint.common.hint import HintRecord
from mezzotint.common.preprocessing import Preprocessing, require_equal
from models import frozen_text, store
from models.base_record import BaseRecord
from models.config import image_side, text_shape
from models.diffusion.control.network import ControlConfig
from models.diffusion.network import ClassConditional
from models.diffusion.unet.conditions import TextFeaturesConfig
from models.first_stage import FirstStage
from models.text_source import TextSource
from trainer.recipe import Recipe
from trainer.task import Task
from trainer.tasks.conditioning.embeddings import (
    check_embedding_size,
    embedding_record,
    with_embeddings,
    with_scaling,
)
from trainer.tasks.control import ControlTask
from trainer.tasks.control_inputs import of_base, open_control
from trainer.tasks.denoising import Denoising
from trainer.tasks.first_stage import first_stage, latent_target, with_latents
from trainer.tasks.frozen_text import check_cached_features, text_encoder_of, with_cached_features
from trainer.tasks.hierarchical_prior import LevelPriorConfig
from trainer.tasks.targets import LatentDecoder


@dataclass(frozen=True)
class TrainingInputs:
    """What a recipe names, opened and built."""

    dataset: Dataset
    tokenizer: Tokenizer | None
    task: Task
    text_encoder: TextSource | None = None
    """The frozen encoder that reads the captions, with its digest."""
    preprocessing: Preprocessing | None = None
    """Of the images that are read, or that the arrays of a derived set were encoded from."""
    first_stage: FirstStage | None = None
    """Of a run that trains on latents."""
    base: BaseRecord | None = None
    """Of a control: the network that is controlled."""
    hint: HintRecord | None = None
    """Of a control: what it reads."""
    embeddings: EmbeddingRecord | None = None
    """Of a run that reads or generates CLIP embeddings."""


def open_inputs(recipe: Recipe) -> TrainingInputs:
    """Open the data set and tokenizer and build the task, its networks on the meta device.

    Raises:
        UserError: the tokenizer's vocabulary or length is not the model's, or the data set lacks
            what the task reads.
    """
    encoder = recipe.data.encoder
    if encoder is not None and not is_digest(encoder):
        encoder = store.describe(encoder).digest
    target = latent_target(recipe.task)
    data = recipe.data if target is None else with_latents(recipe.data)
    data = with_embeddings(recipe.task, with_cached_features(recipe.task, data))
    dataset = open_dataset(data, expected_encoder=encoder)
    check_labels(recipe)
    check_image_size(recipe, None if target is None else recipe.data.encoder)
    tokenizer = None
    if recipe.data.text is not None and recipe.data.text.tokenizer is not None:
        tokenizer = Tokenizer.load(recipe.data.text.tokenizer)
        check_text(recipe, tokenizer)
    text_encoder = check_text_encoder(recipe)
    check_cached_features(dataset, text_encoder)
    with torch.device("meta"):  # the engine materialises it
        model = recipe.model.build()
    settings, stage = recipe.task, None
    if target is not None:
        stage = of_base(recipe.task, first_stage(recipe.model, target, dataset))
        measured = target.model_copy(update={"scaling": stage.scaling})
        settings = settings.model_copy(update={"target": measured})
    embeddings = embedding_record(recipe.task, dataset, text_encoder)
    if embeddings is not None:
        check_embedding_size(recipe.model, embeddings)
        settings = with_scaling(settings, embeddings.scaling)
    task, preprocessing = settings.build(model), data_preprocessing(recipe, dataset)
    if isinstance(task, Denoising) and stage is not None:
        task.decoder = LatentDecoder(stage)
    inputs = TrainingInputs(
        dataset, tokenizer, task, text_encoder, preprocessing, stage, embeddings=embeddings
    )
    if not isinstance(task, ControlTask):
        return inputs
    base, hint = open_control(recipe.model, task, dataset, tokenizer, text_encoder)
    return replace(inputs, base=base, hint=hint)


def data_preprocessing(recipe: Recipe, dataset: Dataset) -> Preprocessing | None:
    """Of the images that a run is trained on, which its model records.

    Raises:
        UserError: a derived set was made with images prepared otherwise than its encoder's.
    """
    data = recipe.data
    if data.image is not None and data.encoder is None:
        return data.image.preprocessing.model_copy(update={"flip": data.flips})
    encoded = (one for one in dataset.manifests() if one.encoder is not None)
    found = encoded_preprocessing(next(encoded, dataset.manifest))
    if data.encoder is not None and not is_digest(data.encoder):
        records = {
            f"data.encoder ({data.encoder})": store.describe(data.encoder).preprocessing,
            f"the encoder of data.url ({data.url})": found,
        }
        if data.image is not None:
            records["data.image"] = data.image.preprocessing
        require_equal(records, force=data.force_preprocessing, setting="data.force_preprocessing")
    return None if found is None else found.model_copy(update={"flip": data.flips})


def check_text(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer of another vocabulary or length than the model's."""
    shape = text_shape(recipe.model)
    assert recipe.data.text is not None
    if shape is None:
        return
    if isinstance(recipe.task, LevelPriorConfig):  # part of the text is coarser codes
        vocab, length = recipe.task.given_vocab, recipe.task.given_length
        shape = replace(shape, vocab=shape.vocab - vocab, length=shape.length - length)
    if tokenizer.vocab_size != shape.vocab:
        raise UserError(
            f"data.text.tokenizer: {recipe.data.text.tokenizer} has {tokenizer.vocab_size} pieces "
            f"and {shape.keys}vocab is {shape.vocab}; set {shape.keys}vocab={tokenizer.vocab_size} "
            "or train a tokenizer of the wanted size (mezzotint data tokenizer)"
        )
    if recipe.data.text.length != shape.length:
        raise UserError(
            f"data.text.length is {recipe.data.text.length} and {shape.keys}length "
            f"is {shape.length}; make them equal"
        )


def check_image_size(recipe: Recipe, encoder: str | None = None) -> None:
    """Refuse images of another size than the network's, or than its first stage's (`encoder`)."""
    image, model, key = recipe.data.image, recipe.model, "model.image_size"
    if encoder is not None and not is_digest(encoder):
        model, key = store.describe(encoder).config, f"that of {encoder}"
    size = image_side(model)
    if image is None or recipe.data.arrays or size in (None, image.size):
        return
    raise UserError(f"data.image.size is {image.size} and {key} is {size}; make them equal")


def check_labels(recipe: Recipe) -> None:
    """Refuse labels of another number of classes than the model has."""
    label, model = recipe.data.label, recipe.model
    if label is None or not isinstance(model, ClassConditional) or model.classes is None:
        return
    if label.count != model.classes:
        raise UserError(
            f"data.label gives {label.count} classes and model.classes is {model.classes}; set "
            f"model.classes={label.count}"
        )


def check_text_encoder(recipe: Recipe) -> TextSource | None:
    """The frozen encoder of a recipe's captions, if any; refuses features of another width."""
    source, model = text_encoder_of(recipe.task), recipe.model
    if source is None:
        return None
    found = frozen_text.describe(source)
    network = model.base if isinstance(model, ControlConfig) else model
    features = getattr(network, "features", None)
    if isinstance(features, TextFeaturesConfig) and features.width != found.width:
        raise UserError(
            f"model.features.width is {features.width}; {found.source.location} has features of "
            f"{found.width}; set model.features.width={found.width}"
        )
    return found.source


def check(recipe: Recipe) -> None:
    """Open everything a recipe names, building the networks without memory.

    Raises:
        UserError: whatever training would refuse.
    """
    with torch.device("meta"):
        open_inputs(recipe)
