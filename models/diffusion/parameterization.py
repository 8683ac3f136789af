"""What a network predicts, and what follows from it: x_t = alpha x_0 + sigma noise."""

from collections.abc import Callable

from torch import Tensor

from models.diffusion.schedules.marginal import Marginal


class Prediction:
    """What a denoiser predicts; x_0 and noise always belong together through x_t.

    Each is (B, ...), or given as what computes it when it is first read: few solvers need both.
    """

    __slots__ = ("_noise", "_x0", "logvar_fraction", "mean_gradient")

    def __init__(
        self,
        x0: Tensor | Callable[[], Tensor],
        noise: Tensor | Callable[[], Tensor],
        logvar_fraction: Tensor | None = None,
        mean_gradient: Tensor | None = None,
    ) -> None:
        self._x0 = x0
        self._noise = noise
        self.logvar_fraction = logvar_fraction
        """Where a network learns the variance of reverse steps: the log variance's position between
        the smallest (0) and the largest (1) sensible one (arXiv 2102.09672, eq. 15)."""
        self.mean_gradient = mean_gradient
        """Moves the mean of DDPM's step by variance x gradient: `guidance.with_mean_gradient`."""

    @property
    def x0(self) -> Tensor:
        if not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def noise(self) -> Tensor:
        if not isinstance(self._noise, Tensor):
            self._noise = self._noise()
        return self._noise


def from_x0(
    raw: Tensor, x: Tensor, marginal: Marginal, logvar_fraction: Tensor | None = None
) -> Prediction:
    """noise = (x_t - alpha x_0) / sigma."""
    here = marginal.broadcast_to(x)
    return Prediction(raw, (x - here.alpha * raw) / here.sigma, logvar_fraction)


def from_noise(
    raw: Tensor, x: Tensor, marginal: Marginal, logvar_fraction: Tensor | None = None
) -> Prediction:
    """x_0 = (x_t - sigma noise) / alpha (arXiv 2006.11239, eq. 15)."""
    here = marginal.broadcast_to(x)
    return Prediction((x - here.sigma * raw) / here.alpha, raw, logvar_fraction)


def from_v(
    raw: Tensor, x: Tensor, marginal: Marginal, logvar_fraction: Tensor | None = None
) -> Prediction:
    """v = alpha noise - sigma x_0, so x_0 = alpha x_t - sigma v (arXiv 2202.00512, appendix D).

    For schedules that preserve variance, alpha^2 + sigma^2 = 1.
    """
    here = marginal.broadcast_to(x)
    x0, noise = here.alpha * x - here.sigma * raw, here.sigma * x + here.alpha * raw
    return Prediction(x0, noise, logvar_fraction)


def from_edm(
    raw: Tensor,
    x: Tensor,
    marginal: Marginal,
    logvar_fraction: Tensor | None = None,
    *,
    sigma_data: float,
) -> Prediction:
    """x_0 = c_skip y + c_out raw at y = x_t / alpha (arXiv 2206.00364, table 1 and eq. 7).

    With the noise level u = sigma / alpha and the data's standard deviation s, c_skip = s^2 / (u^2
    + s^2) and c_out = u s / sqrt(u^2 + s^2). In alpha and sigma, nothing is divided by either.
    """
    here = marginal.broadcast_to(x)
    variance = here.sigma**2 + (here.alpha * sigma_data) ** 2
    raw = raw * sigma_data / variance.sqrt()
    x0 = here.alpha * sigma_data**2 / variance * x + here.sigma * raw
    return Prediction(x0, here.sigma / variance * x - here.alpha * raw, logvar_fraction)


def to_x0(pred: Prediction, marginal: Marginal) -> Tensor:
    """x_0."""
    return pred.x0


def to_noise(pred: Prediction, marginal: Marginal) -> Tensor:
    """The noise."""
    return pred.noise


def to_v(pred: Prediction, marginal: Marginal) -> Tensor:
    """v = alpha noise - sigma x_0."""
    here = marginal.broadcast_to(pred.x0)
    return here.alpha * pred.noise - here.sigma * pred.x0


def to_edm(pred: Prediction, marginal: Marginal, sigma_data: float) -> Tensor:
    """(x_0 - c_skip y) / c_out, of variance 1 for such data (arXiv 2206.00364, eq. 8).

    In alpha and sigma it is (sigma x_0 / s - alpha s noise) / sqrt(sigma^2 + alpha^2 s^2).
    """
    here = marginal.broadcast_to(pred.x0)
    scale = (here.sigma**2 + (here.alpha * sigma_data) ** 2).rsqrt()
    return scale * (here.sigma / sigma_data * pred.x0 - here.alpha * sigma_data * pred.noise)


def edm_input(x: Tensor, marginal: Marginal, sigma_data: float) -> Tensor:
    """c_in y = x_t / sqrt(sigma^2 + alpha^2 s^2): of variance 1 (arXiv 2206.00364, table 1)."""
    here = marginal.broadcast_to(x)
    return x * (here.sigma**2 + (here.alpha * sigma_data) ** 2).rsqrt()
