"""Sums of losses, read from strings such as `dice+bce` or `0.3*focal+0.7*tversky`."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kirie.errors import KirieError
from kirie.losses import LOSSES, RANGES, check_numbers, widened

USUAL_LOSS = "ce+dice"  # of semantic models whose recipe names none


@dataclass(frozen=True)
class Term:
    """One summand of a loss: its name in `LOSSES`, its factor and its options."""

    name: str
    factor: float = 1.0
    options: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class CombinedLoss:
    """What `build_loss` gives: calling it returns each term's scalar, already times its factor. Pickles, compares."""

    terms: tuple[Term, ...]
    void: int = 255
    weight: tuple[float, ...] | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalars by term name, for the caller to sum; logits (B, K, H, W), labels (B, H, W)."""
        weight = None if self.weight is None else torch.tensor(self.weight)
        logits = widened(logits)  # once for all terms
        return {
            term.name: term.factor
            * LOSSES[term.name](logits, labels, void=self.void, weight=weight, **dict(term.options))
            for term in self.terms
        }


def build_loss(text: str, *, void: int = 255, weight: Tensor | Sequence[float] | None = None) -> CombinedLoss:
    """The loss that a recipe string names: terms of `LOSSES` joined by `+`, each with a factor and options if wanted.

    Examples: `ce`, `dice+bce`, `0.3*focal+0.7*tversky`, `focal(alpha=0.25, gamma=2) + dice`, `ce(smoothing=0.1)`.

    Args:
        text: the string.
        void: the label to leave out.
        weight: relative class weights for all terms, (K,); for binary models also (2,).

    Raises:
        KirieError: if the string is empty or not of that form, a name or option is unknown, a number is bad, a term is
            repeated, or a weight is negative or not finite.
    """
    # A plus sign within a number (1e+3) does not part terms.
    terms = tuple(_read_term(part) for part in re.split(r"(?<![\d.][eE])\+", text))
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise KirieError(f"loss {text!r} repeats a term; give each of {sorted(set(names))} once, with one factor")
    weights = None if weight is None else tuple(float(value) for value in weight)
    if weights is not None and not (all(0 <= value < math.inf for value in weights) and sum(weights) > 0):
        raise KirieError(f"class weights must be finite, not negative and not all 0, got {weights}")
    return CombinedLoss(terms, void, weights)


def _read_term(text: str) -> Term:
    found = re.fullmatch(r"\s*(?:([^*()]*)\*)?\s*([^*()\s]*)\s*(?:\(([^()]*)\))?\s*", text)
    if found is None or not text.strip():
        raise KirieError(
            f"cannot read {text!r} as a loss; write e.g. 'dice+bce', '0.3*focal+0.7*tversky' or 'ce(smoothing=0.1)', "
            f"with losses from {sorted(LOSSES)}"
        )
    factor, name, options = found.groups()
    if name not in LOSSES:
        raise KirieError(f"unknown loss {name!r} in {text.strip()!r}; known are {sorted(LOSSES)}")
    value = 1.0 if factor is None else _read_number(factor, f"factor of {name}")
    if value == 0:
        raise KirieError(f"factor of {name} is 0; leave the term out instead")
    return Term(name, value, _read_options(name, options))


def _read_options(name: str, text: str | None) -> tuple[tuple[str, float], ...]:
    known = [key for key in inspect.signature(LOSSES[name]).parameters if key in RANGES]
    options: dict[str, float] = {}
    for part in [] if text is None else text.split(","):
        key, _, number = (word.strip() for word in part.partition("="))
        if key not in known or key in options:
            what = "repeated" if key in options else "unknown"
            raise KirieError(f"{what} option {key!r} of loss {name}; it takes {known or 'no options'}, each once")
        options[key] = _read_number(number, f"{key} of {name}")
    check_numbers(options)
    return tuple(options.items())


def _read_number(text: str, what: str) -> float:
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip(), re.ASCII) or math.isinf(float(text)):
        raise KirieError(f"{what} must be a plain number such as 0.5, not negative, got {text.strip()!r}")
    return float(text)
