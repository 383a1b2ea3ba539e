"""A sweep over blocks of the vocabulary: the cross-entropy's total and gradients in little memory.

It computes the logits of each block twice: four matmuls, of which each block of the weight's
gradient is written once, in its own dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss.linear._blocks import (
    Block,
    Part,
    Slopes,
    added,
    gradient,
    label_of,
    logits,
    merged,
    nothing,
    part,
)
from jaxloss.linear._rows import Settings
from jaxloss.linear._sharding import alike
from jaxloss.linear._tokens import Head, Wanted, head_gradients


class Blocks(NamedTuple):
    """All classes of this device."""

    whole: Block
    softcap: Array | None
    vocab_first: bool
    classes: int  # on all devices
    block_size: int

    @property
    def along(self) -> int:
        return 0 if self.vocab_first else 1

    def block(self, start: Any, width: int) -> tuple[Block, Array, Callable[..., Any]]:
        """Some classes, their logits and the pullback of those."""

        def cut(x: Array | None, axis: int = 0) -> Any:
            return None if x is None else lax.dynamic_slice_in_dim(x, start, width, axis)

        head, bias, k, labels = self.whole
        weight = cut(head.weight, self.along)
        block = Block(Head(head.hidden, weight), cut(bias), cut(k), labels - start)
        return block, *logits(block, self.softcap, self.vocab_first)

    def fold(self, body: Callable[..., Any], carry: Any) -> Any:
        """`carry = body(start, width, carry)` block by block, the last as wide as what remains."""
        width = self.block_size
        full, rest = divmod(self.whole.head.weight.shape[self.along], width)
        types = jax.eval_shape(lambda c: body(0, width, c), carry)
        carry = jax.tree.map(alike, carry, types)
        carry = lax.fori_loop(0, full, lambda i, c: body(i * width, width, c), carry)
        return body(full * width, rest, carry) if rest else carry

    def statistics(self, like: Array) -> Part:
        def look(start: Any, width: int, carry: Part) -> Part:
            block, x, _ = self.block(start, width)
            return merged(carry, part(x, block, label_of(x, block)))

        return self.fold(look, nothing(like))

    def gradients(self, wanted: Wanted, slopes: Slopes, settings: Settings) -> Wanted:
        def write(start: Any, width: int, out: Wanted) -> Wanted:
            block, x, pull = self.block(start, width)
            g, g_class = gradient(x, block, slopes, self.classes)
            g_x, g_bias, g_softcap = pull(g)
            g_hidden, g_weight = head_gradients(
                block.head, g_x, self.vocab_first, wanted.hidden[0], wanted.weight[0]
            )
            s = out.shared
            return Wanted(
                (added(out.hidden[0], g_hidden),),
                (_put(out.weight[0], g_weight, start, self.along),),
                s._replace(
                    bias=_put(s.bias, g_bias, start),
                    softcap=added(s.softcap, g_softcap),
                    class_weights=_put(s.class_weights, g_class, start),
                ),
                None,
            )

        def zeros(wanted: bool | None, x: Array | None, dtype: Any = None) -> Array | None:
            return jnp.zeros_like(x, dtype) if wanted and x is not None else None

        head, w = self.whole.head, wanted.shared
        start = Wanted(
            (zeros(wanted.hidden[0], head.hidden, slopes.top.dtype),),
            (zeros(wanted.weight[0], head.weight),),
            Settings(
                bias=zeros(w.bias, settings.bias),
                softcap=zeros(w.softcap, settings.softcap),
                class_weights=zeros(w.class_weights, settings.class_weights),
            ),
            None,
        )
        return self.fold(write, start)


def _put(whole: Array | None, some: Array | None, start: Any, axis: int = 0) -> Array | None:
    if whole is None or some is None:
        return whole
    return lax.dynamic_update_slice_in_dim(whole, some.astype(whole.dtype), start, axis)
