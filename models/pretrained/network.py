"""A frozen open_clip model from a checkpoint on disk, with its own tokenizer."""

from collections.abc import Mapping
from textwrap import shorten

from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.clip import EncodedCaptions, projected, token_features, token_mask
from models.pretrained.archive import read_state
from models.pretrained.lookup import KnownCheckpoint, identify
from models.pretrained.preprocessing import prepare
from models.pretrained.settings import ImagePreprocessing, OpenClipCheckpoint
from models.pretrained.tokenizer import OpenClipTokenizer, quiet
from models.torchvision_compat import ensure_torchvision


class PretrainedClip(nn.Module):
    """A frozen open_clip model with its preprocessing and tokenizer."""

    def __init__(self, source: OpenClipCheckpoint) -> None:
        """Read a checkpoint of any settings; without an image's, only its text tower is of use.

        Raises:
            UserError: as `identify`; an architecture whose tokenizer is not open_clip's own; a file
                that does not fit; OpenAI's weights taken as ones with GELU.
        """
        super().__init__()
        ensure_torchvision()
        import open_clip

        known = identify(source)
        self.known = known
        self.tokens = OpenClipTokenizer(known)
        state, openai = read_state(known.weights)
        check_origin(source, known, openai=openai)
        with quiet():
            self.clip = open_clip.create_model(
                known.name, load_weights=False, quick_gelu=known.quick_gelu
            )
        _assign(self.clip, state, source, known.title)
        self.requires_grad_(requires_grad=False).eval()

    @property
    def scale(self) -> Tensor:
        return self.clip.logit_scale.float().exp()

    @property
    def preprocessing(self) -> ImagePreprocessing:
        assert self.known.preprocessing is not None, "of images"
        return self.known.preprocessing

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the image tower takes."""
        size = self.clip.visual.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], of any size, to unit vectors (B, D) in fp32."""
        prepared = prepare(image, self.preprocessing, *self.image_size)
        return self.clip.encode_image(prepared, normalize=True).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to unit vectors (B, D) in fp32."""
        return self.clip.encode_text(tokens, normalize=True).float()

    def project_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], of any size, to the projection (B, D) as it is, in fp32."""
        prepared = prepare(image, self.preprocessing, *self.image_size)
        return self.clip.encode_image(prepared).float()

    def project_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to the projection (B, D) as it is, in fp32."""
        return self.clip.encode_text(tokens).float()

    def encode_captions(self, tokens: Tensor) -> EncodedCaptions:
        """Of tokens (B, L); only of architectures with CLIP's own text tower (`text_width`)."""
        from open_clip.transformer import text_global_pool

        features = token_features(self.clip, tokens)
        end = getattr(self.clip, "text_eos_id", None)
        pooled = text_global_pool(features, tokens, self.clip.text_pool_type, eos_token_id=end)
        return EncodedCaptions(features, token_mask(tokens), projected(self.clip, pooled))

    def token_features(self, tokens: Tensor) -> Tensor:
        return token_features(self.clip, tokens)


def check_origin(source: OpenClipCheckpoint, known: KnownCheckpoint, *, openai: bool) -> None:
    """Refuse OpenAI's weights where GELU is only what the architecture's name implies.

    Raises:
        UserError: keys of the file or names of its path say OpenAI, and nobody states GELU.
    """
    named = any("openai" in part.lower() for part in known.weights.parts[-4:])
    if known.quick_gelu or known.stated or not (openai or named):
        return
    where = "its keys say" if openai else "its path says"
    raise UserError(
        f"{source.checkpoint}: {where} that it is OpenAI's, whose towers compute QuickGELU; set "
        f"tag: openai (or architecture: {source.architecture}-quickgelu), or quick_gelu: false if "
        "it is not"
    )


def _assign(
    clip: nn.Module, state: Mapping[str, Tensor], source: OpenClipCheckpoint, title: str
) -> None:
    """Load the weights, without open_clip's silent resizing of positions.

    Raises:
        UserError: a weight is missing, unknown or of another shape.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    try:
        state = convert_state_dict(clip, dict(state))
        if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        expected = clip.state_dict()
        # a TorchScript archive keeps them
        computed = {name for name, _ in clip.named_buffers()} - set(expected)
        fitted = {name: value for name, value in state.items() if name not in computed}
        for name in ("logit_scale", "logit_bias"):  # of shape () or (1,)
            if name in fitted and name in expected:
                fitted[name] = fitted[name].reshape(expected[name].shape)
        clip.load_state_dict(fitted)
    except (RuntimeError, KeyError, AttributeError, AssertionError, ValueError) as error:
        # torch's message names every tensor
        found = shorten(str(error), 200, placeholder=" ...") or type(error).__name__
        raise UserError(
            f"{source.checkpoint}: not a checkpoint of {title}; give the architecture it was "
            f"trained as ({found})"
        ) from error
