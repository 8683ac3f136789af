"""The union of tasks a recipe can name."""

from typing import Annotated

from pydantic import Field

from trainer.tasks.adversarial import AdversarialConfig
from trainer.tasks.autoregressive import AutoregressiveConfig
from trainer.tasks.classification import ClassificationConfig
from trainer.tasks.contrastive import ContrastiveConfig
from trainer.tasks.control import ControlTaskConfig
from trainer.tasks.denoising import DenoisingConfig
from trainer.tasks.hierarchical_prior import LevelPriorConfig
from trainer.tasks.reconstruction import ReconstructionConfig
from trainer.tasks.unclip.embedding_codes import EmbeddingCodesConfig

TaskConfig = Annotated[
    ReconstructionConfig
    | AdversarialConfig
    | AutoregressiveConfig
    | DenoisingConfig
    | ControlTaskConfig
    | ClassificationConfig
    | ContrastiveConfig
    | LevelPriorConfig
    | EmbeddingCodesConfig,
    Field(discriminator="kind"),
]
