"""The first stage of a run that trains on latents, checked against its set and its network."""

from pydantic import BaseModel

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.derive import encoded_preprocessing
from data_pipeline.manifest import Manifest
from data_pipeline.sets.stored_set import read_manifest
from mezzotint.common.digests import is_digest
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import DEVIATIONS, LATENTS
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.config import ModelConfig, image_side
from models.diffusion.dit import DiTConfig
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from trainer.tasks.targets import Latents


def latent_target(task: BaseModel) -> Latents | None:
    """The target of a task that trains on latents; None of any other."""
    target = getattr(task, "target", None)
    return target if isinstance(target, Latents) else None


def with_latents(data: DataConfig) -> DataConfig:
    """The data settings with the arrays that the target reads."""
    fields = [read_manifest(url).fields for url in (data.url, *data.join)]
    found = [
        name
        for name in (LATENTS, DEVIATIONS)
        if name == LATENTS or any(f"{name}.npy" in each for each in fields)
    ]
    arrays = dict.fromkeys((*data.arrays, *found))
    return data.model_copy(update={"arrays": tuple(arrays)})


def first_stage(model: ModelConfig, target: Latents, dataset: Dataset) -> FirstStage:
    """The first stage that a run records with its network `model`.

    Raises:
        UserError: none is named, the set was not measured, or the network takes latents of another
            size.
    """
    location, manifest = dataset.config.encoder, dataset.holder(f"{LATENTS}.npy")
    if location is None or is_digest(location):
        raise UserError(
            "data.encoder: name the model directory of the first stage, which the trained model "
            "records and sampling decodes with"
        )
    found = store.describe(location)
    _check_shape(model, location, found)
    _check_size(location, found, manifest)
    scaling = target.scaling or manifest.latents
    if scaling is None:
        raise UserError(
            f"the latents of '{manifest.name}' were not measured: an earlier version derived them; "
            "run the same `mezzotint data derive` again, which measures them, or state "
            "task.target.scaling"
        )
    return FirstStage(model=location, digest=found.digest, scaling=scaling)


def _check_size(location: str, found: store.ModelInfo, manifest: Manifest) -> None:
    """Refuse latents of images of another size than the first stage's."""
    images, own = encoded_preprocessing(manifest), image_side(found.config)
    if images is not None and images.size != own:
        raise UserError(
            f"the latents of '{manifest.name}' are of images of {images.size} pixels, and "
            f"{location} takes {own}; derive the set again with `mezzotint data derive`"
        )


def _check_shape(model: ModelConfig, location: str, found: store.ModelInfo) -> None:
    stage = found.config
    if not isinstance(stage, AutoencoderConfig):
        raise UserError(
            f"data.encoder: {location} holds a {stage.kind}; latents are those of an autoencoder"
        )
    if not isinstance(model, UNetConfig | DiTConfig):
        return
    wanted = {
        "image_size": stage.image_size // stage.pyramid.stride,
        "image_channels": stage.channels,
    }
    for name, value in wanted.items():
        if getattr(model, name) != value:
            raise UserError(
                f"model.{name} is {getattr(model, name)}, and latents of {location} have "
                f"{value}; set model.{name}={value}"
            )
