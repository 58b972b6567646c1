"""Published weights of SegFormer's encoder, the Mix Transformer: their names and ours, from a file or from the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kirie.errors import KirieError
from kirie.models.parts.encoder import for_channels, read_tensors

_BLOCK = {
    "layer_norm_1": "norm1",
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.self.sr": "attention.reduce",
    "attention.self.layer_norm": "attention.norm",
    "attention.output.dense": "attention.out",
    "layer_norm_2": "norm2",
    "mlp.dense1": "ffn.expand",
    "mlp.dwconv.dwconv": "ffn.mix",
    "mlp.dense2": "ffn.shrink",
    # as transformers 5 calls them in memory, and so what torch.save(model.state_dict()) writes
    "layernorm_before": "norm1",
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.sequence_reduction.sequence_reduction": "attention.reduce",
    "attention.sequence_reduction.layer_norm": "attention.norm",
    "attention.o_proj": "attention.out",
    "layernorm_after": "norm2",
    "mlp.fc1": "ffn.expand",
    "mlp.fc2": "ffn.shrink",
}
_PATCH = {"proj": "proj", "layer_norm": "norm"}
_PLACES = (  # where, as what, and the names within; the former of each pair in files, the latter in memory
    (r"encoder\.patch_embeddings\.(\d+)", r"stages.\1.patch", _PATCH),
    (r"stages\.(\d+)\.patch_embeddings", r"stages.\1.patch", _PATCH),
    (r"encoder\.block\.(\d+)\.(\d+)", r"stages.\1.blocks.\2", _BLOCK),
    (r"stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.blocks.\2", _BLOCK),
    (r"encoder\.layer_norm\.(\d+)", r"stages.\1.norm", {"": ""}),
    (r"stages\.(\d+)\.layer_norm", r"stages.\1.norm", {"": ""}),
)


def mit_name(name: str) -> str | None:
    """Our name of a published encoder tensor, such as `stages.0.patch.proj.weight`; None for tensors of other parts.

    Keys and values are still apart (`attention.key`, `attention.value`); see `joined`.
    """
    place, _, leaf = name.removeprefix("segformer.").rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    for pattern, ours, within in _PLACES:
        match = re.match(rf"{pattern}(?=\.|$)", place)
        inner = place[match.end() :].lstrip(".") if match else None
        if match and inner in within:
            return ".".join(part for part in (match.expand(ours), within[inner], leaf) if part)
    return None


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with each `attention.key` and `attention.value` as one `attention.key_value`, keys first."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*\.attention\.)(key|value)(\.\w+)", name)
        other = match and state.get(f"{match[1]}{'value' if match[2] == 'key' else 'key'}{match[3]}")
        if match is None or other is None or other.shape != tensor.shape or tensor.ndim == 0:
            out[name] = tensor
        elif match[2] == "key":
            out[f"{match[1]}key_value{match[3]}"] = torch.cat([tensor, other])
    return out


def read_mit(encoder: nn.Module, weights: str, size: str) -> None:
    """Fills a Mix Transformer with published weights; a classification or segmentation head in the file is left out.

    Args:
        encoder: which.
        weights: the path of a `.bin`, `.pth` or `.safetensors` file with Hugging Face's names, or "hub".
        size: "b0" to "b5": which one of the hub.

    Raises:
        KirieError: when the file cannot be had or read, or does not fit.
    """
    path = _download(size) if weights == "hub" else Path(str(weights))
    renamed = {mit_name(name): tensor for name, tensor in read_tensors(path).items()}
    given = joined({name: tensor for name, tensor in renamed.items() if name is not None})
    own = encoder.state_dict()
    first = "stages.0.patch.proj.weight"
    if first in given:
        given[first] = for_channels(given[first], own[first], own[first].shape[1])
    missing, extra = [name for name in own if name not in given], [name for name in given if name not in own]
    wrong = [
        f"{name} {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        faults = {"missing": missing, "not in this encoder": extra, "of another shape": wrong}
        told = "; ".join(f"{len(names)} tensors {what}, such as {names[0]}" for what, names in faults.items() if names)
        raise KirieError(
            f"{path} does not fit this encoder: {told}. It must be a Mix Transformer of the same size with Hugging "
            "Face's names, as nvidia/mit-b0 has them."
        )
    encoder.load_state_dict(given)


def _download(size: str) -> Path:
    """The file of `nvidia/mit-b...`, fetched once and kept in the hub's own folder."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    repository = f"nvidia/mit-{size}"
    try:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
        except EntryNotFoundError:
            return Path(huggingface_hub.hf_hub_download(repository, "pytorch_model.bin"))
    except Exception as error:  # the hub, its client and the network each raise kinds of their own
        raise KirieError(
            f"Cannot download {repository} from the Hugging Face hub ({type(error).__name__}); is there a network? "
            f"Otherwise fetch its pytorch_model.bin elsewhere and give the path as encoder_weights."
        ) from error
