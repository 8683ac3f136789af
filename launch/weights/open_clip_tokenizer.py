"""open_clip's own tokenizer as the files of transformers' `CLIPTokenizer`."""

import json

from models.torchvision_compat import ensure_torchvision


def open_clip_tokenizer_files(length: int, pad: str | None = None) -> dict[str, bytes]:
    """`vocab.json`, `merges.txt` and `tokenizer_config.json` by name, for `length` ids.

    Captions are padded with the piece `pad`; None: with id 0, as open_clip pads them.
    """
    ensure_torchvision()
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=length)
    ranked = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in ranked)]) + "\n"
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(piece, piece): id_ for piece, id_ in tokenizer.encoder.items()}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad or tokenizer.decoder[0],
    }
    return {
        "vocab.json": (json.dumps(vocab, ensure_ascii=False) + "\n").encode(),
        "merges.txt": merges.encode(),
        "tokenizer_config.json": (json.dumps(config, indent=1) + "\n").encode(),
    }
