"""What diffusers, transformers and open_clip make of exported folders, for `test_peers.py`.

python peer_libraries.py GIVEN.safetensors OUT.safetensors JSON, where JSON is a list of jobs:
{"job": name, "folder": ..., ...}. One process answers all of them: the imports take seconds.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.torchvision_compat import ensure_torchvision

ensure_torchvision()
import diffusers  # noqa: E402
import open_clip  # noqa: E402
import transformers  # noqa: E402
from diffusers.loaders import single_file_utils  # noqa: E402, F401
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion  # noqa: E402, F401

GIVEN, OUT, JOBS = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


def pipeline(folder, given, name, prompts, schedulers, guidance):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    found = {"hidden": pipe.text_encoder(given_tokens(pipe.tokenizer, prompts)).last_hidden_state}
    config = pipe.scheduler.config
    for scheduler, steps in schedulers.items():
        pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
        images = pipe(
            prompts,
            latents=given["latents"],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="np",
        ).images
        found[f"images.{scheduler}"] = torch.from_numpy(images).permute(0, 3, 1, 2)
    return found


def given_tokens(tokenizer, prompts):
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def network(folder, given, name, kind):
    found, loading = getattr(diffusers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model = found.eval()
    match kind:
        case "AutoencoderKL":
            factor = model.config.scaling_factor
            latents = model.encode(given["image"]).latent_dist.mean * factor
            return {"latents": latents, "decoded": model.decode(latents / factor).sample}
        case "VQModel":
            factor = model.config.scaling_factor
            latents = model.encode(given["image"]).latents * factor
            return {"latents": latents, "decoded": model.decode(latents / factor).sample}
        case "UNet2DConditionModel":
            x, steps = given["latents"], given["steps"]
            return {"out": model(x, steps, given["features"]).sample}
        case "ControlNetModel":
            x, steps, features = given["latents"], given["steps"], given["features"]
            down, mid = model(x, steps, features, given["hint"], return_dict=False)
            return {f"residual.{index}": each for index, each in enumerate([*down, mid])}
    raise ValueError(kind)


def clip(folder, given, name, prompts):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    tokens = tokenizer(prompts)
    return {
        "tokens": tokens,
        "text": model.encode_text(tokens, normalize=True),
        "image": model.encode_image(given["image"], normalize=True),
        "mean": torch.tensor(preprocess.transforms[-1].mean),
    }


def text(folder, given, name, prompts):
    model, loading = transformers.CLIPTextModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder).parent / "tokenizer")
    tokens = given_tokens(tokenizer, prompts)
    found = model.eval()(tokens)
    return {"tokens": tokens, "hidden": found.last_hidden_state, "pooled": found.pooler_output}


def compvis(folder, given, name, unet, vae):
    """Weights of CompVis' layout, as diffusers' own readers rename them."""
    convert = diffusers.loaders.single_file_utils
    weights = load_file(Path(folder) / "compvis.safetensors")
    parts = {
        "unet": convert.convert_ldm_unet_checkpoint(dict(weights), unet),
        "vae": convert.convert_ldm_vae_checkpoint(dict(weights), vae),
        "control": convert.convert_controlnet_checkpoint(dict(weights), unet),
    }
    return {f"{part}.{key}": each for part, found in parts.items() for key, each in found.items()}


def ldm_bert(folder, given, name, config):
    """Latent diffusion's text transformer with the weights of a file."""
    ldm = diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion
    model = ldm.LDMBertModel(ldm.LDMBertConfig(**config)).eval()
    left, strange = model.load_state_dict(
        load_file(Path(folder) / "ldm_bert.safetensors"), strict=False
    )
    assert all(each.startswith("to_logits") for each in left)
    assert not strange
    return {"tokens": model.model(given["text"])[0]}


def unclip(folder, given, name, prompts, seed, exact):
    """Images of the decoder, whose noise begins with the seed, and what it was given.

    `exact`: the decoder's scheduler has its tables in fp64, not fp32.
    """
    pipe = diffusers.UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    rng, found, scheduler = torch.Generator().manual_seed(1), {}, pipe.decoder_scheduler
    if exact:
        times = torch.arange(1001, dtype=torch.float64) / 1000
        kept = ((times + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        scheduler.betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    begin, step = scheduler.set_timesteps, scheduler.step

    def set_timesteps(*arguments, **named):
        rng.manual_seed(seed)
        begin(*arguments, **named)
        found["steps"] = scheduler.timesteps

    def take_step(*arguments, **named):
        done = step(*arguments, **named)
        found["images"] = done.prev_sample
        return done

    scheduler.set_timesteps, scheduler.step = set_timesteps, take_step
    inputs = []
    project = pipe.text_proj.forward
    pipe.text_proj.forward = lambda **named: inputs.append(named) or project(**named)
    final = pipe(
        prompts,
        generator=rng,
        decoder_latents=given["noise"],
        prior_num_inference_steps=4,
        decoder_num_inference_steps=8,
        super_res_num_inference_steps=3,
        decoder_guidance_scale=3.0,
        output_type="np",
    ).images
    found["embedding"] = inputs[0]["image_embeddings"]
    found["text_embedding"] = inputs[0]["prompt_embeds"]
    found["features"] = inputs[0]["text_encoder_hidden_states"]
    large = pipe.super_res_first(given["large"], given["steps"]).sample
    return found | {"final": torch.from_numpy(final), "large": large}


JOBS_BY_KIND = {
    "unclip": unclip,
    "pipeline": pipeline,
    "network": network,
    "clip": clip,
    "text": text,
    "compvis": compvis,
    "ldm_bert": ldm_bert,
}


def main():
    torch.set_num_threads(1)
    given, answers = load_file(GIVEN), {}
    for job in JOBS:
        kind, name = job.pop("job"), job.pop("name")
        with torch.no_grad():
            found = JOBS_BY_KIND[kind](given=given, name=name, **job)
        answers |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
    save_file(answers, OUT)


main()
