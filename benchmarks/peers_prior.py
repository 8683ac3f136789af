"""DALLE-pytorch and x-transformers as the same function as the prior, by converted weights.

Both are set to compute what `models.autoregressive.prior` computes, so that outputs and gradients
can be compared before anything is timed:
  * dalle-pytorch 1.6.6: no rotary embedding and no token shift (learned positions instead),
    LayerScale 1, and its gated feed-forward (12 width^2 weights) replaced by the plain one (8
    width^2).
  * x-transformers: learned positions, exact GELU, and the logits of the other kind of token masked
    as dalle-pytorch does.
What they compute with (attention, logits, loss, cache) is theirs.
"""

import sys
import types
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.autoregressive.prior import Prior


def stub_what_dalle_pytorch_imports() -> None:
    """Stand-ins for packages that it imports for other purposes than this one."""
    names = ("requests", "tqdm", "omegaconf", "taming", "taming.models", "taming.models.vqgan")
    for name in (*names, "PIL", "yaml"):
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
    for name, attributes in (
        ("tqdm", ("tqdm",)),
        ("omegaconf", ("OmegaConf",)),
        ("taming.models.vqgan", ("VQModel", "GumbelVQ")),
    ):
        for attribute in attributes:
            if not hasattr(sys.modules[name], attribute):
                setattr(sys.modules[name], attribute, None)


def gradient_of(weight: Tensor) -> Tensor:
    """The gradient of a parameter, or of a part of one."""
    whole = weight if weight._base is None else weight._base
    assert whole.grad is not None
    return whole.grad.as_strided(weight.shape, weight.stride(), weight.storage_offset())


class DallePytorch:
    """`dalle_pytorch.DALLE`. Its text has `text_length` more tokens: one padding per position."""

    name = "dalle-pytorch 1.6.6"

    def __init__(self, prior: Prior) -> None:
        stub_what_dalle_pytorch_imports()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from dalle_pytorch import DALLE, DiscreteVAE
        config = prior.config
        side = config.grid[0]
        layers = side.bit_length() - 1
        image_size = 2 ** (2 * layers)
        self.prior = prior
        vae = DiscreteVAE(
            image_size=image_size,
            num_layers=layers,
            num_tokens=config.image_vocab,
            codebook_dim=1,
            hidden_dim=1,
        )
        vae.decode = lambda codes: codes
        self.model = DALLE(
            dim=config.width,
            vae=vae,
            num_text_tokens=config.text_vocab - config.text_length,
            text_seq_len=config.text_length,
            depth=config.layers,
            heads=config.heads,
            dim_head=config.head_width,
            shift_tokens=False,
            rotary_emb=False,
        )
        for attention, feed_forward in self.model.transformer.layers.layers:
            for scaled in (attention, feed_forward):
                nn.init.ones_(scaled.scale).requires_grad_(requires_grad=False)
            inner = feed_forward.fn.fn
            inner.net = nn.Sequential(
                nn.Linear(config.width, 4 * config.width),
                nn.GELU(),
                nn.Identity(),
                nn.Linear(4 * config.width, config.width),
            )
        self.load()

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its weights beside the prior's, as views of equal shape."""
        ours, theirs = self.prior, self.model
        text, length = ours.config.text_vocab, ours.config.text_length
        side = ours.config.grid[0]
        # its first token is text token 0; the prior has a start of its own
        yield theirs.text_emb.weight[1:], ours.text_token.weight[1:]
        yield theirs.image_emb.weight, ours.image_token.weight
        yield theirs.text_pos_emb.weight[1 : length + 1], ours.text_position.table.weight
        rows, columns = theirs.image_pos_emb.weights
        yield rows.view(side, -1), ours.image_position.row.weight
        yield columns.view(side, -1), ours.image_position.column.weight
        for block, (attention, feed_forward) in zip(
            ours.blocks, theirs.transformer.layers.layers, strict=True
        ):
            for wrapped, norm in (
                (attention, block.attention_norm),
                (feed_forward, block.forward_norm),
            ):
                yield wrapped.fn.norm.weight, norm.weight
                yield wrapped.fn.norm.bias, norm.bias
            inner = attention.fn.fn.fn
            yield inner.to_qkv.weight, block.attention.qkv.weight
            yield inner.to_out[0].weight, block.attention.out.weight
            yield inner.to_out[0].bias, block.attention.out.bias
            net = feed_forward.fn.fn.net
            for linear, own in (
                (net[0], block.feed_forward.hidden),
                (net[3], block.feed_forward.out),
            ):
                yield linear.weight, own.weight
                yield linear.bias, own.bias
        norm, head = theirs.to_logits
        yield norm.weight, ours.norm.weight
        yield norm.bias, ours.norm.bias
        for part, own in (
            (slice(0, text), ours.text_head),
            (slice(text, None), ours.image_head),
        ):
            yield head.weight[part], own.weight
            yield head.bias[part], own.bias

    @torch.no_grad()
    def load(self) -> None:
        """Copy the prior's weights."""
        for theirs, ours in self.pairs():
            theirs.copy_(ours)
        start = self.prior.start.table.weight[0] - self.model.text_emb.weight[0]
        self.model.text_pos_emb.weight[0] = start

    def loss(self, text: Tensor, codes: Tensor) -> Tensor:
        """Of one step."""
        return self.model(text, codes, return_loss=True)

    def logits(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Of text and image."""
        vocab, length = self.prior.config.text_vocab, self.prior.config.text_length
        both = self.model(text, codes)
        return both[:, :length, :vocab], both[:, length:, vocab:]

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its gradients beside the prior's (after backward through both)."""
        for theirs, ours in self.pairs():
            yield gradient_of(theirs), gradient_of(ours)

    def mend_the_cache(self) -> None:
        """Let a scale of 1 use the cache: as shipped it is dropped there."""
        shipped = self.model.forward_with_cond_scale

        def mended(text: Tensor, image: Tensor, *, cond_scale: float, cache: object) -> Tensor:
            assert cond_scale == 1
            return self.model(text, image, cache=cache)

        assert shipped is not None
        self.model.forward_with_cond_scale = mended

    def sample(self, text: Tensor) -> Tensor:
        """The most probable codes, one after the other: (B, N)."""
        return self.model.generate_images(text, filter_thres=1.0, use_cache=True)


class XTransformers:
    """`x_transformers.Decoder` over one vocabulary of text, image and a start token."""

    name = "x-transformers"

    def __init__(self, prior: Prior, *, flash: bool) -> None:
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

        config = prior.config
        self.prior = prior
        self.name = f"x-transformers{' (attn_flash)' if flash else ''}"
        self.start = config.text_vocab + config.image_vocab
        self.model = TransformerWrapper(
            num_tokens=self.start + 1,
            max_seq_len=config.text_length + config.image_length,
            attn_layers=Decoder(
                dim=config.width,
                depth=config.layers,
                heads=config.heads,
                attn_dim_head=config.head_width,
                attn_flash=flash,
            ),
        )
        self.wrapper = AutoregressiveWrapper(self.model)
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Copy the prior's weights; those it lacks (biases of norms and projections) are zero."""
        ours, theirs = self.prior, self.model
        width = ours.config.width
        theirs.token_emb.emb.weight.copy_(
            torch.cat([ours.text_token.weight, ours.image_token.weight, ours.start.table.weight])
        )
        count = ours.config.image_length - 1
        positions = [
            torch.zeros(1, width),
            ours.text_position.table.weight,
            ours.image_position(0, count),
        ]
        theirs.pos_emb.emb.weight.copy_(torch.cat(positions) / theirs.pos_emb.scale)
        layers = theirs.attn_layers.layers
        for position, block in enumerate(ours.blocks):
            norms, attention, _ = layers[2 * position]
            self.set_norm(norms[0], block.attention_norm.weight)
            query, key, value = block.attention.qkv.weight.chunk(3)
            attention.to_q.weight.copy_(query)
            attention.to_k.weight.copy_(key)
            attention.to_v.weight.copy_(value)
            attention.to_out.weight.copy_(block.attention.out.weight)
            norms, feed_forward, _ = layers[2 * position + 1]
            self.set_norm(norms[0], block.forward_norm.weight)
            linears = [part for part in feed_forward.modules() if isinstance(part, nn.Linear)]
            for linear, own in zip(
                linears, (block.feed_forward.hidden, block.feed_forward.out), strict=True
            ):
                linear.weight.copy_(own.weight)
                linear.bias.copy_(own.bias)
        self.set_norm(theirs.attn_layers.final_norm, ours.norm.weight)
        theirs.to_logits.weight[: self.start].copy_(
            torch.cat([ours.text_head.weight, ours.image_head.weight])
        )
        theirs.to_logits.weight[self.start :] = 0

    @staticmethod
    def set_norm(norm: nn.Module, weight: Tensor) -> None:
        """Its norms multiply by one more than their parameter."""
        norm.gamma.copy_(weight - float(norm.unit_offset))

    def tokens(self, text: Tensor, codes: Tensor) -> Tensor:
        """The joint sequence, as it is read."""
        start = torch.full((len(text), 1), self.start)
        return torch.cat([start, text, codes + self.prior.config.text_vocab], dim=1)

    def both(self, text: Tensor, codes: Tensor) -> Tensor:
        """Joint logits, those of the other kind masked."""
        vocab, length = self.prior.config.text_vocab, self.prior.config.text_length
        logits = self.model(self.tokens(text, codes[:, :-1]))
        forbidden = torch.zeros(logits.shape[1:], dtype=torch.bool)
        forbidden[:length, vocab:] = True
        forbidden[length:, :vocab] = True
        forbidden[:, self.start] = True
        return logits.masked_fill(forbidden, torch.finfo(logits.dtype).min)

    def loss(self, text: Tensor, codes: Tensor) -> Tensor:
        """Of one step."""
        length = self.prior.config.text_length
        logits = self.both(text, codes).transpose(1, 2)
        text_loss = F.cross_entropy(logits[:, :, :length], text)
        targets = codes + self.prior.config.text_vocab
        return (text_loss + 7 * F.cross_entropy(logits[:, :, length:], targets)) / 8

    def logits(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Of text and image."""
        vocab, length = self.prior.config.text_vocab, self.prior.config.text_length
        both = self.both(text, codes)
        return both[:, :length, :vocab], both[:, length:, vocab : self.start]

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its gradients beside the prior's (after backward through both)."""
        ours, theirs = self.prior, self.model
        embedded = [ours.text_token.weight, ours.image_token.weight, ours.start.table.weight]
        yield theirs.token_emb.emb.weight.grad, torch.cat([each.grad for each in embedded])
        text = ours.config.text_length
        positions = theirs.pos_emb.emb.weight.grad / theirs.pos_emb.scale
        yield positions[1 : text + 1], ours.text_position.table.weight.grad
        layers = theirs.attn_layers.layers
        for position, block in enumerate(ours.blocks):
            attention = layers[2 * position][1]
            parts = [attention.to_q, attention.to_k, attention.to_v]
            yield torch.cat([part.weight.grad for part in parts]), block.attention.qkv.weight.grad
            yield attention.to_out.weight.grad, block.attention.out.weight.grad
            yield layers[2 * position][0][0].gamma.grad, block.attention_norm.weight.grad
            feed_forward = layers[2 * position + 1][1]
            first, last = [part for part in feed_forward.modules() if isinstance(part, nn.Linear)]
            yield first.weight.grad, block.feed_forward.hidden.weight.grad
            yield last.weight.grad, block.feed_forward.out.weight.grad
        heads = [ours.text_head.weight.grad, ours.image_head.weight.grad]
        yield theirs.to_logits.weight.grad[: self.start], torch.cat(heads)

    def sample(self, text: Tensor) -> Tensor:
        """The most probable codes, one after the other: (B, N)."""
        vocab = self.prior.config.text_vocab

        def best(logits: Tensor) -> Tensor:
            image = logits[..., vocab : self.start]
            kept = torch.full_like(logits, -torch.inf)
            return kept.scatter(-1, image.argmax(-1, keepdim=True) + vocab, 0.0)

        start = torch.full((len(text), 1), self.start)
        sampled = self.wrapper.generate(
            torch.cat([start, text], dim=1),
            self.prior.config.image_length,
            filter_logits_fn=best,
            cache_kv=True,
        )
        return sampled - vocab
