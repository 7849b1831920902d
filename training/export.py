"""Writes a checkpoint as the folder that ships.

    python -m training.export CHECKPOINT PACKED OUT --id mini-1 --passages apart --card CARD.md

bf16 safetensors in shards of at most 15 MB, tokenizer with the chat template, generation config; no
local path in any file.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from training.frame import BOS, EOS, EOT, PAD
from training.tokenizer import save as save_tokenizer

LOCAL = ("_name_or_path", "is_local", "local_files_only")


def strip(path: Path) -> None:
    """Removes what tells of the machine from a JSON file."""
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in LOCAL}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def export(
    checkpoint: Path,
    tokenizer: Path,
    out: Path,
    name: str,
    passages: str | None = None,
    shard: str = "15MB",
) -> None:
    """Writes weights, tokenizer and configs, with `name` as the model's id.

    The configs also have the frame it is asked in, and how it reads `passages` (if any). What was
    in `out` goes.
    """
    shutil.rmtree(out, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.config.eos_token_id = [EOS, EOT]
    model.config.rag_memtok_frame = "plain"  # the one it was trained in (frame.py)
    if name:
        model.config.rag_memtok_id = name
    if passages:
        model.config.rag_memtok_passages = passages
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=[EOS, EOT], pad_token_id=PAD, do_sample=False
    )
    model.save_pretrained(out, max_shard_size=shard)
    save_tokenizer(Tokenizer.from_file(str(tokenizer)), out, model.config.max_position_embeddings)
    for path in out.glob("*config.json"):
        strip(path)


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("packed", type=Path, help="the folder with tokenizer.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--id", default="", help="the model's name, kept in config.json")
    parser.add_argument(
        "--passages",
        choices=("together", "apart"),
        help="how it was measured to read several passages better, kept there, too",
    )
    parser.add_argument("--card", type=Path, help="becomes README.md")
    args = parser.parse_args()
    export(args.checkpoint, args.packed / "tokenizer.json", args.out, args.id, args.passages)
    if args.card:
        shutil.copy(args.card, args.out / "README.md")
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.name}")


if __name__ == "__main__":
    main()
