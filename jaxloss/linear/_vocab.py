"""The sweep over blocks of the vocabulary: the least memory, for a fourth matmul.

The logits of each block are computed twice, and each block of the weight's gradient is written
once, in its own dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.mapped import alike
from jaxloss.linear import _two_pass
from jaxloss.linear._formulas import Settings
from jaxloss.linear._head import Head, head_gradients, kept_dtype
from jaxloss.linear._sweep import Gradients, Need
from jaxloss.linear._tokens import TokenSweep
from jaxloss.linear._two_pass import (
    Block,
    BlockStats,
    Slopes,
    Vocabulary,
    added,
    block_gradient,
    block_spread_in_passes,
    block_stats,
    label_logit,
    logits,
    merged,
    no_classes,
)


@dataclass(frozen=True)
class VocabSweep:
    tokens: TokenSweep
    block_size: int

    def each_token(
        self, heads: tuple[Head, ...], labels: Array, shared: Settings
    ) -> tuple[Any, Any]:
        """Their statistics. A loss of each token it has none."""
        vocabulary = _two_pass.vocabulary(self.tokens, heads, labels, shared, True)
        passes = VocabPasses(vocabulary, self.block_size)
        return _two_pass.each_token(passes, self.tokens, heads, labels), None

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Array,
        shared: Settings,
        coefficients: Array,
    ) -> tuple[Array, Gradients]:
        collects = self.tokens.statistics_of_logits is not None
        vocabulary = _two_pass.vocabulary(self.tokens, heads, labels, shared, collects)
        passes = VocabPasses(vocabulary, self.block_size)
        return _two_pass.total_and_gradients(
            passes, self.tokens, need, heads, labels, shared, coefficients
        )


class VocabPasses(NamedTuple):
    vocabulary: Vocabulary
    block_size: int

    def statistics(self, like: Array) -> BlockStats:
        def collect(start: Any, width: int, stats: BlockStats) -> BlockStats:
            block, x, _ = self._block(start, width)
            label = label_logit(x, block)
            spread = block_spread_in_passes(x, start) if collects else None
            return merged(stats, block_stats(x, block, label, spread))

        collects = self.vocabulary.collects
        return self._fold(collect, no_classes(like, collects))

    def gradients(self, need: Need, slopes: Slopes) -> Gradients:
        v = self.vocabulary

        def write(start: Any, width: int, out: Gradients) -> Gradients:
            block, x, pull = self._block(start, width)
            g, g_class = block_gradient(x, block, slopes)
            g_x, g_bias, g_softcap = pull(g)
            g_hidden, g_weight = head_gradients(
                block.head, g_x, v.vocab_first, need.hidden[0], need.weight[0]
            )
            shared = out.shared._replace(
                bias=_put(out.shared.bias, g_bias, start),
                softcap=added(out.shared.softcap, g_softcap),
                class_weights=_put(out.shared.class_weights, g_class, start),
            )
            return Gradients(
                (added(out.hidden[0], g_hidden),),
                (_put(out.weight[0], g_weight, start, v.vocab_axis),),
                shared,
                None,
            )

        return self._fold(write, self._zeros(need, slopes.top.dtype))

    def _zeros(self, need: Need, dtype: Any) -> Gradients:
        def zeros(needed: bool | None, x: Array | None, dtype: Any = None) -> Array | None:
            return jnp.zeros_like(x, dtype) if needed and x is not None else None

        head, settings = self.vocabulary.whole.head, self.vocabulary.settings
        shared = Settings(
            bias=zeros(need.shared.bias, settings.bias),
            softcap=zeros(need.shared.softcap, settings.softcap),
            class_weights=zeros(need.shared.class_weights, settings.class_weights),
        )
        g_hidden = zeros(need.hidden[0], head.hidden, dtype)
        g_weight = zeros(need.weight[0], head.weight, kept_dtype(head.weight.dtype))
        return Gradients((g_hidden,), (g_weight,), shared, None)

    def _block(self, start: Any, width: int) -> tuple[Block, Array, Callable[..., Any]]:
        """Some classes, their logits and the pullback of those."""
        v = self.vocabulary

        def cut(x: Array | None, axis: int = 0) -> Any:
            return None if x is None else lax.dynamic_slice_in_dim(x, start, width, axis)

        head, bias, smooth_weights, labels = v.whole
        cut_head = Head(head.hidden, cut(head.weight, v.vocab_axis))
        block = Block(cut_head, cut(bias), cut(smooth_weights), labels - start)
        settings = v.settings.softcap, v.settings.temperature
        return block, *logits(block, *settings, v.vocab_first)

    def _fold(self, body: Callable[..., Any], carry: Any) -> Any:
        """`carry = body(start, width, carry)` for each block; the last may be narrower."""
        width = self.block_size
        full, rest = divmod(self.vocabulary.local_vocab, width)
        types = jax.eval_shape(lambda c: body(0, width, c), carry)
        carry = jax.tree.map(alike, carry, types)
        carry = lax.fori_loop(0, full, lambda i, c: body(i * width, width, c), carry)
        return body(full * width, rest, carry) if rest else carry


def _put(whole: Array | None, some: Array | None, start: Any, axis: int = 0) -> Array | None:
    if whole is None or some is None:
        return whole
    return lax.dynamic_update_slice_in_dim(whole, some.astype(whole.dtype), start, axis)
