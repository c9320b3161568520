# SPDX-License-Identifier: Apache-2.0
"""The losses of pytorch-metric-learning under their names: values, gradients, its memory, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from secl_ops.compat import pytorch_metric_learning as ours
from tests.budget import assert_within_budget
from tests.cases import labels, rows
from tests.compat import hold, nonzero_rows, outputs, refused
from tests.draws import examples

theirs: Any = pytest.importorskip(
    "pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed; pip install '.[test]'"
)
reducers: Any = pytest.importorskip("pytorch_metric_learning.reducers")
distances: Any = pytest.importorskip("pytorch_metric_learning.distances")
pytestmark = pytest.mark.usefixtures("poisoned")
NAMES = ("SupConLoss", "NTXentLoss")
SHAPES = [(2, 3, 1), (7, 5, 3), (24, 16, 4), (33, 8, 20), (12, 4, 1), (12, 4, 10_000)]  # rows, width, classes


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """Ours and theirs."""
    return getattr(ours, name)(**options), getattr(theirs, name)(**options)


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_any_size_are_classes(name: str) -> None:
    """Such as numbers of patients, which 32 bits do not hold."""
    own, original = pair(name, temperature=0.2)
    classes, others = torch.tensor([0, 2**32, 0, 2**31, 2**32, 2**31]), rows(6, 4, 2)
    hold(lambda given: own(given, classes), lambda given: original(given, classes), [rows(6, 4, 1)], 0.2)
    beside = {"ref_labels": classes.flip(0)}
    hold(
        lambda given: own(given, classes, ref_emb=others.to(given.dtype), **beside),
        lambda given: original(given, classes, ref_emb=others.to(given.dtype), **beside),
        [rows(6, 4, 1)],
        0.2,
    )


@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_against_itself(name: str, size: tuple[int, int, int], backend: str, device: str) -> None:
    n, width, classes = size
    own, original = pair(name, temperature=0.2)
    own.backend = backend
    classes_of = labels(n, classes, 3) - 1  # there -1 is a class
    found = hold(
        lambda batch: own(batch.to(device), classes_of.to(device)).cpu(),
        lambda batch: original(batch, classes_of),
        [rows(n, width, 1)],
        0.2,
    )
    assert bool(found[0] > 0) is (classes not in (1, 10_000))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_against_another(name: str, backend: str, device: str) -> None:
    own, original = pair(name, temperature=0.2)
    own.backend = backend
    mine, others = labels(19, 6, 1), labels(31, 5, 2) - 1
    hold(
        lambda batch, keys: own(
            batch.to(device), mine.to(device), ref_emb=keys.to(device), ref_labels=others.to(device)
        ).cpu(),
        lambda batch, keys: original(batch, mine, ref_emb=keys, ref_labels=others),
        [rows(19, 12, 1), rows(31, 12, 2)],
        0.2,
    )


@pytest.mark.parametrize("name", NAMES)
def test_keys_under_the_very_labels_of_the_anchors_hide_their_own_number(name: str) -> None:
    own, original = pair(name, temperature=0.2)
    mine = labels(19, 6, 1)
    leaves = [rows(19, 12, 1), rows(19, 12, 2)]
    found = [
        hold(
            lambda batch, keys, own=own, given=given: own(batch, mine, ref_emb=keys, ref_labels=given),
            lambda batch, keys, original=original, given=given: original(batch, mine, ref_emb=keys, ref_labels=given),
            leaves,
            0.2,
        )[0]
        for given in (mine, mine.clone())
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_inside_their_self_supervised_loss(name: str, symmetric: bool) -> None:
    own, original = (theirs.SelfSupervisedLoss(loss, symmetric=symmetric) for loss in pair(name, temperature=0.2))
    hold(own, original, [rows(11, 8, 1), rows(11, 8, 2)], 0.2)


@pytest.mark.parametrize("reducer", ["AvgNonZeroReducer", "MeanReducer", "SumReducer"])
@pytest.mark.parametrize("name", NAMES)
def test_their_reducers(name: str, reducer: str) -> None:
    made = getattr(reducers, reducer)()
    if (name, reducer) == ("NTXentLoss", "AvgNonZeroReducer"):
        with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum'; got 'avg_non_zero'"):
            ours.NTXentLoss(reducer=made)
        return
    own, original = pair(name, temperature=0.2, reducer=made)
    singletons = labels(24, 30, 3)
    hold(
        lambda batch: own(batch, singletons), lambda batch: original(batch, singletons), [rows(24, 8, 1)], 0.2, terms=24
    )
    named = getattr(ours, name)(temperature=0.2, reduction=ours.REDUCERS[reducer])
    assert torch.equal(named(rows(24, 8, 1), singletons), own(rows(24, 8, 1), singletons))


def test_losses_of_0_are_left_out_of_the_average() -> None:
    """Far apart rows of few neighbours have none in fp32; the others' average does not shrink by them."""
    batch = torch.eye(6)[[0, 0, 1, 2, 3, 3]] + torch.tensor([0, 0, 0, 0.1, 0, 0])[:, None]
    classes_of = torch.tensor([0, 0, 1, 1, 2, 2])
    own, original = pair("SupConLoss", temperature=0.04)
    assert (own(batch, classes_of) - original(batch, classes_of)).abs() <= 4 * torch.finfo(torch.float32).eps / 0.04
    each = ours.SupConLoss(temperature=0.04, reduction="none")(batch, classes_of)
    assert torch.equal(own(batch, classes_of), each.sum() / (each > 0).sum())


def test_the_losses_of_each_anchor() -> None:
    own, original = pair("SupConLoss", temperature=0.2, reducer=reducers.DoNothingReducer())
    singletons = labels(24, 20, 3)
    hold(
        lambda batch: own(batch, singletons),
        lambda batch: original(batch, singletons)["loss"]["losses"],
        [rows(24, 8, 1)],
        0.2,
    )


@pytest.mark.parametrize("name", NAMES)
def test_products_of_rows_that_are_not_normalised(name: str) -> None:
    own, original = pair(name, temperature=2.0, distance=distances.DotProductSimilarity(normalize_embeddings=False))
    mine = labels(18, 4, 1)
    assert not own.normalize
    hold(lambda batch: own(batch, mine), lambda batch: original(batch, mine), [rows(18, 8, 1)], 0.25)


@pytest.mark.parametrize("enqueue", [False, True])
@pytest.mark.parametrize("size", [20, 23, 64])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("whose", [theirs.CrossBatchMemory, ours.CrossBatchMemory], ids=["their memory", "our memory"])
def test_in_a_memory_of_earlier_batches(whose: Any, name: str, size: int, enqueue: bool) -> None:
    """A memory that wraps within a batch, one that does not, and one that never fills."""
    losses = pair(name, temperature=0.2)
    found_in, near_in, truth_in = (
        kind(loss, 8, memory_size=size)
        for kind, loss in ((whose, losses[0]), *((theirs.CrossBatchMemory, losses[1]),) * 2)
    )
    mask = torch.arange(10) % 3 == 0 if enqueue else None
    positive = 0
    for step in range(6):
        batch, classes_of = rows(10, 8, step), labels(10, 3, step) - 1

        def of(memory: Any, classes_of: Tensor = classes_of) -> Any:
            return lambda leaf: memory(leaf, classes_of, enqueue_mask=mask)

        found, near = (outputs(of(memory), [batch], torch.float32) for memory in (found_in, near_in))
        truth = outputs(of(truth_in), [batch], torch.float64)
        for number, values in enumerate(zip(found, truth, near, strict=True)):
            assert_within_budget(f"step {step}, output {number}", *values, amplification=20)
        positive += int(found[0] > 0)
    assert positive >= 5


@pytest.mark.parametrize("reduction", ["avg_non_zero", "mean", "sum"])
def test_our_memory_reduces_over_the_rows_that_are_compared(reduction: str) -> None:
    made = {value: key for key, value in ours.REDUCERS.items()}[reduction]
    own = ours.CrossBatchMemory(ours.SupConLoss(reduction=reduction), 8, 16)
    original = theirs.CrossBatchMemory(theirs.SupConLoss(reducer=getattr(reducers, made)()), 8, 16)
    mask = torch.arange(10) % 3 == 0
    for step in range(3):
        batch, singletons = rows(10, 8, step), labels(10, 30, step)
        loss = own(batch, singletons, enqueue_mask=mask)
        truth = original(batch.double(), singletons, enqueue_mask=mask)
        assert_within_budget("loss", loss, truth, truth.float(), amplification=40, magnitude=40)


@pytest.mark.parametrize("name", NAMES)
def test_empty_places_of_our_memory_are_no_class(name: str) -> None:
    """A batch of one class has no negative pair, whatever number an empty place holds."""
    batch, mine = rows(10, 8, 1), torch.ones(10, dtype=torch.int64)
    found = [kind.CrossBatchMemory(getattr(kind, name)(), 8, 23)(batch, mine).item() for kind in (ours, theirs)]
    assert found == [0.0, 0.0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_our_memory_steps_once_inside_a_checkpoint_and_compiles_to_one_graph(reentrant: bool) -> None:
    batch, mine = rows(10, 8, 1).requires_grad_(), labels(10, 3, 1)
    eager, repeated, graph = (ours.CrossBatchMemory(ours.NTXentLoss(), 8, 23) for _ in range(3))
    torch._dynamo.reset()
    compiled = torch.compile(graph, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        (expected,) = torch.autograd.grad(eager(batch, mine), batch)
        batch.grad = None
        checkpoint(repeated, batch, mine, use_reentrant=reentrant).backward()
        assert torch.equal(torch.as_tensor(batch.grad), expected)
        (found,) = torch.autograd.grad(compiled(batch, mine), batch)
        assert (found - expected).abs().max() <= 40 * torch.finfo(torch.float32).eps * expected.abs().max()
    for other in (repeated, graph):
        assert all(torch.equal(one, two) for one, two in zip(eager.buffers(), other.buffers(), strict=True))
    assert set(eager.state_dict()) == {"rows", "row_labels", "written"}
    eager.reset_queue()
    fresh = ours.CrossBatchMemory(ours.NTXentLoss(), 8, 23)
    assert torch.equal(eager(batch, mine), fresh(batch, mine))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_does_not_set_our_memory_back(reentrant: bool) -> None:
    batches, mine = [rows(10, 8, seed).requires_grad_() for seed in (1, 2)], labels(10, 3, 1)
    eager, own = (ours.CrossBatchMemory(ours.SupConLoss(), 8, 23) for _ in range(2))
    torch.stack([eager(batch, mine) for batch in batches]).sum().backward()
    expected = [batch.grad for batch in batches]
    for batch in batches:
        batch.grad = None
    torch.stack([checkpoint(own, batch, mine, use_reentrant=reentrant) for batch in batches]).sum().backward()
    for batch, gradient in zip(batches, expected, strict=True):
        assert torch.equal(torch.as_tensor(batch.grad), torch.as_tensor(gradient))
    assert all(torch.equal(one, two) for one, two in zip(eager.buffers(), own.buffers(), strict=True))


@pytest.mark.drawn
@examples(60, st.integers(0, 2**31))
def test_any_batch(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    n, m, width, classes = (int(torch.randint(2, high, (), generator=random)) for high in (40, 60, 20, 12))
    name = NAMES[seed % 2]
    own, original = pair(name, temperature=0.1)
    mine, others = (torch.randint(-2, classes, (count,), generator=random) for count in (n, m))
    hold(lambda batch: own(batch, mine), lambda batch: original(batch, mine), [nonzero_rows(n, width, seed)], 0.1)
    hold(
        lambda batch, keys: own(batch, mine, ref_emb=keys, ref_labels=others),
        lambda batch, keys: original(batch, mine, ref_emb=keys, ref_labels=others),
        [nonzero_rows(n, width, seed), nonzero_rows(m, width, seed + 1)],
        0.1,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_rows_are_summed_in_fp32(name: str, dtype: torch.dtype) -> None:
    own, original = pair(name, temperature=0.1)
    mine = labels(24, 4, 1)
    value, gradient = hold(
        lambda batch: own(batch, mine), lambda batch: original(batch, mine), [rows(24, 16, 1)], 0.1, dtype=dtype
    )
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_to_one_graph(name: str) -> None:
    own, batch, mine = getattr(ours, name)(), rows(24, 16, 1).requires_grad_(), labels(24, 4, 1)
    torch._dynamo.reset()
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    (graph,), (eager,) = (torch.autograd.grad(run(batch, mine), batch) for run in (compiled, own))
    assert (graph - eager).abs().max() <= 40 * torch.finfo(torch.float32).eps * eager.abs().max()


def all_pairs(n: int) -> tuple[Tensor, ...]:
    """What that package lists for anchors that contrast themselves in two classes, even and odd."""
    left, right = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    same = left % 2 == right % 2
    positive = same & (left != right)
    return left[positive], right[positive], left[~same], right[~same]


def test_all_pairs_are_those_of_no_list() -> None:
    batch, mine = rows(8, 4, 1), torch.arange(8) % 2
    for name in NAMES:
        criterion = getattr(ours, name)()
        assert torch.allclose(criterion(batch, mine, all_pairs(8)), criterion(batch, mine))


LISTS = {
    "triplets": lambda pairs: (pairs[0], pairs[1], pairs[3]),
    "a negative is missing": lambda pairs: (*pairs[:2], pairs[2][1:], pairs[3][1:]),
    "two positives are missing": lambda pairs: (pairs[0][1:], pairs[1][1:], *pairs[2:]),
    "a pair stands twice": lambda pairs: (pairs[0], pairs[1].clone().index_fill(0, torch.tensor(0), 4), *pairs[2:]),
    "a negative among the positives": lambda pairs: (pairs[0], pairs[1].index_fill(0, torch.tensor(0), 1), *pairs[2:]),
    "a positive among the negatives": lambda pairs: (*pairs[:3], pairs[3].index_fill(0, torch.tensor(0), 2)),
    "a negative stands twice": lambda pairs: (*pairs[:3], pairs[3].index_fill(0, torch.tensor(0), 3)),
}


@pytest.mark.parametrize("change", LISTS.values(), ids=LISTS)
def test_mined_pairs_are_refused(change: Any) -> None:
    for name in NAMES:
        with pytest.raises(ValueError, match=r"indices_tuple must .* leave the miner out"):
            getattr(ours, name)()(rows(8, 4, 1), torch.arange(8) % 2, change(all_pairs(8)))


BATCH, CLASSES = rows(6, 4, 1), torch.arange(6) % 2
MEMORY = ours.CrossBatchMemory(ours.SupConLoss(), 4, 8)
UNKNOWN: dict[str, Any] = {"embedding_regularizer": None}
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "distance": (lambda: ours.SupConLoss(distance=distances.LpDistance()), ValueError,
                 "distance must be None or CosineSimilarity or DotProductSimilarity with p=2 and power=1; got LpDist"),
    "power": (lambda: ours.NTXentLoss(distance=distances.CosineSimilarity(power=2)), ValueError, "power=1; got Cosine"),
    "reducer": (lambda: ours.SupConLoss(reducer=reducers.ClassWeightedReducer(torch.ones(2))), ValueError,
                "reducer must be None or one of AvgNonZeroReducer, MeanReducer, SumReducer, DoNothingReducer; got "
                "ClassWeightedReducer; take reduction=\"none\""),
    "reduction": (lambda: ours.NTXentLoss(reduction="none"), ValueError, "reduction must be one of 'mean', 'sum'"),
    "temperature": (lambda: ours.SupConLoss(temperature=0.0), ValueError, "temperature must be finite and above 0"),
    "regularizer": (lambda: ours.SupConLoss(**UNKNOWN), TypeError, "embedding_regularizer"),
    "embeddings": (lambda: ours.SupConLoss()(BATCH[0], CLASSES), ValueError, "embeddings must have two dimensions"),
    "labels": (lambda: ours.SupConLoss()(BATCH, CLASSES[1:]), ValueError, "labels must have shape [6]"),
    "no labels": (lambda: ours.SupConLoss()(BATCH, None), TypeError, "labels must be a torch.Tensor; got NoneType"),
    "float labels": (lambda: ours.SupConLoss()(BATCH, CLASSES.float()), TypeError, "labels must hold integers"),
    "alone": (lambda: ours.SupConLoss()(BATCH, CLASSES, ref_emb=BATCH), ValueError, "ref_emb needs ref_labels as well"),
    "width": (lambda: ours.SupConLoss()(BATCH, CLASSES, None, BATCH[:, 1:], CLASSES), ValueError,
              "ref_emb and embeddings must have the same width"),
    "loss": (lambda: ours.CrossBatchMemory(theirs.SupConLoss(), 4), TypeError,
             "loss must be a SupConLoss or NTXentLoss of"),
    "miner": (lambda: ours.CrossBatchMemory(ours.SupConLoss(), 4, miner=len), ValueError,
              "miner must be None; got builtin"),
    "memory": (lambda: ours.CrossBatchMemory(ours.SupConLoss(), 4, 0), ValueError,
               "memory_size must be at least 1; got 0"),
    "pairs": (lambda: MEMORY(BATCH, CLASSES, all_pairs(6)), ValueError, "indices_tuple must be None; got tuple; mined"),
    "too many": (lambda: MEMORY(rows(9, 4, 1), torch.zeros(9).long()), ValueError, "at most memory_size=8 rows; got 9"),
    "narrow": (lambda: MEMORY(BATCH[:, 1:], CLASSES), ValueError, "embeddings must be 4 wide; got 3"),
    "memory labels": (lambda: MEMORY(BATCH, CLASSES[1:]), ValueError, "labels must have shape [6]"),
    "mask": (lambda: MEMORY(BATCH, CLASSES, enqueue_mask=CLASSES), TypeError, "enqueue_mask must be torch.bool"),
    "a pair of ints": (lambda: ours.NTXentLoss()(BATCH, CLASSES, (0, 1, 2, 3)), TypeError,
                       "indices_tuple[0] must be a torch.Tensor; got int"),
    "a pair of floats": (lambda: ours.NTXentLoss()(BATCH, CLASSES, [BATCH[0]] * 4), ValueError,
                         "indices_tuple[0] must be numbers of rows, [pairs]; got (4,) of torch.float32"),
    "a pair of others": (lambda: ours.NTXentLoss()(BATCH, CLASSES, [torch.tensor([6])] * 4), ValueError,
                         "indices_tuple[0] must hold numbers from 0 to 5; got 6..6"),
    "ref_labels": (lambda: ours.NTXentLoss()(BATCH, CLASSES, None, BATCH, CLASSES[1:]), ValueError,
                   "ref_labels must have shape [6]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    refused(*REFUSED[name])


def test_a_nan_reaches_the_loss() -> None:
    batch = rows(8, 4, 1)
    batch[2, 1] = torch.nan
    for name in NAMES:
        assert getattr(ours, name)()(batch, torch.arange(8) % 2).isnan()


def test_options_are_shown() -> None:
    assert repr(ours.SupConLoss(temperature=0.2)) == "SupConLoss(temperature=0.2, reduction='avg_non_zero')"
