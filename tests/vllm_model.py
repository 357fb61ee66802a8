"""A GGUF file → a folder of safetensors, which is what vLLM serves. Runs in vLLM's environment: vllm_environment.sh."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main(gguf: Path, destination: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised by now; transformers refuses to save a model that still says it is quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(temporary, destination)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
