#!/usr/bin/env bash
# deepspeed 0.19.8 with torch 2.13.0, on a CPU over gloo, one process.
#
# Guess:     `deepspeed.initialize` with bf16 weights at ZeRO stage 0 leaves the fp32 master weights and the optimizer
#            as they are; the first update is AdamW's first, as at stage 2.
# Behaviour: FP16_UnfusedOptimizer, which serves stage 0 in bf16 and fp16, calls `optimizer.step()` once with gradients
#            of 0 when it is made: the weight decay is applied once to the master weights (not to the 16-bit ones), and
#            the first real update is counted, and its bias corrected, as the second. Stage 2 does neither. Nothing is
#            said.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check torch==2.13.0 numpy setuptools wheel
env/bin/pip install -qq --disable-pip-version-check --no-build-isolation deepspeed==0.19.8 torch==2.13.0
cat > try.py <<'PY'
import logging
import os

import deepspeed
import torch
import torch.distributed as dist

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
os.environ.update(LOCAL_RANK="0")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
deepspeed.init_distributed("gloo", dist_init_required=False, verbose=False)
for stage in (0, 2):
    layer = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.125, weight_decay=0.5)
    config = {
        "train_batch_size": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 0.0,
    }
    engine, *_ = deepspeed.initialize(
        model=layer, optimizer=optimizer, config=config, dist_init_required=False
    )
    master = optimizer.param_groups[0]["params"][0]
    steps = [int(state["step"]) for state in optimizer.state.values()]
    print(f"stage {stage}: weight {layer.weight.flatten()[0].item()}, "
          f"master {master.flatten()[0].item()}, updates counted {steps}")
    engine.backward(engine(torch.ones(1, 4, dtype=torch.bfloat16)).sum())
    engine.step()
    print(f"  after one update: {master.flatten()[0].item():.4f}")
PY
env/bin/python -W ignore try.py 2>&1 | grep -E "^(stage| )" | tee seen
diff seen - <<'SEEN'
stage 0: weight 1.0, master 0.9375, updates counted [1]
  after one update: 0.7859
stage 2: weight 1.0, master 1.0, updates counted []
  after one update: 0.8125
SEEN
echo "as described"
