"""How pairs are laid out in batches, so that no token is computed twice and few in vain; the loss stays the same.

The two sides of a pair begin with one prompt. `share_prompts` computes it once: the backbone sees one row a pair,
`prompt chosen rejected`, in which the rejected side cannot look at the chosen one (prefix sharing: Wang and Hegde
2024, arXiv 2410.20305). `SortedUpdates` leaves an update the pairs that chance gives it and sorts them into its
micro-batches. What both save is measured in docs/training-speed.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Self

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel

SHARING = {"llama"}
"""Model types known to attend as a mask of four dimensions says, and to nothing else."""


@dataclass(frozen=True)
class PairRows:
    """A batch of B pairs as B rows of T tokens, and where in them each token of the 2 B rows of L tokens is.

    Attributes:
        tokens, positions: (B, T), the token ids and how many tokens stand before each in its own sequence.
        visible: (B, 1, T, T), whether the query of the third dimension sees the key of the fourth.
        where: (2 B, L), indices into the flattened B x T.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    where: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Self:
        """From (2 B, L) tokens and their mask, padded on the right: the chosen sides, then the rejected ones."""
        pairs, width = len(input_ids) // 2, input_ids.shape[1]
        chosen, rejected = input_ids.chunk(2)
        real_chosen, real_rejected = attention_mask.bool().chunk(2)
        alike = (chosen == rejected) & real_chosen & real_rejected
        shared = alike.long().cumprod(1).sum(1, keepdim=True)
        first, second = real_chosen.sum(1, keepdim=True), real_rejected.sum(1, keepdim=True)
        lengths = first + second - shared

        column = torch.arange(int(lengths.max()), device=input_ids.device).expand(pairs, -1)
        of_rejected = column >= first
        positions = torch.where(of_rejected, column - first + shared, column).clamp(max=width - 1)
        tokens = torch.where(of_rejected, rejected.gather(1, positions), chosen.gather(1, positions))

        key, query = column[:, None, :], column[:, :, None]
        same_side = (key < shared[:, None]) | (of_rejected[:, None, :] == of_rejected[:, :, None])
        visible = (key <= query) & same_side & (key < lengths[:, None]) | (key == query)

        place = torch.arange(width, device=input_ids.device).expand(pairs, -1)
        row = torch.arange(pairs, device=input_ids.device)[:, None] * column.shape[1]
        last = column.shape[1] - 1
        where = torch.cat([place.clamp(max=last), torch.where(place < shared, place, place - shared + first)])
        return cls(tokens, positions, visible[:, None], where.clamp(max=last) + row.repeat(2, 1))

    def unfold(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, H) states as (2 B, L, H); what stands in the place of padding means nothing."""
        return states.flatten(0, 1).index_select(0, self.where.flatten()).unflatten(0, self.where.shape)


def share_prompts(model: PreTrainedModel) -> None:
    """From now on the backbone of `model` takes batches of pairs alone and computes what the two sides of a pair begin
    with once; its answer has the shape it always had. A model that is not known to bear that stays as it is."""
    # Of the implementations of attention only sdpa takes a mask of booleans for one; eager would add it to the scores.
    if model.config.model_type not in SHARING or model.config._attn_implementation != "sdpa":
        return
    backbone = model.base_model
    compute = backbone.forward

    def forward(self: Any, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> Any:
        rows = PairRows.of(input_ids, attention_mask)
        output = compute(input_ids=rows.tokens, attention_mask=rows.visible, position_ids=rows.positions, **more)
        output.last_hidden_state = rows.unfold(output.last_hidden_state)
        return output

    backbone.forward = MethodType(forward, backbone)


class SortedUpdates(Sampler[int]):
    """All pairs in an order that follows from seed and epoch, cut into updates, each sorted by length: micro-batches
    pad less, and over an update of equal micro-batches the preference loss's gradient is the one it was. Not so that of
    the supervised term, which TRL averages over the tokens of each micro-batch."""

    def __init__(self, lengths: Sequence[int], pairs_an_update: int, seed: int) -> None:
        self._lengths, self._size, self._seed = lengths, pairs_an_update, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        dice = torch.Generator().manual_seed(self._seed + self._epoch)
        for update in torch.randperm(len(self), generator=dice).split(self._size):
            # The longest first: if memory runs out, it does so at once.
            yield from sorted(update.tolist(), key=self._lengths.__getitem__, reverse=True)
