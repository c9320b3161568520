# SPDX-License-Identifier: Apache-2.0
"""The losses of SupContrast, MONAI and lightly under their names, on several views of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from secl_ops.compat import lightly, monai, supcontrast
from tests.cases import labels, rows
from tests.compat import hold, nonzero_rows, refused
from tests.draws import examples

pytestmark = pytest.mark.usefixtures("poisoned")


def views_of(samples: int, views: int, width: int, seed: int) -> Tensor:
    """Unit rows [samples, views, width]."""
    return torch.nn.functional.normalize(rows(samples * views, width, seed), dim=1).view(samples, views, width)


def mean_of_positives(anchors: Tensor, keys: Tensor, positive: Tensor, own: Tensor, temperature: float) -> Tensor:
    """The loss of each anchor [N] by a matrix: log of all but its own key, less its mean positive."""
    similarity = (anchors @ keys.T / temperature).masked_fill(own, -torch.inf)
    count = positive.sum(dim=1)
    mean = torch.where(positive, similarity, 0.0).sum(dim=1) / count.clamp(min=1)
    lse = torch.where(count[:, None] > 0, similarity, torch.zeros_like(similarity)).logsumexp(dim=1)
    return torch.where(count > 0, lse - mean, 0.0)


def supcon(views: Tensor, classes: Tensor, temperature: float, base: float, mode: str) -> Tensor:
    """SupContrast's loss as published, by a matrix."""
    keys = torch.cat(list(views.flatten(2).unbind(1)))
    anchors = keys if mode == "all" else views.flatten(2)[:, 0]
    of_keys = classes.repeat(views.shape[1])
    own = torch.eye(len(keys), dtype=torch.bool)[: len(anchors)]
    positive = (of_keys[: len(anchors), None] == of_keys[None, :]) & ~own
    return temperature / base * mean_of_positives(anchors, keys, positive, own, temperature).mean()


@pytest.mark.parametrize("size", [(9, 2, 5), (16, 1, 4), (5, 3, 7), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("mode", ["all", "one"])
def test_supcontrast(mode: str, size: tuple[int, int, int], backend: str, device: str) -> None:
    samples, views, width = size
    classes, own = labels(samples, 4, 2) - 1, supcontrast.SupConLoss(0.2, mode, 0.1, backend=backend)
    hold(
        lambda batch: own(batch.to(device), classes).cpu(),
        lambda batch: supcon(batch, classes, 0.2, 0.1, mode),
        [views_of(samples, views, width, 1)],
        0.2,
        terms=2,
        pull=2 / 0.2,
    )


@pytest.mark.parametrize("mode", ["all", "one"])
def test_supcontrast_takes_labels_a_column_of_them_their_mask_or_none(mode: str) -> None:
    batch, classes, own = views_of(9, 3, 5, 1), labels(9, 4, 2), supcontrast.SupConLoss(contrast_mode=mode)
    expected = own(batch, classes)
    assert torch.equal(own(batch, classes[:, None]), expected)
    assert torch.equal(own(batch, mask=(classes[:, None] == classes[None, :]).float()), expected)
    assert torch.equal(own(batch), own(batch, torch.arange(9)))
    assert torch.equal(own(batch), own(batch, mask=torch.eye(9)))
    assert own(batch) != expected


def test_supcontrast_takes_views_of_any_shape() -> None:
    batch, classes, own = rows(6 * 2, 24, 1).view(6, 2, 24) / 8, labels(6, 3, 1), supcontrast.SupConLoss()
    assert torch.equal(own(batch.view(6, 2, 2, 3, 4), classes), own(batch, classes))


@pytest.mark.parametrize("mode", ["all", "one"])
def test_supcontrast_of_no_sample_is_0(mode: str) -> None:
    batch = torch.zeros(0, 2, 8, requires_grad=True)
    loss = supcontrast.SupConLoss(contrast_mode=mode)(batch)
    loss.backward()
    assert loss.item() == 0.0


def test_labels_of_any_size_are_classes() -> None:
    """Such as numbers of patients, which 32 bits do not hold."""
    near = torch.tensor([0, 1, 0, 2, 1, 2])
    far = torch.tensor([-(2**62), 2**31, 2**33])[near]
    batch = views_of(6, 2, 5, 1)
    assert torch.equal(supcontrast.SupConLoss()(batch, far), supcontrast.SupConLoss()(batch, near))
    one, other = batch.unbind(1)
    assert torch.equal(lightly.SupConLoss()(one, other, far), lightly.SupConLoss()(one, other, near))


def test_supcontrast_of_one_row_is_0() -> None:
    batch = rows(1, 4, 1)[None].requires_grad_()
    loss = supcontrast.SupConLoss()(batch)
    assert (loss.item(), torch.autograd.grad(loss, batch)[0].any().item()) == (0.0, False)


def simclr(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views as published, by a matrix."""
    both = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    place = torch.arange(len(both))
    own, positive = place[:, None] == place, (place[:, None] - place).abs() == len(first)
    return mean_of_positives(both, both, positive, own, temperature).mean()


@pytest.mark.parametrize("size", [(1, 3), (2, 5), (19, 16)], ids=str)
def test_monai_and_lightly_without_a_bank(size: tuple[int, int], backend: str, device: str) -> None:
    monai_losses = pytest.importorskip("monai.losses", reason="monai is not installed")
    leaves = [rows(*size, seed=1), rows(*size, seed=2)]
    theirs: Callable[..., Tensor] = monai_losses.ContrastiveLoss(temperature=0.25)
    for criterion in (monai.ContrastiveLoss(0.25, backend=backend), lightly.NTXentLoss(0.25, backend=backend)):
        for original in (theirs, lambda first, second: simclr(first, second, 0.25)):
            hold(
                lambda first, second, own=criterion: own(first.to(device), second.to(device)).cpu(),
                original,
                leaves,
                0.25,
                pull=1 / 0.25,
            )


@pytest.mark.drawn
@examples(40, st.integers(0, 2**31))
def test_any_two_views(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    samples, width, classes = (int(torch.randint(2, high, (), generator=random)) for high in (40, 20, 9))
    leaves = [nonzero_rows(samples, width, seed), nonzero_rows(samples, width, seed + 1)]
    hold(monai.ContrastiveLoss(0.1), lambda first, second: simclr(first, second, 0.1), leaves, 0.1)
    mine = torch.randint(-3, classes, (samples,), generator=random)
    criterion = lightly.SupConLoss(0.1)
    hold(
        lambda first, second: criterion(first, second, mine),
        lambda first, second: supcon(
            torch.nn.functional.normalize(torch.stack([first, second], 1), dim=2), mine, 0.1, 1.0, "all"
        ),
        leaves,
        0.1,
    )


@pytest.mark.parametrize("rescale", [False, True])
def test_lightly_supcon(rescale: bool) -> None:
    leaves, own = [rows(9, 5, 1), rows(9, 5, 2)], lightly.SupConLoss(0.2, rescale=rescale)
    factor = 0.2 if rescale else 1.0
    hold(own, lambda first, second: factor * simclr(first, second, 0.2), leaves, 0.2)


def moco(first: Tensor, second: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the own second view against the rows of a bank."""
    left, right = (torch.nn.functional.normalize(each, dim=1) for each in (first, second))
    logits = torch.cat([(left * right).sum(dim=1, keepdim=True), left @ bank.to(left.dtype).T], dim=1) / temperature
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(left), dtype=torch.int64))


def test_lightly_with_a_bank(backend: str, device: str) -> None:
    own = lightly.NTXentLoss(0.2, (19, 6), backend=backend).to(device)
    bank = own.bank.clone().cpu()
    hold(
        lambda left, right: copy.deepcopy(own)(left.to(device), right.to(device)).cpu(),
        lambda left, right: moco(left, right, bank, 0.2),
        [rows(4, 6, 1), rows(4, 6, 2)],
        0.2,
    )


@pytest.mark.parametrize("size", [2, 3, 6, 7, 12])
def test_what_lightly_s_bank_holds(size: int) -> None:
    """A batch overfills the first, the second is full within one, whose last rows are lost, others end with one."""
    own = lightly.NTXentLoss(0.2, (size, 6))
    bank, place = own.bank.clone(), 0
    assert torch.allclose(bank.norm(dim=1), torch.ones(size))
    for step in range(6):
        first, second = rows(4, 6, 2 * step), rows(4, 6, 2 * step + 1)
        hold(copy.deepcopy(own), lambda left, right, bank=bank: moco(left, right, bank, 0.2), [first, second], 0.2)
        with torch.no_grad():
            own(first, second)
        assert torch.equal(own.bank, bank)  # without a gradient it stays
        own(first.requires_grad_(), second).backward()
        kept = torch.nn.functional.normalize(second, dim=1)[: size - place]
        bank[place : place + len(kept)] = kept
        place = 0 if place + 4 >= size else place + 4
        assert torch.equal(own.bank, bank)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_reads_the_bank_of_the_pass_that_it_repeats(reentrant: bool) -> None:
    own, leaf, second = lightly.NTXentLoss(0.2, (9, 6)), rows(4, 6, 1).requires_grad_(), rows(4, 6, 2)
    other = copy.deepcopy(own)
    checkpoint(own, leaf, second, use_reentrant=reentrant).backward()
    found, leaf.grad = leaf.grad, None
    other(leaf, second).backward()
    assert found is not None
    assert leaf.grad is not None
    assert torch.equal(found, leaf.grad)
    assert torch.equal(own.rows, other.rows)
    assert torch.equal(own.place, other.place)
    assert set(own.state_dict()) == {"rows", "place"}


CRITERIA: dict[str, Callable[[], Any]] = {
    "SupContrast": lambda: lambda first, second: supcontrast.SupConLoss(0.2)(torch.stack([first, second], 1) / 8),
    "SupContrast, one": lambda: lambda one, two: supcontrast.SupConLoss(0.2, "one")(torch.stack([one, two], 1) / 8),
    "MONAI": lambda: monai.ContrastiveLoss(),
    "lightly": lambda: lightly.NTXentLoss(),
    "lightly, bank": lambda: lightly.NTXentLoss(0.5, (12, 8)),
    "lightly, SupCon": lambda: lightly.SupConLoss(),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)
def test_half_rows_are_summed_in_fp32(make: Callable[[], Any], dtype: torch.dtype) -> None:
    first, second = (rows(16, 8, seed).to(dtype).requires_grad_() for seed in (1, 2))
    criterion = make()
    wide = copy.deepcopy(criterion)
    loss, exact = criterion(first, second), wide(first.detach().float(), second.detach().float())
    assert loss.dtype == torch.float32
    assert (loss - exact).abs() <= 8 * torch.finfo(dtype).eps * exact
    loss.backward()
    assert first.grad is not None
    assert first.grad.dtype == dtype


@pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)
def test_it_compiles_to_one_graph(make: Callable[[], Any]) -> None:
    first, second = rows(16, 8, 1).requires_grad_(), rows(16, 8, 2)
    criterion = make()
    other = copy.deepcopy(criterion)
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    (graph,), (eager,) = (torch.autograd.grad(run(first, second), first) for run in (compiled, criterion))
    assert (graph - eager).abs().max() <= 40 * torch.finfo(torch.float32).eps * eager.abs().max()
    if hasattr(criterion, "rows"):
        assert torch.equal(criterion.rows, other.rows)


VIEWS, TWO = rows(8, 4, 1).view(4, 2, 4), (rows(4, 4, 1), rows(4, 4, 2))
NO_BOOL: Any = 1
SUPCON = supcontrast.SupConLoss()
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "mode": (lambda: supcontrast.SupConLoss(contrast_mode="two"), ValueError,
             "contrast_mode must be one of 'all', 'one'"),
    "base": (lambda: supcontrast.SupConLoss(base_temperature=0.0), ValueError,
             "base_temperature must be finite and above"),
    "base kind": (lambda: supcontrast.SupConLoss(base_temperature=True), TypeError,
                  "base_temperature must be a float; got"),
    "temperature": (lambda: supcontrast.SupConLoss(-1.0), ValueError,
                    "temperature must be finite and above 0; got -1.0"),
    "rank": (lambda: SUPCON(VIEWS[0]), ValueError, "features must have shape [samples, views, ...]; got (2, 4)"),
    "both": (lambda: SUPCON(VIEWS, torch.zeros(4).long(), torch.eye(4)), ValueError,
             "labels and mask say the same; got"),
    "labels": (lambda: SUPCON(VIEWS, torch.zeros(3).long()), ValueError, "labels must have shape [4]"),
    "mask": (lambda: SUPCON(VIEWS, mask=torch.eye(3)), ValueError,
             "mask must have shape [4, 4], one row per sample; got (3"),
    "lame mask": (lambda: SUPCON(VIEWS, mask=torch.ones(4, 4).triu()), ValueError,
                  "mask must be 1 where two samples have"),
    "weights": (lambda: SUPCON(VIEWS, mask=torch.eye(4) / 2), ValueError,
                "mask must be 1 where two samples have one label"),
    "MONAI": (lambda: monai.ContrastiveLoss(temperature=0.0), ValueError,
              "temperature must be finite and above 0; got 0.0"),
    "input": (lambda: monai.ContrastiveLoss()(VIEWS, VIEWS), ValueError, "input must have two dimensions"),
    "target": (lambda: monai.ContrastiveLoss()(TWO[0], TWO[1][1:]), ValueError,
               "target must have the shape of input, (4, 4); got (3, 4)"),
    "width": (lambda: lightly.NTXentLoss()(TWO[0], TWO[1][:, 1:]), ValueError,
              "out1 and out0 must have the same width"),
    "lightly": (lambda: lightly.NTXentLoss(0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    "gather": (lambda: lightly.NTXentLoss(gather_distributed=True), ValueError,
               "gather_distributed must be False; got True"),
    "gather SupCon": (lambda: lightly.SupConLoss(gather_distributed=True), ValueError,
                      "gather_distributed must be False"),
    "bank": (lambda: lightly.NTXentLoss(memory_bank_size=64), ValueError,
             "memory_bank_size must be 0 or (rows, width); got 64"),
    "empty bank": (lambda: lightly.NTXentLoss(0.5, (0, 8)), ValueError, "memory_bank_size must be at least 1; got 0"),
    "bank rows": (lambda: lightly.NTXentLoss(0.5, (8, 4))(TWO[0], TWO[1][1:]), ValueError,
                  "out1 must have the shape of out0"),
    "bank width": (lambda: lightly.NTXentLoss(0.5, (8, 5))(*TWO), ValueError,
                   "out0 must be as wide as memory_bank_size says, 5"),
    "rescale": (lambda: lightly.SupConLoss(rescale=NO_BOOL), TypeError,
                "rescale must be a bool; got int"),
    "lightly labels": (lambda: lightly.SupConLoss()(*TWO, torch.zeros(4)), TypeError, "labels must hold integers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    refused(*REFUSED[name])


def test_monai_s_batch_size_warns() -> None:
    with pytest.warns(UserWarning, match="batch_size is read off each batch; leave it out"):
        monai.ContrastiveLoss(batch_size=4)


def test_options_are_shown() -> None:
    assert repr(SUPCON) == "SupConLoss(temperature=0.07, contrast_mode='all', base_temperature=0.07)"
    assert repr(monai.ContrastiveLoss()) == "ContrastiveLoss(temperature=0.5)"
    assert repr(lightly.NTXentLoss(0.5, (3, 2))) == "NTXentLoss(temperature=0.5, memory_bank_size=(3, 2))"
    assert repr(lightly.SupConLoss()) == "SupConLoss(temperature=0.5, rescale=True)"
