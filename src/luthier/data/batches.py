"""Which examples a step sees, and how their tokens lie in memory: orders, token trees, micro-batches.

Lives here: everything between a list of `Encoded` and the arrays a model reads. Pure numpy, no state: the order is a
function of (seed, epoch), so that resuming needs one integer. Does not live here: attention over a tree
(`models/attention.py`).

Letters: T stored tokens of a flat batch, S supervised entries, B rows and L, M lengths of a padded batch.

A token tree. Three prompts share `<s> Is`, two of them `<s> Is it`; `ends` is one past a token's last descendant:

    row        0    1    2    3    4    5    6        0 <s> ─ 1 Is ─┬─ 2 it ─┬─ 3 red
    token     <s>   Is   it   red  hot  he   in                     │        └─ 4 hot
    position   0    1    2    3    3    2    3                      └─ 5 he ─── 6 in
    end        7    7    5    4    5    7    7

Token i sees token j exactly if `j <= i < ends[j]`: 6 sees 0, 1, 5, 6; 4 sees 0, 1, 2, 4. A sequence alone is a tree
with one branch. Sorting the sequences makes the row the depth-first order of their trie (training on
token trees is known from reinforcement learning: AReaL, verl).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from luthier.data.examples import Encoded
from luthier.data.ordering import by_content, sort_key
from luthier.data.rows import TokenRows

_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, hence invertible modulo 2^64


@dataclass(frozen=True, slots=True)
class Share:
    """What one slot brings to a step. `weight` is the worth of one supervised entry in the slot's loss.

    `numbers` are the examples' places in the step, where this is a part of one.
    """

    slot: int
    examples: Sequence[Encoded]
    weight: float
    virtual_tokens: int = 0
    share_prefixes: bool = True
    numbers: Sequence[int] | None = None

    def place(self, i: int) -> int:
        """The place in the step of the i-th example here."""
        return i if self.numbers is None else self.numbers[i]

    def numbered(self) -> list[tuple[int, Encoded]]:
        """The examples with their places in the step; those that share prefixes in the order of their content."""
        pairs = [(self.place(i), row) for i, row in enumerate(self.examples)]
        return sorted(pairs, key=lambda pair: sort_key(pair[1].ids_L)) if self.share_prefixes else pairs


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Tokens of many examples in one row. A negative token -1-k stands for virtual token k of its slot.

    `ranges` are (slot, start, stop) in tokens. Entry s of the supervision says: the output at token `sources_S[s]`
    should be `targets_S[s]`, and its negative log-likelihood counts `weights_S[s]` times. `entries` gives, for every
    example in `example_ids`, the indices of its entries in S. `keys_T` names a stored token by its content and
    everything before it, so that a dropout mask drawn from it is the same in every layout.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    ends_T: np.ndarray
    keys_T: np.ndarray
    ranges: tuple[tuple[int, int, int], ...]
    sources_S: np.ndarray
    targets_S: np.ndarray
    weights_S: np.ndarray
    example_ids: tuple[str, ...]
    entries: tuple[np.ndarray, ...]

    @property
    def width(self) -> int:
        """Outputs a unit of `ranges` has: one, a token's own."""
        return 1

    @property
    def stored(self) -> int:
        """Tokens in memory."""
        return len(self.tokens_T)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows of their own: source and target of an encoder-decoder, or the whole sequence as source (M = 0) for a family
    that cannot take a flat batch. Padding is known by length, never by id; virtual tokens of a prompt-tuned slot stand
    before the source, negative as in `FlatBatch`.

    `ranges` are (slot, start, stop) in rows. `sources_S` index the flattened outputs, (B, M) places of a decoder or,
    without one, (B, L); `targets_BM` holds -1 behind a row's end. `keys_BL`, `keys_BM` name tokens as in `FlatBatch`.
    """

    source_BL: np.ndarray
    source_lengths_B: np.ndarray
    targets_BM: np.ndarray
    keys_BL: np.ndarray
    keys_BM: np.ndarray
    ranges: tuple[tuple[int, int, int], ...]
    sources_S: np.ndarray
    targets_S: np.ndarray
    weights_S: np.ndarray
    example_ids: tuple[str, ...]
    entries: tuple[np.ndarray, ...]

    @property
    def width(self) -> int:
        """Outputs a unit of `ranges` has: M, or L where there is no target."""
        return self.targets_BM.shape[1] or self.source_BL.shape[1]

    @property
    def stored(self) -> int:
        """Tokens in memory, padding included."""
        return self.source_BL.size + self.targets_BM.size


# ---------------------------------------------------------------------------------------------------------- the order


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of n examples that depends on nothing but (seed, epoch)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


def grouped_order(rows: Sequence[Encoded], step_size: int, seed: int, epoch: int) -> np.ndarray:
    """An order in which examples that share a prefix meet in one step: sorted, cut into steps, the steps shuffled.

    The cut starts at a seeded place, so that a step's company changes from epoch to epoch; a short step comes last.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    rolled = np.roll(by_content(rows), int(draw.integers(len(rows))))
    whole = len(rows) // step_size
    steps = rolled[: whole * step_size].reshape(whole, step_size)[draw.permutation(whole)]
    return np.concatenate([steps.ravel(), rolled[whole * step_size :]])


def trained_entries(rows: Sequence[Encoded], virtual_tokens: int = 0) -> int:
    """How many supervised entries the rows have: a first token without anything before it cannot be predicted."""
    if isinstance(rows, TokenRows):
        first = (rows.prompts_N == 0) & (rows.trained_N > 0) & (virtual_tokens == 0)
        return int(np.where(rows.labels_N >= 0, 1, rows.trained_N - first).sum())
    return sum(1 if row.label >= 0 else len(_trained_positions(row, virtual_tokens)) for row in rows)


def _trained_positions(row: Encoded, virtual_tokens: int) -> np.ndarray:
    trained = np.flatnonzero(row.train_L)
    return trained if virtual_tokens else trained[trained > 0]


# ------------------------------------------------------------------------------------------------- flat micro-batches


def flat_batches(shares: Sequence[Share], budget: int) -> Iterator[FlatBatch]:
    """Lay the step's examples into rows of at most `budget` stored tokens (one example is never split).

    Examples of a slot are sorted, so that each stores only what follows its longest common prefix with the one
    before. How the step is cut changes no result beyond float32 rounding.
    """
    forest = _Forest()
    for share in shares:
        forest.open(share)
        for number, row in share.numbered():
            if forest.size and forest.size + forest.new_tokens(row) > budget:
                yield forest.close()
                forest = _Forest()
                forest.open(share)
            forest.add(row, number)
    if forest.size:
        yield forest.close()


def part_of(shares: Sequence[Share], rank: int, count: int) -> list[Share]:
    """What process `rank` of `count` computes of a step: a contiguous piece of its examples, sorted, of equal cost.

    The cost of an example is what it stores after the one before. A slot's weight stays that of the whole step, so
    the pieces' gradients and losses add up to the step's.
    """
    laid = [(share, number, row) for share in shares for number, row in share.numbered()]
    costs = [len(row.ids_L) for _, _, row in laid]
    for i in range(1, len(laid)):
        (share, _, row), (share_before, _, before) = laid[i], laid[i - 1]
        if share is share_before and share.share_prefixes and row.label < 0:
            costs[i] -= common_prefix(before.ids_L, row.ids_L)
    middles = np.cumsum(costs) - np.array(costs) / 2
    owners = np.minimum(middles * count // max(1, sum(costs)), count - 1)
    mine = [triple for triple, owner in zip(laid, owners, strict=True) if owner == rank]
    parts = []
    for share, group in itertools.groupby(mine, key=lambda triple: triple[0].slot):
        numbers, rows = zip(*((number, row) for _, number, row in group), strict=True)
        whole = next(other for other in shares if other.slot == share)
        parts.append(replace(whole, examples=rows, numbers=numbers))
    return parts


def stored_tokens(rows: Sequence[Encoded], share_prefixes: bool = True) -> int:
    """Tokens computed when the rows lie in one micro-batch: all of them less what is shared."""
    if not share_prefixes:
        return sum(len(row.ids_L) for row in rows)
    ordered = sorted((row.ids_L for row in rows), key=sort_key)
    shared = sum(common_prefix(a, b) for a, b in itertools.pairwise(ordered))
    return sum(len(ids) for ids in ordered) - shared


@dataclass(slots=True)
class _Forest:
    """A flat batch in the making: slots one after another, within a slot one tree, along the current path."""

    tokens: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)
    closed: list[tuple[np.ndarray, int]] = field(default_factory=list)  # tokens of a branch left behind, and their end
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    entry_of: dict[tuple[int, int], int] = field(default_factory=dict)  # (source, target) -> entry
    weights: list[float] = field(default_factory=list)
    example_ids: list[str] = field(default_factory=list)
    entries: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    share: Share = Share(-1, (), 0.0)  # of the slot at hand, which begins at `start`
    start: int = 0
    path: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # stored token at each depth
    path_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    def open(self, share: Share) -> None:
        """Begin a slot's tree."""
        self._leave(0)
        self._end_range()
        self.share, self.start = share, self.size

    def new_tokens(self, row: Encoded) -> int:
        ids = _with_virtual(row.ids_L, self.share.virtual_tokens)
        return len(ids) - self._shared(row, ids)

    def add(self, row: Encoded, number: int) -> None:
        ids = _with_virtual(row.ids_L, self.share.virtual_tokens)
        shared = self._shared(row, ids)
        self._leave(shared)
        fresh = np.arange(self.size, self.size + len(ids) - shared)
        self.tokens.append(ids[shared:])
        self.positions.append(np.arange(shared, len(ids)))
        self.keys.append(_prefix_keys(ids, 0 if self.share.share_prefixes else number + 1)[shared:])
        self.path, self.path_ids = np.concatenate([self.path[:shared], fresh]), ids
        self.size += len(fresh)
        self._supervise(row)

    def close(self) -> FlatBatch:
        """The finished batch."""
        self._leave(0)
        self._end_range()
        ends = np.empty(self.size, np.int64)
        for branch, end in self.closed:
            ends[branch] = end
        pairs = np.array(list(self.entry_of), np.int64).reshape(-1, 2)
        return FlatBatch(
            tokens_T=np.concatenate(self.tokens).astype(np.int64),
            positions_T=np.concatenate(self.positions),
            ends_T=ends,
            keys_T=np.concatenate(self.keys),
            ranges=tuple(self.ranges),
            sources_S=pairs[:, 0],
            targets_S=pairs[:, 1],
            weights_S=np.array(self.weights, np.float32),
            example_ids=tuple(self.example_ids),
            entries=tuple(self.entries),
        )

    def _shared(self, row: Encoded, ids: np.ndarray) -> int:
        """Length of the prefix already stored. An encoder reads both ways: it shares nothing."""
        if row.label >= 0 or not self.share.share_prefixes:
            return 0
        return common_prefix(self.path_ids, ids)

    def _leave(self, depth: int) -> None:
        if len(self.path) > depth:
            self.closed.append((self.path[depth:], self.size))
            self.path, self.path_ids = self.path[:depth], self.path_ids[:depth]

    def _end_range(self) -> None:
        if self.size > self.start:
            self.ranges.append((self.share.slot, self.start, self.size))

    def _supervise(self, row: Encoded) -> None:
        """Entries of this row; an entry that another row already made gains weight instead of a twin."""
        if row.label >= 0:
            pairs = [(int(self.path[0]), row.label)]  # a class is read at the first token, as heads and PEFT do
        else:
            virtual = self.share.virtual_tokens
            trained = _trained_positions(row, virtual)
            pairs = list(zip(self.path[trained + virtual - 1].tolist(), row.ids_L[trained].tolist(), strict=True))
        found = np.empty(len(pairs), np.int64)
        for k, pair in enumerate(pairs):
            found[k] = entry = self.entry_of.setdefault(pair, len(self.weights))
            if entry == len(self.weights):
                self.weights.append(0.0)
            self.weights[entry] += self.share.weight
        self.example_ids.append(row.example_id)
        self.entries.append(found)


# ----------------------------------------------------------------------------------------------- padded micro-batches


def padded_batches(shares: Sequence[Share], budget: int, pad_id: int, paired: bool = True) -> Iterator[PaddedBatch]:
    """Rows of similar length together, at most `budget` padded tokens a micro-batch, slots one after another.

    `paired` cuts each example into source and target (its prompt and the rest); otherwise all of it is source.
    """
    bucket: list[_Padded] = []
    source = target = 0  # the bucket's longest
    for share in shares:
        rows = [_Padded.of(share, share.place(i), row, paired) for i, row in enumerate(share.examples)]
        for row in sorted(rows, key=lambda row: (max(row.lengths), row.lengths, row.number)):
            source, target = max(source, row.lengths[0]), max(target, row.lengths[1])
            if bucket and (len(bucket) + 1) * (source + target) > budget:
                yield _pad(bucket, pad_id)
                bucket, (source, target) = [], row.lengths
            bucket.append(row)
    if bucket:
        yield _pad(bucket, pad_id)


@dataclass(frozen=True, slots=True)
class _Padded:
    """One example of a padded batch: its tokens on both sides, and (output of the row, target) of each entry."""

    share: Share
    number: int
    example_id: str
    source: np.ndarray
    target: np.ndarray
    source_keys: np.ndarray
    target_keys: np.ndarray
    entries: list[tuple[int, int]]

    @classmethod
    def of(cls, share: Share, number: int, row: Encoded, paired: bool) -> _Padded:
        virtual, cut = share.virtual_tokens, row.prompt_length if paired else len(row.ids_L)
        source, target = _with_virtual(row.ids_L[:cut], virtual), row.ids_L[cut:]
        salt = 0 if share.share_prefixes else number + 1
        keys = _prefix_keys(source, salt), _prefix_keys(row.ids_L, salt)[cut:]
        if paired:
            entries = list(enumerate(target.tolist()))
        elif row.label >= 0:
            entries = [(0, row.label)]
        else:
            trained = _trained_positions(row, virtual)
            entries = list(zip((trained + virtual - 1).tolist(), row.ids_L[trained].tolist(), strict=True))
        return cls(share, number, row.example_id, source, target, *keys, entries)

    @property
    def lengths(self) -> tuple[int, int]:
        return len(self.source), len(self.target)


def _pad(rows: list[_Padded], pad_id: int) -> PaddedBatch:
    targets_BM = _rectangle([row.target for row in rows], -1)
    source_BL = _rectangle([row.source for row in rows], pad_id)
    if source_BL.shape[1] == targets_BM.shape[1]:  # a layer's rows are told apart by their number (`models/lora.Turn`)
        source_BL = np.pad(source_BL, ((0, 0), (0, 1)), constant_values=pad_id)
    width = targets_BM.shape[1] or source_BL.shape[1]
    counts = [len(row.entries) for row in rows]
    first = np.concatenate([[0], np.cumsum(counts)])
    pairs = np.array([(b * width + at, target) for b, row in enumerate(rows) for at, target in row.entries], np.int64)
    pairs = pairs.reshape(-1, 2)
    return PaddedBatch(
        source_BL=source_BL,
        source_lengths_B=np.array([len(row.source) for row in rows]),
        targets_BM=targets_BM,
        keys_BL=_rectangle([row.source_keys for row in rows], 0, source_BL.shape[1]),
        keys_BM=_rectangle([row.target_keys for row in rows], 0),
        ranges=slot_ranges([row.share.slot for row in rows]),
        sources_S=pairs[:, 0],
        targets_S=pairs[:, 1],
        weights_S=np.repeat(np.array([row.share.weight for row in rows], np.float32), counts),
        example_ids=tuple(row.example_id for row in rows),
        entries=tuple(np.arange(a, b) for a, b in itertools.pairwise(first)),
    )


def slot_ranges(slots: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(slot, start, stop) of rows whose slots are given, those of a slot one after another."""
    edges = [0, *(i for i in range(1, len(slots)) if slots[i] != slots[i - 1]), len(slots)]
    return tuple((slots[a], a, b) for a, b in itertools.pairwise(edges))


# -------------------------------------------------------------------------------------------------------------- tokens


def _with_virtual(ids_L: np.ndarray, virtual_tokens: int) -> np.ndarray:
    return np.concatenate([-1 - np.arange(virtual_tokens, dtype=np.int32), ids_L]) if virtual_tokens else ids_L


def common_prefix(a_L: np.ndarray, b_L: np.ndarray) -> int:
    """With how many equal tokens two rows begin."""
    n = min(len(a_L), len(b_L))
    different = np.flatnonzero(a_L[:n] != b_L[:n])
    return int(different[0]) if len(different) else n


def _prefix_keys(ids_L: np.ndarray, salt: int) -> np.ndarray:
    """(L,) int32: a polynomial hash of everything up to and including each token, and of the salt."""
    place = np.cumprod(np.full(len(ids_L), _HASH_FACTOR))
    digits = (ids_L.astype(np.int64) + (1 << 33) + salt * (1 << 34)).astype(np.uint64)
    mixed = np.cumsum(digits * place)
    return ((mixed ^ (mixed >> np.uint64(29))) * _HASH_FACTOR >> np.uint64(32)).astype(np.uint32).view(np.int32)


def _rectangle(rows: list[np.ndarray], fill: int, width: int = 0) -> np.ndarray:
    """(B, longest, at least `width`) int64, rows on the left, `fill` behind their ends."""
    table = np.full((len(rows), max(width, *(len(row) for row in rows))), fill, np.int64)
    for b, row in enumerate(rows):
        table[b, : len(row)] = row
    return table
