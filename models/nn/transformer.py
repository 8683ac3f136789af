"""Pre-norm transformer blocks: a plain one, and one modulated by a vector per sample."""

from torch import Tensor, nn

from models.nn import initialization
from models.nn.attention import AttentionPattern, ContextAttention, KVCache, SelfAttention
from models.nn.cpu.linear import Gelu
from models.nn.linear import GeluLinear


class FeedForward(nn.Module):
    """Linear to 4 x width, GELU (exact, or by its tanh approximation), linear back."""

    def __init__(self, width: int, *, gelu: Gelu = "tanh") -> None:
        super().__init__()
        self.gelu = gelu
        self.hidden = nn.Linear(width, 4 * width)
        self.out = GeluLinear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.out(self.hidden(x), self.gelu)


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x).

    `dropout` acts on both branches in training mode and draws from torch's global generator.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        causal: bool,
        dropout: float,
        gelu: Gelu = "tanh",
        pattern: AttentionPattern | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(
            width, heads, head_width, causal=causal, pattern=pattern, bias=qkv_bias
        )
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, gelu=gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, L, width) to (B, L, width)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))
        return x + self.dropout(self.feed_forward(self.forward_norm(x)))


class DiTBlock(nn.Module):
    """A block whose norms are shifted and scaled, and whose branches are gated, by a vector.

    The tokens also attend to a context that the block does not change: within their self-attention
    if it `reads_context`, or by a `cross_attention` of their own between self-attention and
    feed-forward, x + cross-attention(x) (PixArt-alpha, arXiv 2310.00426, 2.3).
    adaLN-Zero of DiT (arXiv 2212.09748, 3.2): the gates start at 0, so a new block is the identity.
    `dropout` acts on both branches in training mode and draws from torch's global generator.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        dropout: float,
        reads_context: bool = True,
        cross_attention: nn.Module | None = None,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.cross_attention = cross_attention
        self.modulation = nn.Linear(width, 6 * width)
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False, eps=epsilon)
        self.attention = (
            ContextAttention(width, heads, head_width)
            if reads_context
            else SelfAttention(width, heads, head_width, causal=False)
        )
        self.forward_norm = nn.LayerNorm(width, elementwise_affine=False, eps=epsilon)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)
        initialization.constant(self.modulation.weight, 0.0)
        initialization.constant(self.modulation.bias, 0.0)

    def forward(self, x: Tensor, vector: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens (B, L, width), vectors (B, width), context (B, M, width) to (B, L, width)."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(
            nn.functional.silu(vector)
        )[:, None].chunk(6, dim=-1)
        normed = modulate(self.attention_norm(x), shift_a, scale_a)
        if self.cross_attention is None:
            x = x + gate_a * self.dropout(self.attention(normed, context))
        else:
            x = x + gate_a * self.dropout(self.attention(normed))
            x = x + self.cross_attention(x, context)
        branch = self.feed_forward(modulate(self.forward_norm(x), shift_f, scale_f))
        return x + gate_f * self.dropout(branch)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift
