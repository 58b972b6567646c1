"""Checkpoints of other projects: one translator per publisher, each a pure function from state dict to state dict."""

from __future__ import annotations

PUBLISHERS = {
    "milesial": "kirie.weights.from_milesial:translate",
}
