"""A predictor of texts, and of pairs of them: with the tokenizer and the length of the build."""

import pytest
import torch

import offramp
from offramp.errors import InputError
from offramp.pipeline import BuildConfig, build
from offramp.sources import load_project
from offramp.training import TrainConfig

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "the"]


def save_bert(folder, vocabulary=WORDS):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, id2label={0: "positive", 1: "negative"},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    save_bert(folder / "bert")
    rows = [
        f"{'good' if i % 2 else 'bad'} film {'the ' * i},the film,{'Positive' if i % 2 else 'Negative'}"
        for i in range(40)
    ]
    (folder / "a.csv").write_text("\n".join(["text,other,label", *rows]))
    for name, options in (("one", "max_length=6"), ("two", "pair=other,max_length=8")):
        project = load_project(f"hf:{folder / 'bert'}", f"csv:{folder / 'a.csv'},{options}")
        config = BuildConfig(heads=("linear",), train=TrainConfig(epochs=1), task=project.task)
        built = build(project.model, project.splits, config)
        offramp.save(folder / name, built.net, built.frontier, built.costs, summary=built.summary)
    return folder


def test_texts(place):
    predictor = offramp.load_predictor(place / "one")
    one = predictor("good film")
    assert one.label in ("Positive", "Negative")
    many = predictor(["bad film", "good film", "the " * 50])
    assert many[1].label == one.label
    torch.testing.assert_close(torch.tensor(many[1].outputs), torch.tensor(one.outputs), atol=1e-6, rtol=0)
    tokens = predictor._reader.batch(["good film"])
    assert tokens["input_ids"].tolist() == [[4, 6, 0, 0, 0, 0]]
    assert predictor({name: value.repeat(2, 1) for name, value in tokens.items()})[1].label == one.label


def test_pairs(place):
    predictor = offramp.load_predictor(place / "two")
    found = predictor([("good film", "the film"), ("bad film", "the film")])
    assert len(found) == 2
    assert predictor(("good film", "the film")).label == found[0].label
    with pytest.raises(InputError, match="expected texts, or pairs of texts; got both in one batch"):
        predictor([("good film", "the film"), "bad film"])


def test_another_tokenizer_is_refused(place, tmp_path):
    save_bert(tmp_path / "bert", [*WORDS[:4], "bad", "good", *WORDS[6:]])
    with pytest.raises(InputError, match=r"the artifact was built with tokenizer \w{12}, this has tokenizer"):
        offramp.load_predictor(place / "one", f"hf:{tmp_path / 'bert'}")
