# SPDX-License-Identifier: Apache-2.0
"""Processes that share a loss: that they agree on a call, and what they exchange, summed in one order everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

STREAM_STRIDE = 0xBF58476D1CE4E5B9  # odd, and not that of the seeds: no two processes draw in one stream
CALL_BYTES = 512  # of the text that describes a call; every process sends as many
REFUSED = "refused: "  # begins what a process sends that has no call
KNOWN_CALLS = 1024

_KNOWN: WeakKeyDictionary[Any, dict[tuple[str, torch.device], Tensor]] = WeakKeyDictionary()


Function = TypeVar("Function", bound=Callable[..., Any])


def between_graphs(function: Function) -> Function:
    """The same function, which torch.compile leaves between two graphs: none can hold what processes agree on."""
    apart = _disable_dynamo(function)  # what torch.compiler offers imports the compiler when a program begins

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return (apart if torch.compiler.is_compiling() else function)(*arguments, **options)

    return cast(Function, call)


class Ranks:
    """The processes of a group, as one of them sees them.

    Args:
        group: A `torch.distributed.ProcessGroup` of more than one process, this one among them.
    """

    def __init__(self, group: Any) -> None:
        self.group, self.rank, self.size = group, int(group.rank()), int(group.size())

    @classmethod
    def of(cls, group: object) -> Ranks | None:
        """The processes of a group; None without one, and where this process is alone in it.

        Raises:
            TypeError: It is no group, or not one of this process.
            RuntimeError: The processes have parted.
        """
        if group is None:
            return None
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            outside = dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER
            found = "what torch gives a process outside of a group" if outside else type(group).__name__
            raise TypeError(
                f"group must be a torch.distributed.ProcessGroup that this process is in, or None; got {found}; pass "
                "torch.distributed.group.WORLD, or what new_group() returned to its members"
            )
        if not dist.is_initialized():
            raise RuntimeError(
                "group needs torch.distributed, which is not initialised (any more); call init_process_group() and "
                "pass a group that was made after it"
            )
        return cls(group) if group.size() > 1 else None

    def __deepcopy__(self, memo: dict[int, object]) -> Ranks:
        """Processes are not copied: a copied module shares its loss with the same ones."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a module with group= cannot be pickled, for its processes do not outlive the program; save its "
            "state_dict(), or set its group to None first"
        )

    @property
    def stream(self) -> int:
        """What keeps the draws of this process apart from those of the others; 0 for the first."""
        return self.rank * STREAM_STRIDE % 2**63

    @contextmanager
    def refusing_together(self, *rows: object) -> Iterator[None]:
        """What this process refuses, of what comes before `agree`, the others refuse there, and do not wait for it.

        On a GPU they do so where they look: at the first call of its kind.

        Args:
            rows: What the call is about, whatever it is; the device of the first tensor that can be exchanged counts.
        """
        try:
            yield
        except Exception as error:
            served = self._served()
            devices = [each.device for each in rows if isinstance(each, Tensor) and each.device.type in served]
            with suppress(Exception):  # the processes have parted: what is wrong here is what must be heard
                device = devices[0] if devices else torch.device(served[0])
                self.gathered(_as_bytes(f"{REFUSED}{type(error).__name__}: {error}", device))
            raise

    def require_served(self, rows: Tensor) -> None:
        """Refuse rows on a device whose tensors the processes do not exchange."""
        served = self._served()
        if rows.device.type not in served:
            raise ValueError(
                f"group must exchange tensors on the rows' device, {rows.device.type}; its backends do so on "
                f"{', '.join(served)}; move the rows, or make the group with another backend"
            )

    def _served(self) -> list[str]:
        return sorted(each.type for each in self.group._device_types)

    def agree(self, call: Mapping[str, object], device: torch.device) -> None:
        """Refuse a call that is another one elsewhere, in every process alike.

        What describes it is exchanged at every call, so that a process that sees a call for the first time waits for
        no answer that the others do not give. On a CPU it is always compared; on a GPU, where that waits for the
        device, at the first call of each kind.

        Raises:
            ValueError: The calls differ, or a process refused its own.
        """
        text = "; ".join(f"{name}={value}" for name, value in call.items())
        known = _KNOWN.setdefault(self.group, {})
        own = known.get((text, device))
        sent = own
        if sent is None:
            sent = _as_bytes(text, device)
        found = self.gathered(sent)
        if own is not None and device.type != "cpu":
            return
        if bool((found != sent).any()):
            _refuse_several([bytes(row).decode(errors="replace").rstrip() for row in found.tolist()])
        if len(known) >= KNOWN_CALLS:
            known.clear()
        known[text, device] = sent

    def gathered(self, own: Tensor) -> Tensor:
        """Those [n, ...] of every process, one after the other [W * n, ...]."""
        found = own.new_empty((self.size * own.shape[0], *own.shape[1:]))
        if found.numel():
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before 2.13
            gather(found, own.contiguous(), group=self.group)
        return found

    def total(self, own: Tensor) -> Tensor:
        """Sum of a vector over the processes, in their order: the same bits everywhere."""
        return self.gathered(own.unsqueeze(0)).sum(dim=0)

    def brought_home(self, found: Tensor) -> Tensor:
        """Of what each process finds for the rows of all [W * n, D], the sum for this one's [n, D], in their order."""
        parts = torch.empty_like(found)
        if found.numel():
            dist.all_to_all_single(parts, found.contiguous(), group=self.group)
        return parts.view(self.size, found.shape[0] // self.size, *found.shape[1:]).sum(dim=0)

    def ring(self, own: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The parcels of all processes and whose each is, this one's first; the next comes while one is used."""
        here, spare = own, None
        for step in range(self.size):
            there, pending = here, []
            if step + 1 < self.size:
                there = blank(own) if spare is None else spare
                pending = self._pass_on(here, there)
            yield (self.rank - step) % self.size, here
            _wait(pending)
            here, spare = there, None if here is own else here

    def home(self, own: Tensor, find: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Sum of what the processes find for this one's parcel; it goes round the ring with the parcel."""
        pending: list[Any] = []
        sent = arriving = None
        for source, parcel in self.ring(own):
            found = find(source, parcel)
            _wait(pending)
            if arriving is not None:
                found += arriving
            arriving = blank(found) if sent is None else sent
            pending, sent = self._pass_on(found, arriving), found
        _wait(pending)
        assert arriving is not None
        return arriving

    def _pass_on(self, parcel: Tensor, into: Tensor) -> list[Any]:
        """Send one to the next process while the one before sends its own."""
        if not parcel.numel():
            return []
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        found: list[Any] = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, parcel, group=self.group, group_peer=after),
                dist.P2POp(dist.irecv, into, group=self.group, group_peer=before),
            ]
        )
        return found


@between_graphs
def rows_of_all(rows: Tensor, labels: Tensor, group: object, check: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """Rows [n, D] and labels [n] for the queues of a group: those of every process, each of which checks its own."""
    ranks = Ranks.of(group)
    if ranks is None:
        check()
        return rows, labels
    with ranks.refusing_together(rows):
        check()
        ranks.require_served(rows)
    ranks.agree({"call": "rows for a queue", "rows": [*rows.shape], "dtype": rows.dtype}, rows.device)
    return ranks.gathered(rows), ranks.gathered(labels.long())


def blank(like: Tensor) -> Tensor:
    """Memory for one more parcel."""
    return torch.empty_like(like)


def _wait(pending: Sequence[Any]) -> None:
    """For an exchange to have ended; on a GPU its stream waits, not the program."""
    for work in pending:
        work.wait()


def _as_bytes(text: str, device: torch.device) -> Tensor:
    """A text as what every process sends of its call, [1, CALL_BYTES]."""
    sent = [*text.encode()[:CALL_BYTES].ljust(CALL_BYTES)]
    return torch.tensor([sent], dtype=torch.uint8, device=device)


def _refuse_several(texts: Sequence[str]) -> NoReturn:
    """Name what differs, and who has what; of calls of different kinds the kinds alone."""
    refused = {rank: text.removeprefix(REFUSED) for rank, text in enumerate(texts) if text.startswith(REFUSED)}
    if refused:
        listed = "; ".join(f"process {rank} has none: {why}" for rank, why in refused.items())
        raise ValueError(f"group needs a call in all its processes; {listed}")
    calls = [text.split("; ") for text in texts]
    kinds = {call[0] for call in calls}
    differs = [0] if len(kinds) > 1 else [i for i, parts in enumerate(zip(*calls, strict=True)) if len({*parts}) > 1]
    found: dict[str, list[str]] = {}
    for rank, call in enumerate(calls):
        found.setdefault(", ".join(call[place] for place in differs), []).append(str(rank))
    listed = "; ".join(f"{what} in process {', '.join(ranks)}" for what, ranks in found.items())
    raise ValueError(
        f"group needs one call in all its processes, of one shape and with the same options; got {listed}; give each "
        "the same, rows padded with label -1"
    )
