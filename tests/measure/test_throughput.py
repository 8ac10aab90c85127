"""An engine over a loader: figures equal those of the records, in one pass over it."""

import pytest
import torch

import offramp
import small
from offramp.errors import InputError
from offramp.measure.throughput import measure_loader, read_batches, run_configs, time_model
from offramp.runtime.engine import Engine
from offramp.tasks.classification import TokenClassification


@pytest.fixture(scope="module")
def searched():
    """An untrained network with its frontier on 96 samples."""
    net = small.network(heads=["linear"])
    records, costs = offramp.record_outputs(net, small.loader()), offramp.measure_cost(net)
    return net, records, costs, offramp.search(records, costs, regularise=None)


class Once(list):
    """A loader that says how often it was gone through."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_figures_are_those_of_the_records(searched):
    net, records, costs, frontier = searched
    config = frontier[len(frontier) // 2]
    wanted = offramp.evaluate(records, costs, config)
    loader = Once(small.loader())
    measured = measure_loader(Engine(net, config), loader)
    assert (loader.passes, measured.batches) == (1, 3)
    assert measured.result.quality == pytest.approx(wanted.quality)
    assert measured.result.relative_macs == pytest.approx(wanted.relative_cost)
    assert measured.result.exit_shares == pytest.approx(tuple(wanted.exit_shares))
    assert measured.result.milliseconds > 0
    assert measured.unmodified_milliseconds > 0


def test_it_equals_the_run_in_memory(searched):
    net, _, _, frontier = searched
    engine = Engine(net, frontier[0])
    (kept,) = run_configs(engine, read_batches(net.partition.spec, small.loader()), [frontier[0]], rounds=1)
    once = measure_loader(engine, small.loader(), rounds=1).result
    assert (kept.quality, kept.relative_macs, kept.exit_shares) == (
        once.quality,
        once.relative_macs,
        once.exit_shares,
    )


def test_without_labels_and_without_a_length(searched):
    net, _, _, frontier = searched
    measured = measure_loader(Engine(net, frontier[0]), iter(small.loader(labelled=False)))
    assert (measured.result.quality, measured.batches) == (None, 3)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the loader yields no samples"),
        ([(torch.zeros(2, 1, 8, 7), torch.zeros(2).long())], "expected shape"),
        ([(torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2).long())], "not finite"),
        ([(torch.zeros(2, 1, 8, 8), torch.full((2,), 3))], "labels: expected 0 to 2"),
    ],
)
def test_batches_that_do_not_fit(searched, loader, message):
    net, _, _, frontier = searched
    with pytest.raises(InputError, match=message):
        measure_loader(Engine(net, frontier[0]), loader)


class Tagger(torch.nn.Module):
    """Tokens (B, 4) with a mask to (B, 4, 3)."""

    def __init__(self):
        super().__init__()
        self.embed, self.one, self.two = (
            torch.nn.Embedding(9, 8),
            torch.nn.Linear(8, 8),
            torch.nn.Linear(8, 3),
        )

    def forward(self, input_ids, attention_mask):
        return self.two(torch.relu(self.one(self.embed(input_ids) * attention_mask.unsqueeze(2))))


def test_padding_does_not_count_where_every_token_has_an_answer():
    model = small.model(Tagger)
    ids = torch.randint(9, (6, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0]] * 6)
    inputs = {"input_ids": ids, "attention_mask": mask}
    right = model(**inputs).argmax(2)
    labels = torch.where(mask == 1, right, (right + 1) % 3)  # wrong at every padded token
    net = offramp.attach_exits(model, inputs, heads=["linear"], cuts=["one"], task=TokenClassification())
    assert measure_loader(Engine(net), [(inputs, labels)]).result.quality == 1


def test_a_model_that_writes_to_its_input_leaves_the_stream_as_it_is():
    class Writing(small.Picture):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.add_(1.0))

    x = small.inputs(small.Picture)
    net = offramp.attach_exits(small.model(Writing), x[:2], heads=("linear",))
    before, engine = x.clone(), Engine(net)
    time_model(engine, read_batches(net.partition.spec, [x]))
    measure_loader(engine, [x], rounds=2)
    assert torch.equal(x, before)
