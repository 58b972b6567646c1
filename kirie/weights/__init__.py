"""Checkpoints of other projects: one translator per publisher, each a pure function from state dict to state dict."""

from __future__ import annotations

PUBLISHERS = {
    "adelaidet": "kirie.weights.from_adelaidet:translate",
    "detectron2": "kirie.weights.from_detectron2:translate",
    "hrnet": "kirie.weights.from_hrnet:translate",
    "huggingface": "kirie.weights.from_huggingface:translate",
    "milesial": "kirie.weights.from_milesial:translate",
    "semseg": "kirie.weights.from_semseg:translate",
    "torchvision": "kirie.weights.from_torchvision:translate",
    "vainf": "kirie.weights.from_vainf:translate",
    "yolact": "kirie.weights.from_yolact:translate",
}
