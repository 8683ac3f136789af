"""Trajectories of other implementations' solvers, kept beside this file.

In an environment of its own:  pip install diffusers==0.42.1 torch safetensors
                               pip install --no-deps k-diffusion==0.1.1.post1
                               python tests/models/diffusion/peers/make_peers.py

The "network" is a formula, `noise_of`, that the tests repeat. All x are those of
x = alpha x_0 + sigma noise, whatever the peer's own scale, before and after every step; noise comes
from torch's generator with seed 7, in fp64.
"""

import importlib.util
import sys
import types
from pathlib import Path

import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import save_file

HOME = Path(__file__).parent
STEPS = 20
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {**BETAS, "timestep_spacing": "trailing"}


def noise_of(x, k):
    """The guess of the noise in x at the step k, counted from 0."""
    return 0.6 * x + 0.3 * torch.sin(3 * x + k / 200)


def spread_of(x):
    """The raw output for a learned variance, in [-1, 1]."""
    return 0.8 * torch.sin(2 * x)


def start():
    return torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))


def plain(scheduler, *, steps=STEPS, model=noise_of, options=None):
    """For schedulers that keep x itself."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    rng = torch.Generator().manual_seed(7)
    options = options or {}
    x = start()
    path = [x]
    for k in scheduler.timesteps:
        keywords = {name: make(x, rng) for name, make in options.items()}
        x = scheduler.step(model(x, float(k)), k, x, **keywords).prev_sample
        path.append(x)
    return torch.stack(path)


def scaled(scheduler, *, options=None):
    """For schedulers that keep x / alpha; sigmas are sigma / alpha."""
    scheduler.set_timesteps(STEPS)
    rng = torch.Generator().manual_seed(7)
    sigma = scheduler.sigmas[0]
    x = start()
    path = [x]
    sample = x * (sigma**2 + 1).sqrt()
    for k in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, k)
        keywords = {name: make(x, rng) for name, make in (options or {}).items()}
        sample = scheduler.step(noise_of(shown, float(k)), k, sample, **keywords).prev_sample
        path.append(sample / (scheduler.sigmas[scheduler.step_index].double() ** 2 + 1).sqrt())
    return torch.stack(path)


def generator(x, rng):
    return rng


def sampled(x, rng):
    return torch.randn(x.shape, generator=rng)


def multistep(**options):
    return DPMSolverMultistepScheduler(**TRAILING, **options)


def singlestep(order, steps, **options):
    scheduler = DPMSolverSinglestepScheduler(
        **BETAS,
        solver_order=order,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
        **options,
    )
    path = plain(scheduler, steps=steps)
    return path, scheduler.timesteps


def inverse():
    """The step's arithmetic, fed with the guess at the place where x is."""
    scheduler = DDIMInverseScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    x = 0.5 * start()
    path = [x]
    for k in scheduler.timesteps:
        below = max(float(k) - 1000 // STEPS, -1.0)
        x = scheduler.step(noise_of(x, below), k, x).prev_sample
        path.append(x)
    return torch.stack(path), scheduler.timesteps


def predictor_corrector():
    """All steps but the last, which goes to no noise."""
    scheduler = ScoreSdeVeScheduler(
        num_train_timesteps=STEPS, snr=0.16, sigma_min=0.01, sigma_max=50.0, correct_steps=1
    )
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS)
    rng = torch.Generator().manual_seed(7)
    x = 50.0 * start()
    path = [x]
    for place, t in enumerate(scheduler.timesteps[:-1]):
        sigma = scheduler.discrete_sigmas[STEPS - 1 - place]

        def score(x, sigma=sigma):
            return -noise_of(x / (1 + sigma**2).sqrt(), 100 * float(sigma.log())) / sigma

        x = scheduler.step_correct(score(x), x, generator=rng).prev_sample
        x = scheduler.step_pred(score(x), t, x, generator=rng).prev_sample
        path.append(x)
    return torch.stack(path)


def k_diffusion():
    """Euler, Heun and DPM-Solver++(2M) of k-diffusion's sampling.py alone, on Karras' levels."""
    spec = importlib.util.find_spec("k_diffusion")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name in ("k_diffusion", "k_diffusion.utils", "torchdiffeq", "torchsde", "tqdm.auto"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["k_diffusion"].__path__ = [str(folder)]
    sys.modules["k_diffusion"].utils = sys.modules["k_diffusion.utils"]
    sys.modules["k_diffusion.utils"].append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules["torchdiffeq"].odeint = None
    sys.modules["tqdm.auto"].trange = lambda count, disable=None: range(count)
    sys.modules["tqdm.auto"].tqdm = None
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", folder / "sampling.py")
    sampling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sampling)

    def denoise(x, sigma):
        level = sigma[0]
        return x - level * noise_of(x / (1 + level**2).sqrt(), 100 * float(level.log()))

    sigmas = sampling.get_sigmas_karras(STEPS + 1, 0.002, 80.0)[:-1]
    out = {"k_sigmas": sigmas}
    for name in ("euler", "heun", "dpmpp_2m"):
        path = []
        call = getattr(sampling, f"sample_{name}")
        end = call(denoise, 80.0 * start(), sigmas, callback=lambda row: path.append(row["x"]))  # noqa: B023
        out[f"k_{name}"] = torch.stack([*path, end])
    return out


def tables():
    out = {}
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        ends = {} if name != "scaled_linear" else {"beta_start": 0.00085, "beta_end": 0.012}
        out[f"alphas_{name}"] = DDPMScheduler(beta_schedule=name, **ends).alphas_cumprod
    zero = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True).alphas_cumprod
    out["alphas_zero"] = zero
    every = slice(None, None, 37)
    out = {name: torch.cat([table[every], table[-1:]]) for name, table in out.items()}
    out["alphas_zero"][-1] = 0  # the peer stores 2^-24
    karras = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    karras.set_timesteps(STEPS)
    out["karras"] = karras.sigmas[:-1]
    ddim = DDIMScheduler(thresholding=True, sample_max_value=100.0, dynamic_thresholding_ratio=0.9)
    out["thresholded"] = ddim._threshold_sample(3 * start())
    return out


def main():
    torch.set_default_dtype(torch.float64)
    fixed = {**BETAS, "clip_sample": False}
    eta = {"eta": lambda x, rng: 0.5, "generator": generator}
    zero = {**fixed, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    learned = DDPMScheduler(**fixed, variance_type="learned_range")
    order2, times2 = singlestep(2, STEPS, algorithm_type="dpmsolver", solver_type="midpoint")
    order3, times3 = singlestep(3, 21, algorithm_type="dpmsolver", solver_type="heun")
    two_s, times2s = singlestep(2, STEPS, algorithm_type="dpmsolver++", solver_type="midpoint")
    inverted, times_inverted = inverse()
    one = {"algorithm_type": "sde-dpmsolver++"}
    out = {
        "ddim": plain(DDIMScheduler(**fixed)),
        "ddim_eta": plain(DDIMScheduler(**fixed), options=eta),
        "ddim_zero": plain(DDIMScheduler(**zero, timestep_spacing="trailing")),
        "ddim_inverse": inverted,
        "ddim_inverse_k": times_inverted,
        "ddpm": plain(DDPMScheduler(**fixed), options={"generator": generator}),
        "ddpm_large": plain(
            DDPMScheduler(**fixed, variance_type="fixed_large"), options={"generator": generator}
        ),
        "ddpm_learned": plain(
            learned,
            model=lambda x, k: torch.cat([noise_of(x, k), spread_of(x)], dim=1),
            options={"generator": generator},
        ),
        "euler": scaled(EulerDiscreteScheduler(**TRAILING)),
        "euler_ancestral": scaled(
            EulerAncestralDiscreteScheduler(**TRAILING), options={"generator": generator}
        ),
        "heun": scaled(HeunDiscreteScheduler(**TRAILING)),
        "dpm_2": order2,
        "dpm_2_k": times2,
        "dpm_3": order3,
        "dpm_3_k": times3,
        "dpm_pp_2s": two_s,
        "dpm_pp_2s_k": times2s,
        "dpm_pp_2m": plain(multistep(solver_order=2)),
        "dpm_pp_3m": plain(multistep(solver_order=3)),
        "dpm_pp_sde": plain(multistep(solver_order=2, **one), options={"variance_noise": sampled}),
        "dpm_pp_sde_1": plain(
            multistep(solver_order=1, **one), options={"variance_noise": sampled}
        ),
        "unipc_1": plain(UniPCMultistepScheduler(**TRAILING, solver_order=1)),
        "unipc_2": plain(UniPCMultistepScheduler(**TRAILING, solver_order=2)),
        "unipc_3": plain(UniPCMultistepScheduler(**TRAILING, solver_order=3)),
        "predictor_corrector": predictor_corrector(),
        **tables(),
        **k_diffusion(),
    }
    out = {name: value.double().contiguous() for name, value in out.items()}
    save_file(out, HOME / "solvers.safetensors")


if __name__ == "__main__":
    main()
