"""The bookkeeping around a step in which every row is one token: where it stands, and what it has become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl.kernels.registry import op


@dataclass(frozen=True, slots=True)
class Located:
    """Where the next token of each of B slots stands."""

    input_ids: Tensor  # int64 [B]
    positions: Tensor  # int64 [B]
    next_positions: Tensor  # int64 [B], of the tokens that will follow
    seq_lens: Tensor  # int32 [B], the same numbers
    out_loc: tuple[Tensor, ...]  # int64 [B] per KV group, where keys and values go


Refill = Callable[[Tensor, Tensor, Sequence[Tensor], int, Tensor, int, Located, Sequence[Tensor]], None]
Locate = Callable[[Tensor, Tensor, Sequence[Tensor], int, Tensor], Located]
Commit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]


@op("decode.locate")
def locate(tokens: Tensor, computed: Tensor, pages: Sequence[Tensor], page_size: int, slots: Tensor) -> Located:
    """Looks up what a decoding step needs of its slots.

    Args:
        tokens: int32 ``[num_slots, max_len]``; computed: int64 ``[num_slots]``, how many of them are computed.
        pages: per KV group, int32 ``[num_slots, max_pages]``.
        slots: int64 ``[B]``.
    """
    positions = computed[slots]
    index, offset = positions // page_size, positions % page_size
    return Located(
        tokens[slots, positions].long(),
        positions,
        positions + 1,
        (positions + 1).int(),
        tuple(table[slots, index] * page_size + offset for table in pages),
    )


@op("decode.refill")
def refill(
    tokens: Tensor,
    computed: Tensor,
    pages: Sequence[Tensor],
    page_size: int,
    slots: Tensor,
    q_len: int,
    out: Located,
    page_tables: Sequence[Tensor],
) -> None:
    """As `locate` for the next ``q_len`` tokens of each slot, into tensors that stay where they are.

    Args:
        tokens, computed, pages, slots: see `locate`.
        out: its tensors are overwritten; all ``[B * q_len]``, slot after slot, but ``seq_lens``, which is ``[B]``.
        page_tables: per KV group, int32 ``[B, max_pages]``; overwritten by the slots' rows of ``pages``.
    """
    places = slots[:, None].expand(-1, q_len).flatten()
    offsets = torch.arange(q_len, device=slots.device).repeat(len(slots))
    positions = computed[places] + offsets
    index, offset = positions // page_size, positions % page_size
    out.input_ids.copy_(tokens[places, positions])
    out.positions.copy_(positions)
    out.next_positions.copy_(positions + 1)
    out.seq_lens.copy_(computed[slots] + q_len)
    for table, out_loc, page_table in zip(pages, out.out_loc, page_tables, strict=True):
        out_loc.copy_(table[places, index] * page_size + offset)
        page_table.copy_(table[slots])


@op("decode.commit")
def commit(tokens: Tensor, computed: Tensor, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
    """Records that each slot has computed all before ``positions`` and has ``token_ids`` there; int64 ``[B]`` all."""
    tokens[slots, positions] = token_ids.int()
    computed[slots] = positions
