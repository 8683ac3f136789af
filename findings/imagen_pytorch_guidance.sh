#!/usr/bin/env bash
# imagen-pytorch 2.1.0, torch 2.13.0.
#
# Guess:     `cond_scale`, which README and command line call classifier-free guidance, gives u + s (c - u) of the
#            predictions with and without the caption; larger scales move the prediction further along itself too.
# Behaviour: by default the part of c - u that is parallel to c is left out, so the component along c stays at |c|^2 at
#            every scale; u + s (c - u) needs remove_parallel_component=False (in `Imagen.sample`
#            cfg_remove_parallel_component=False).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check torch==2.13.0 einops==0.8.2 beartype==0.23.1 tqdm==4.70.1 numpy==2.4.6
env/bin/pip install -qq --disable-pip-version-check --no-deps imagen-pytorch==2.1.0
cat > try.py <<'PY'
import importlib.util
import sys
import types

import torch

# what the module imports for augmentation and for T5, which a network does not need
for name in ("torchvision", "torchvision.transforms", "kornia", "kornia.augmentation", "imagen_pytorch.t5"):
    sys.modules[name] = types.ModuleType(name)
text = sys.modules["imagen_pytorch.t5"]
text.t5_encode_text, text.get_encoded_dim, text.DEFAULT_T5_NAME = None, lambda name: 768, ""
package = types.ModuleType("imagen_pytorch")
package.__path__ = list(importlib.util.find_spec("imagen_pytorch").submodule_search_locations)
sys.modules["imagen_pytorch"] = package
from imagen_pytorch.imagen_pytorch import Unet

torch.manual_seed(0)
unet = Unet(dim=16, dim_mults=(1, 2), text_embed_dim=8, max_text_len=4, layer_attns=False).eval()
torch.nn.init.normal_(unet.final_conv.weight, std=0.1)  # 0 in a new network
x, time, text = torch.randn(1, 3, 16, 16), torch.zeros(1), torch.randn(1, 4, 8)
with torch.no_grad():
    c = unet(x, time, text_embeds=text)
    u = unet(x, time, text_embeds=text, cond_drop_prob=1.0)
    for scale in (2.0, 5.0):
        wanted = u + scale * (c - u)
        for remove in (True, False):
            found = unet.forward_with_cond_scale(
                x, time, text_embeds=text, cond_scale=scale,
                **({} if remove else {"remove_parallel_component": False}),
            )
            along = float(((found - c) * c).sum() / (c * c).sum())
            equal = torch.allclose(found, wanted, atol=1e-4)
            print(
                f"scale {scale:g}, {'default' if remove else 'nothing removed'}:",
                "u + s (c - u)" if equal else "another",
                "unchanged along c" if abs(along) < 1e-5 else "changed along c",
            )
PY
env/bin/python -W ignore try.py 2>/dev/null | grep scale | tee seen
diff seen - <<'SEEN'
scale 2, default: another unchanged along c
scale 2, nothing removed: u + s (c - u) changed along c
scale 5, default: another unchanged along c
scale 5, nothing removed: u + s (c - u) changed along c
SEEN
echo "as described"
