"""A sweep: one way to compute a total over all tokens and its gradients, in little memory.

`total_and_gradients` is what the derivative rule (`_rule.py`) calls. The implementations trade
memory for time: `TokenSweep`, `StoredSweep`, `VocabSweep`, `TpuSweep`, each in its own file.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jax import Array, lax

from jaxloss.linear._head import Head

if TYPE_CHECKING:
    from jaxloss.linear._tokens import TokenSweep


class Need(NamedTuple):
    """Which gradients of the total are needed: a tree of booleans, static."""

    hidden: tuple[bool, ...]  # one for each head, as in `weight`
    weight: tuple[bool, ...]
    shared: Any
    coefficients: bool
    targets: Any = None  # the weights of several labels of a token; None where there is one


class Gradients(NamedTuple):
    """Gradients of the total, None where they are not needed; and what is not differentiated."""

    hidden: tuple[Array | None, ...]
    weight: tuple[Array | None, ...]
    shared: Any
    coefficients: Array | None  # the losses of the tokens
    targets: Array | None = None
    statistics: Any = None  # those of the tokens, if the sweep is to collect them


class Sweep(Protocol):
    """One way to compute a total and its gradients. Hashable, because it is a static argument."""

    @property
    def tokens(self) -> "TokenSweep":
        """The sweep over tokens that computes the same, and is what higher derivatives are of."""
        ...

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Any,
        shared: Any,
        coefficients: Array,
    ) -> tuple[Array, Gradients]:
        """`sum(coefficients * losses)` over all tokens, and its gradients as far as needed.

        `shared` holds what all tokens share except the weights: biases and settings.
        """
        ...


class EachToken(Protocol):
    """One way to compute something for each token. Hashable, like a `Sweep`."""

    @property
    def tokens(self) -> "TokenSweep": ...

    def each_token(self, heads: tuple[Head, ...], labels: Any, shared: Any) -> tuple[Any, Any]:
        """What the loss of the logits returns; and the statistics, if it collects them."""
        ...


@dataclass(frozen=True)
class PlatformSweep:
    """A sweep for TPUs, one for GPUs, and one for everything else.

    Which of them runs is decided when the program is lowered.
    """

    tokens: "TokenSweep"
    others: Sweep
    tpu: Sweep
    gpu: Sweep

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Any,
        shared: Any,
        coefficients: Array,
    ) -> tuple[Array, Gradients]:
        sweeps = self.others, self.tpu, self.gpu
        # One function for each sweep, even if it serves two platforms: each is traced.
        run = {sweep: partial(sweep.total_and_gradients, need) for sweep in sweeps}
        return lax.platform_dependent(
            heads, labels, shared, coefficients,
            tpu=run[self.tpu], cuda=run[self.gpu], rocm=run[self.gpu], default=run[self.others],
        )  # fmt: skip
