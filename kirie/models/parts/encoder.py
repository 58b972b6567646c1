"""Backbones from timm: feature maps at several strides, weights from the hub or from a local file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.errors import KirieError
from kirie.models.parts import variants
from kirie.models.parts.checks import check_flag, check_whole
from kirie.models.parts.conv import allow_single_values
from kirie.models.parts.freezing import Freezable
from kirie.models.parts.sizes import at_least, same


class Encoder(Freezable):
    """A timm network cut into stages.

    Args:
        name: a timm architecture such as `resnet34`, `mobilenetv2_100`, `convnext_tiny`.
        in_channels: C of the images.
        stages: how many stages to keep, finest first; None for all.
        weights: None for random weights, "hub" for timm's pretrained ones (needs a network), or the path of a local
            `.safetensors` or `.pth` file in timm's own layout.
        output_stride: 8, 16 or 32. Below 32 the late stages keep their size and their convolutions are dilated instead
            (DeepLab's atrous convolutions).
        dilate_first: whether a dilated stage's first convolution has the stage's own rate too, as in the releases of
            PSPNet; otherwise it has the rate of the stage before, as in torchvision's.
        stride_first: whether bottlenecks halve the size in their first 1 x 1 convolution, as in the ResNets of MSRA and
            Detectron2; otherwise in the 3 x 3 one.
        norm_eps: of batch norm, in place of the architecture's own.
        leak: slope of leaky ReLUs below 0, in place of the architecture's own (in Darknet 0.1, in timm's 0.01).
        frozen_norm: batch norm keeps the statistics and factors that it has, also in training; for small batches.
        frozen_stages: the first so many stages (feature maps) do not learn, and drop nothing.
        pad_first: whether zeros are put around what comes into an inverted residual, before it is widened, and none
            around the picture, as in VainF's MobileNetV2; otherwise around what its depthwise convolution takes. The
            first map is then (H - 1) / 2 high, rounded down, in place of H / 2 rounded up, and each other one half as
            high as the one before, rounded up. Only models that do with such maps take it; see `exact`.
        first_blocks: whether the feature maps of an EfficientNet or MobileNet, but the last, are those of the first
            block at their stride, as torchvision takes them from MobileNetV3, and not of the last block.

    Attributes:
        channels: of each feature map, finest first.
        strides: of each feature map, finest first.
        divisor: pictures whose sides are multiples of it have exact feature maps; 1 where the network rounds every
            size up, so that no padding is needed, or where no padding would make them exact.
        exact: whether the feature maps of such pictures, from 2 x 2 cells of the coarsest on, are H / stride high and
            W / stride wide. Otherwise (`pad_first`) maps of several strides do not lie on each other.
        options: those that the encoder was built with by `build_encoder`, plain values of its own, or None.
        mean: (C,) that the network expects to be subtracted from images in [0, 1].
        std: (C,) that it expects them to be divided by.

    Raises:
        KirieError: when timm has no such architecture or it gives no feature maps, an option is none or does not fit
            it, or the weights cannot be had.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        *,
        stages: int | None = None,
        weights: str | None = None,
        output_stride: int = 32,
        dilate_first: bool = False,
        stride_first: bool = False,
        norm_eps: float | None = None,
        leak: float | None = None,
        frozen_norm: bool = False,
        frozen_stages: int = 0,
        pad_first: bool = False,
        first_blocks: bool = False,
    ) -> None:
        super().__init__()
        flags = {
            "dilate_first": dilate_first, "stride_first": stride_first, "frozen_norm": frozen_norm,
            "pad_first": pad_first, "first_blocks": first_blocks,
        }  # fmt: skip
        _check(in_channels, output_stride, {"norm_eps": norm_eps, "leak": leak}, frozen_stages, flags)
        body = _network(name, in_channels, stages, weights, output_stride)
        self.body = body
        self.options: dict[str, Any] | None = None
        self.channels: list[int] = list(body.feature_info.channels())
        self.strides: list[int] = list(body.feature_info.reduction())
        _check_strides(name, self.strides, output_stride)
        self._places: list[variants.Place] = []
        if dilate_first:
            variants.dilate_first(body)
        if stride_first and not variants.stride_first(body):
            raise KirieError(f"stride_first moves the stride of bottlenecks, of which {name!r} has none.")
        if pad_first and not variants.pad_first(body):
            raise KirieError(f"pad_first moves the padding of inverted residuals, of which {name!r} has none.")
        if leak is not None and not variants.leak(body, leak):
            raise KirieError(f"leak is the slope of leaky ReLUs, of which {name!r} has none.")
        if first_blocks:
            self._places = variants.first_blocks(body)
            if not self._places:
                raise KirieError(f"first_blocks is for EfficientNets and MobileNets, which {name!r} is not.")
        self._try_out(name, in_channels, may_differ=pad_first)
        self._freeze(name, norm=frozen_norm, stages=frozen_stages)
        allow_single_values(body)
        for norm in self._norms():
            norm.eps = norm.eps if norm_eps is None else norm_eps
        self.mean, self.std = pixel_statistics(in_channels, timm.get_pretrained_cfg(name))
        if weights not in (None, "hub"):
            load_weights(self.body, Path(str(weights)), in_channels)

    def _try_out(self, name: str, in_channels: int, *, may_differ: bool) -> None:
        """Runs small pictures: some networks of timm accept a single size, put channels last, or cut off remainders."""
        last = self.strides[-1]
        self.eval()
        self.divisor, self.exact = 1, True
        for height, width in ((2 * last, 3 * last), (2 * last + 1, 3 * last - 1)):
            whole = height % last == 0
            try:
                with torch.no_grad():
                    found = [tuple(map_.shape) for map_ in self(torch.zeros(1, in_channels, height, width))]
            except Exception as error:  # asserts and shape errors of many kinds
                if whole:
                    raise KirieError(
                        f"{name!r} does not take pictures of any size, as an encoder must: {error}"
                    ) from error
                found = []
            if whole and self._places:
                self.channels = [shape[1] for shape in found]
            expected = [
                (1, c, -(-height // s), -(-width // s)) for c, s in zip(self.channels, self.strides, strict=True)
            ]
            if whole and found != expected:
                if not may_differ:
                    raise KirieError(f"{name!r} gives features of shapes {found}; an encoder must give {expected}.")
                self.exact = False
                break
            if found != expected:
                self.divisor = last
        self.train()

    def at_stride(self, stride: int) -> int:
        """Index of the first feature map at a stride; the very last map is for the main head and does not count.

        Raises:
            KirieError: when there is none.
        """
        found = [index for index, own in enumerate(self.strides[:-1]) if own == stride]
        if not found:
            raise KirieError(
                f"The encoder has no feature map at stride {stride} before its last; it has them at {self.strides}."
            )
        return found[0]

    def _norms(self) -> list[Any]:
        return [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _freeze(self, name: str, *, norm: bool, stages: int) -> None:
        if stages > len(self.channels):
            raise KirieError(f"frozen_stages is {stages}, but {name!r} has {len(self.channels)} stages.")
        rows = self.levels()
        if stages and len(rows) < len(self.channels):
            raise KirieError(f"frozen_stages must be 0 for {name!r}, which is no plain row of stages.")
        frozen = [module for stage in rows[:stages] for module in stage]
        self.freeze([*frozen, *(self._norms() if norm else [])])

    def levels(self) -> list[list[nn.Module]]:
        """Per feature map, finest first, the modules that it needs beyond the one before.

        These are all modules with tensors of their own, and those without parts. All in one where the network is no
        plain row of stages.
        """
        named = list(self.body.named_modules())
        names = [variants.place_name(place) for place in self._places] or [
            self.body.feature_info.module_name(index) for index in range(len(self.channels))
        ]
        ends = []
        for name in names:
            inside = [i for i, (n, _) in enumerate(named) if _plain(f"{n}.").startswith(_plain(f"{name}."))]
            ends.append(inside[-1] if inside else -1)
        if -1 in ends or ends != sorted(ends):
            ends = [len(named)]
        own = [m for _, m in named]
        starts = [0, *(end + 1 for end in ends[:-1])]
        with_tensors = {id(m) for m in own if [*m.parameters(recurse=False), *m.buffers(recurse=False)]}
        wanted = with_tensors | {id(m) for m in own if not [*m.children()]}
        rows = [[m for m in own[start : end + 1] if id(m) in wanted] for start, end in zip(starts, ends, strict=True)]
        if sum(id(m) in with_tensors for row in rows for m in row) < len(with_tensors):
            return [[m for m in own if id(m) in wanted]]  # some stand elsewhere than where they are used
        return rows

    def padded(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) with last row and column repeated so far that all feature maps are exact and 2 x 2."""
        return padded(images, 2 * self.strides[-1], self.divisor)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that `padded` gives to images of a size (H, W)."""
        return _padded_size(size, 2 * self.strides[-1], self.divisor)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C_i, H / stride_i, W / stride_i), finest first, for images (B, C, H, W)."""
        if self._places:
            return variants.maps_at(self.body, self._places, images)
        features: list[Tensor] = self.body(images)
        return features


def no_hub(name: str, error: Exception) -> KirieError:
    """What to say when timm could not fetch the weights of an architecture."""
    return KirieError(
        f"timm cannot fetch weights for {name!r} ({type(error).__name__}): there is no network, or the hub has none. "
        "Fetch the file elsewhere and give its path as encoder_weights, or leave that out and start at random."
    )


def load_weights(body: nn.Module, path: Path, in_channels: int) -> None:
    """Gives a network the tensors of a local file in timm's own layout; what else is in the file is left out.

    Args:
        body: the network, or the part of one that is kept.
        path: a `.safetensors` or `.pth` file.
        in_channels: C of the images; a first convolution learned on RGB is made to fit.

    Raises:
        KirieError: when the file is missing, cannot be read safely, lacks tensors or has them in another shape.
    """
    # Cut into stages, a network's tensors may be called stages_0.x or model.stages.0.x in place of stages.0.x.
    given = {_plain(name): tensor for name, tensor in read_tensors(path).items()}
    own = body.state_dict()
    chosen = {name: for_channels(given[_plain(name)], tensor, in_channels)
              for name, tensor in own.items() if _plain(name) in given}  # fmt: skip
    missing = [name for name in own if name not in chosen and not name.endswith("num_batches_tracked")]
    if missing:
        raise KirieError(f"{path} lacks {len(missing)} tensors of this encoder, the first is {missing[0]!r}.")
    wrong = [name for name, tensor in chosen.items() if tensor.shape != own[name].shape]
    if wrong:
        raise KirieError(
            f"{path} has {len(wrong)} tensors of another shape, the first is {wrong[0]!r}: "
            f"{tuple(chosen[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}."
        )
    body.load_state_dict(chosen, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a local file of encoder weights, by name.

    Args:
        path: a `.safetensors` file, or one of `torch.save`.

    Raises:
        KirieError: when the file is missing or cannot be read safely, or holds no names.
    """
    if not path.is_file():
        raise KirieError(f"There is no encoder weight file {path}.")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; PyTorch's own words advise to run the code that it refused
        raise KirieError(f"Cannot read encoder weights from {path}: it is damaged, or not of tensors alone.") from error
    if not isinstance(state, Mapping):
        raise KirieError(f"{path} holds {type(state).__name__}, expected tensors by name (a state dict).")
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _near(name: str) -> list[str]:
    """Architectures of timm whose names are like a mistyped one."""
    stem = re.split(r"[/.:]", name)[-1] or name
    return difflib.get_close_matches(stem, timm.list_models(), n=6, cutoff=0.6)


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def for_channels(weight: Tensor, own: Tensor, in_channels: int) -> Tensor:
    """A first convolution learned on RGB, made to fit other channels as timm does for weights from the hub."""
    if in_channels == 3 or weight.ndim != 4 or weight.shape[1] != 3 or own.shape[1:2] != (in_channels,):
        return weight
    adapted: Tensor = adapt_input_conv(in_channels, weight)
    return adapted


OPTIONS = (
    "dilate_first", "stride_first", "norm_eps", "leak", "frozen_norm", "frozen_stages", "pad_first", "first_blocks",
)  # fmt: skip


def build_encoder(
    name: str, in_channels: int, options: Mapping[str, Any] | None, *, exact: bool = True, **own: Any
) -> Encoder:
    """An encoder with the options that a recipe or a model file names.

    Args:
        name: a timm architecture.
        in_channels: C of the images.
        options: of `Encoder`, by name, out of `OPTIONS`; None for none. The encoder keeps a copy.
        exact: whether the model needs feature maps that are exact; see `Encoder`.
        own: what the model itself decides, such as `output_stride`.

    Raises:
        KirieError: as `Encoder`, and when an option is unknown or is none for a model that needs exact maps.
    """
    given = {} if options is None else options
    if not isinstance(given, Mapping) or not set(given) <= set(OPTIONS):
        raise KirieError(f"encoder_options are named values out of {', '.join(OPTIONS)}; got {options!r:.120}.")
    encoder = Encoder(name, in_channels, **given, **own)
    if exact and not encoder.exact:
        raise KirieError(
            "With pad_first the feature maps of several strides do not lie on each other, which this model needs: "
            "leave it out of encoder_options, or take DeepLabV3 or DeepLabV3+, of whose release it is."
        )
    encoder.options = None if options is None else dict(options)
    return encoder


def pixel_statistics(in_channels: int, facts: Any = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of images in [0, 1].

    For RGB they are those of `facts` (timm's record of an encoder's weights), without it those of ImageNet, on which
    nearly all encoders learned; for other pictures, of which nothing is known, 0.5 and 0.25.

    Raises:
        KirieError: when `in_channels` is no whole number above 0.
    """
    check_whole("in_channels", in_channels, 1)
    if in_channels != 3:
        return (0.5,) * in_channels, (0.25,) * in_channels
    if facts is None:
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return tuple(facts.mean), tuple(facts.std)


def padded(x: Tensor, smallest: int, divisor: int) -> Tensor:
    """`x` (B, C, H, W) with its last row and column repeated up to multiples of `divisor` and at least `smallest`."""
    height, width = x.shape[-2:]
    tall, wide = _padded_size((height, width), smallest, divisor)
    down, right = tall - height, wide - width
    return x if same((down, right), (0, 0)) else F.pad(x, (0, right, 0, down), mode="replicate")


def _padded_size(size: tuple[int, int], smallest: int, divisor: int) -> tuple[int, int]:
    if torch.compiler.is_exporting():
        return size  # exports take framed pictures alone, which are as large as that; see `SegmentationModel.framed`
    height, width = (-(-at_least(side, smallest) // divisor) * divisor for side in size)
    return height, width


def _network(name: str, in_channels: int, stages: int | None, weights: str | None, output_stride: int) -> Any:
    """Timm's network, cut into stages and after the last of those wanted."""
    # A name such as "hf-hub:someone/something" would make timm fetch and build what a stranger wrote.
    if not isinstance(name, str) or not timm.is_model(name.split(".")[0]) or ":" in name or "/" in name:
        near = _near(str(name))
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise KirieError(f"timm has no encoder called {name!r:.80}{hint}.")
    keep: dict[str, Any] = {} if stages is None else {"out_indices": tuple(range(stages))}
    if output_stride != 32:
        keep["output_stride"] = output_stride
    try:
        body = timm.create_model(name, features_only=True, in_chans=in_channels, pretrained=weights == "hub", **keep)
    except Exception as error:  # timm raises many kinds: no features, no network, no pretrained weights
        if isinstance(error, TypeError | AssertionError) and output_stride != 32:
            raise KirieError(
                f"{name!r} cannot be dilated to output_stride {output_stride}: give 32, or take a ResNet, RegNet, "
                "MobileNet, EfficientNet or ConvNeXt."
            ) from error
        if weights == "hub":
            raise no_hub(name, error) from error
        raise KirieError(f"timm cannot give {name!r}: {error}") from error
    if stages is not None:
        variants.cut(body)
    return body


def _check_strides(name: str, strides: list[int], output_stride: int) -> None:
    steps = [coarse / fine for fine, coarse in pairwise(strides)]
    if any(step not in ((2,) if output_stride == 32 else (1, 2)) for step in steps) or (
        strides[0].bit_count() != 1 or strides[-1] > output_stride
    ):
        raise KirieError(
            f"{name!r} gives features at strides {strides}; an encoder must halve at each stage"
            + (f" down to output_stride {output_stride}." if output_stride != 32 else ".")
        )


def _check(
    in_channels: object,
    output_stride: object,
    shares: Mapping[str, object],
    frozen_stages: object,
    flags: Mapping[str, object],
) -> None:
    if output_stride not in (8, 16, 32) or isinstance(output_stride, float):
        raise KirieError(f"output_stride must be 8, 16 or 32, got {output_stride!r:.80}.")
    for name, value in flags.items():
        check_flag(name, value)
    for name, value in shares.items():
        if value is not None and not (type(value) in (int, float) and 0 <= value < 1):  # type: ignore[operator]
            raise KirieError(f"{name} must be a number from 0 to below 1, got {value!r:.80}.")
    check_whole("frozen_stages", frozen_stages, 0)
    check_whole("in_channels", in_channels, 1)
