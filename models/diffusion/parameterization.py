"""What a network predicts, and what follows from it: x_t = alpha x_0 + sigma noise."""

from collections.abc import Callable

from torch import Tensor

from models.diffusion.schedules.marginal import Marginal


class Prediction:
    """A denoiser's guess; x_0 and noise always belong together through x_t.

    Each is (B, ...), or given as what computes it when it is first read: few solvers need both.
    """

    __slots__ = ("_noise", "_x0", "logvar_fraction")

    def __init__(
        self,
        x0: Tensor | Callable[[], Tensor],
        noise: Tensor | Callable[[], Tensor],
        spread: Tensor | None = None,
    ) -> None:
        self._x0 = x0
        self._noise = noise
        self.logvar_fraction = spread
        """Where a network learns the variance of reverse steps: the log variance's place between
        the smallest (0) and the largest (1) sensible one (arXiv 2102.09672, eq. 15)."""

    @property
    def x0(self) -> Tensor:
        """The clean image."""
        if not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def noise(self) -> Tensor:
        """What hides it."""
        if not isinstance(self._noise, Tensor):
            self._noise = self._noise()
        return self._noise


def from_x0(raw: Tensor, x: Tensor, marginal: Marginal) -> Prediction:
    """noise = (x_t - alpha x_0) / sigma."""
    here = marginal.like(x)
    return Prediction(raw, (x - here.alpha * raw) / here.sigma)


def from_noise(raw: Tensor, x: Tensor, marginal: Marginal) -> Prediction:
    """x_0 = (x_t - sigma noise) / alpha (arXiv 2006.11239, eq. 15)."""
    here = marginal.like(x)
    return Prediction((x - here.sigma * raw) / here.alpha, raw)


def from_v(raw: Tensor, x: Tensor, marginal: Marginal) -> Prediction:
    """v = alpha noise - sigma x_0, so x_0 = alpha x_t - sigma v (arXiv 2202.00512, appendix D).

    For schedules that preserve variance, alpha^2 + sigma^2 = 1.
    """
    here = marginal.like(x)
    return Prediction(here.alpha * x - here.sigma * raw, here.sigma * x + here.alpha * raw)


def from_edm(raw: Tensor, x: Tensor, marginal: Marginal, deviation: float) -> Prediction:
    """x_0 = c_skip y + c_out raw at y = x_t / alpha (arXiv 2206.00364, table 1 and eq. 7).

    With the noise level u = sigma / alpha and the data's deviation s, c_skip = s^2 / (u^2 + s^2)
    and c_out = u s / sqrt(u^2 + s^2). Written in alpha and sigma, nothing is divided by either.
    """
    here = marginal.like(x)
    variance = here.sigma**2 + (here.alpha * deviation) ** 2
    raw = raw * deviation / variance.sqrt()
    x0 = here.alpha * deviation**2 / variance * x + here.sigma * raw
    return Prediction(x0, here.sigma / variance * x - here.alpha * raw)


def to_x0(guess: Prediction, marginal: Marginal) -> Tensor:
    """x_0."""
    return guess.x0


def to_noise(guess: Prediction, marginal: Marginal) -> Tensor:
    """The noise."""
    return guess.noise


def to_v(guess: Prediction, marginal: Marginal) -> Tensor:
    """v = alpha noise - sigma x_0."""
    here = marginal.like(guess.x0)
    return here.alpha * guess.noise - here.sigma * guess.x0


def to_edm(guess: Prediction, marginal: Marginal, deviation: float) -> Tensor:
    """(x_0 - c_skip y) / c_out, of variance 1 for data of that deviation (arXiv 2206.00364, eq. 8).

    In alpha and sigma it is (sigma x_0 / s - alpha s noise) / sqrt(sigma^2 + alpha^2 s^2).
    """
    here = marginal.like(guess.x0)
    scale = (here.sigma**2 + (here.alpha * deviation) ** 2).rsqrt()
    return scale * (here.sigma / deviation * guess.x0 - here.alpha * deviation * guess.noise)


def edm_input(x: Tensor, marginal: Marginal, deviation: float) -> Tensor:
    """c_in y = x_t / sqrt(sigma^2 + alpha^2 s^2): of variance 1 (arXiv 2206.00364, table 1)."""
    here = marginal.like(x)
    return x * (here.sigma**2 + (here.alpha * deviation) ** 2).rsqrt()


def score(guess: Prediction, marginal: Marginal) -> Tensor:
    """The gradient of ln q(x_t): -noise / sigma (arXiv 2011.13456, eq. 29 and Tweedie)."""
    return -guess.noise / marginal.like(guess.noise).sigma
