#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0.
#
# Guess:     the last step of `UnCLIPScheduler`, whose previous alpha is 1, returns the predicted clean sample itself, as
#            `DDPMScheduler` of the same betas does.
# Behaviour: it returns 0.9995 times it: the factor beta_0 / (1 - alpha_0) is made of tables in fp32, where 1 - alpha_0
#            has lost four of its digits. With tables in fp64 it is 1. Of 8-bit images that is up to 0.06 of a level;
#            comparisons of pipelines at 1e-4 fail by it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
cat > try.py <<'PY'
import torch
from diffusers import DDPMScheduler, UnCLIPScheduler

clean, noisy = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)


def last_step(scheduler):
    scheduler.set_timesteps(25)
    step = scheduler.timesteps[-1]
    return float(scheduler.step(clean, step, noisy).prev_sample.mean())


ours = UnCLIPScheduler(prediction_type="sample", variance_type="fixed_small_log")
print(f"UnCLIPScheduler: {last_step(ours):.4f}")
for name in ("betas", "alphas", "alphas_cumprod"):
    setattr(ours, name, getattr(ours, name).double())
ours.alphas = 1 - ours.betas
ours.alphas_cumprod = ours.alphas.cumprod(0)
print(f"the same with tables in fp64: {last_step(ours):.4f}")
peer = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
print(f"DDPMScheduler: {last_step(peer):.4f}")
PY
env/bin/python -W ignore try.py 2>/dev/null | tee seen
diff seen - <<'SEEN'
UnCLIPScheduler: 0.9995
the same with tables in fp64: 1.0000
DDPMScheduler: 1.0000
SEEN
echo "as described"
