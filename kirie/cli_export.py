"""The command that writes a model for another runtime: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kirie.terminal import json_text

if TYPE_CHECKING:
    from kirie.export.write import Exported


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors model file or the folder of a run.")],
    to: Annotated[str, typer.Option(help="openvino, onnx, or torch (a program for torch.export.load).")] = "openvino",
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: beside the model, where prediction finds it).")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32; fp16, weights of 16 bits; bf16, computed so where the machine can (openvino); or int8, "
            "calibrated on DATA."
        ),
    ] = "fp32",
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="A data set: on which it is proved, and what precision costs is measured."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split accuracy is measured on, as of evaluate.")] = None,
    max_loss: Annotated[float, typer.Option(help="How much lower the score on DATA may be than the model's.")] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the file says of itself as JSON.")] = False,
) -> None:
    """Write a model for another runtime.

    The export is run beside the model on real pictures and at odd sizes, and kept only when both give the same; below
    fp32, when the score on DATA falls by no more than --max-loss. Exports beside the model are found by predict and
    evaluate, which take the fastest.
    """
    from kirie.export.write import export_model

    done = export_model(
        model, to=to, out=out, precision=precision, data=data, split=split, max_loss=max_loss, overwrite=overwrite
    )
    if as_json:
        print(json_text({"file": str(done.path), **done.export.to_dict()}))
        return
    _tell(done)


def _tell(done: Exported) -> None:
    files = ", ".join(sorted(done.export.files))
    print(f"{done.path}" + (f", with {files}" if files else ""))
    print(f"proof: {done.proof.words()}")
    if done.scores is not None:
        print(f"score on the data: {done.scores[0]:.4f}, exported {done.scores[1]:.4f}")
    torch, here = (done.export.milliseconds[name] for name in ("torch", done.export.runtime))
    height, width = done.proof.sizes[0]
    print(f"a picture of {height} x {width}: {here:.0f} ms, by PyTorch {torch:.0f} ms ({torch / here:.2f} x)")
