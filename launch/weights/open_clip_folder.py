"""A CLIP as a folder that open_clip opens, with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.tokenizer_json import tokenizer_files
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_bytes, write_json
from mezzotint.common.preprocessing import Preprocessing
from models import store
from models.clip import Clip
from models.clip_open_clip import CONFIG, WEIGHTS, open_clip_settings, to_open_clip

_WHITE = 255


@dataclass(frozen=True)
class Written:
    """What was written."""

    files: tuple[str, ...]
    parameters: int
    note: str
    """How it is opened, and what differs there."""


def write_clip(directory: str, out: Path) -> Written:
    """Write the folder.

    Raises:
        UserError: no clip in the directory, or no tokenizer.
    """
    info, clip = store.describe(directory), store.load(directory)
    if not isinstance(clip, Clip):
        raise UserError(f"{directory}: is no clip")
    tokenizer = Tokenizer(store.tokenizer_bytes(directory), f"{directory}/{store.TOKENIZER}")
    images = info.preprocessing or Preprocessing(size=clip.config.image_size)
    settings = open_clip_settings(clip.config, images, end_id=Tokenizer.end_id, fill=_WHITE)
    weights = to_open_clip(dict(clip.state_dict()))
    files = tokenizer_files(tokenizer, clip.config.text_length)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    for name, content in files.items():
        write_bytes(out / name, content)
    write_json(out / CONFIG, settings)
    note = f"open_clip.create_model_from_pretrained('local-dir:{out}') opens it"
    if images.filter in ("box", "lanczos"):
        note += (
            f"; it resizes images bicubically, which were resized by {images.filter} in training"
        )
    names = (WEIGHTS, CONFIG, *files)
    count = sum(value.numel() for value in weights.values())
    return Written(tuple(str(out / name) for name in names), count, note)
