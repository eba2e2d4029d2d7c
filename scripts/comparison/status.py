"""Whether what is served is still the model: decided here, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Status:
    """`word`: comparable; by answers only (its API tells no probabilities); not comparable, for these reasons; failed;
    no reference; not judged."""

    word: str
    reasons: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool | None:
        """None where that is not known."""
        known = {"comparable": True, "by answers only": True, "not comparable": False}
        return known.get(self.word)


def status(quality: dict[str, Any] | None, limits: dict[str, Any]) -> Status:
    """The status of a served model, from its figures (assess.py) and the limits of the configuration's `evaluation`."""
    if not quality:
        return Status("not judged")
    if quality["failure"]:
        return Status("failed", (quality["failure"]["reason"],))
    reasons = tuple(shortcomings(quality, limits))
    if reasons:
        return Status("not comparable", reasons)
    if quality["perplexity_change"]:
        return Status("comparable")
    if quality["agreement"]:
        return Status("by answers only")
    return (
        Status("no reference", (quality["no_reference"],))
        if quality["no_reference"]
        else Status("not judged")
    )


def shortcomings(quality: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """Why what is served is not comparable with the unquantized model, one reason each."""
    found = []
    change, agreed = quality["perplexity_change"], quality["agreement"]
    if quality["damaged"]:
        found.append(
            f"its server gave {quality['damaged']} tokens a probability that is not a finite number"
        )
    if change and not change["percent"] <= limits["perplexity_percent"]:
        found.append(
            f"its perplexity is {change['percent']:,.0f} % higher than the unquantized model's "
            f"(limit: {limits['perplexity_percent']:g} %)"
        )
    if (
        agreed
        and agreed["prefix_median"] is not None
        and agreed["prefix_median"] < limits["common_prefix_tokens"]
    ):
        found.append(
            f"half of its greedy answers differ from the unquantized model's before token {agreed['prefix_median']:g} "
            f"(limit: {limits['common_prefix_tokens']:g})"
        )
    return found
