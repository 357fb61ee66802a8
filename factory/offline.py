"""No library of ours calls home: what each of them reads to stay silent and off the network."""

from __future__ import annotations

import os

SILENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime from 1.29 on sends events to Microsoft; markitdown brings it
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def stay_offline() -> None:
    """Set them for this process and those that it starts; before the libraries are imported, which read them once."""
    os.environ.update(SILENT)
