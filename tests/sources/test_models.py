"""Models of timm, torchvision and Hugging Face by name: made, with their own configuration, or refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from offramp.errors import InputError, MissingExtraError
from offramp.sources.datasets import DATA_SCHEMES, load_samples
from offramp.sources.models import (
    MODEL_SCHEMES,
    _class_names,
    _vision_source,
    load_source,
    of_callable,
)
from offramp.sources.project import load_input_exits
from offramp.sources.spec import parse_spec
from offramp.tasks.base import make_task

Image = pytest.importorskip("PIL.Image")

SMALL = "timm:test_resnet,pretrained=false"


def load(text):
    return load_source(parse_spec("MODEL", text, MODEL_SCHEMES))


def refused(text, message, error=InputError):
    with pytest.raises(error, match=message):
        load(text)


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Whatever this machine has downloaded must not matter."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)


def unreachable(*_, **__):
    raise URLError("Name or service not known")


def test_timm_with_its_own_configuration():
    source = load(f"{SMALL},classes=3")
    assert not source.model.training
    assert source.model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert source.images.size == (3, 160, 160)
    assert (source.images.mean, source.images.std) == ((0.5,) * 3, (0.5,) * 3)
    assert source.images.certain
    assert not source.classes


def test_timm_of_imagenet_knows_the_synsets():
    classes = load(SMALL).classes
    assert len(classes) == 1000
    assert (classes["n01440764"], classes["n15075141"]) == (0, 999)


def test_random_weights_are_the_same_each_time(untouched_random_state):
    one, two = (load(SMALL).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_size_for_models_that_are_made_for_one_and_for_others():
    image = Image.new("RGB", (50, 40))
    for text in (SMALL, "timm:test_vit,pretrained=false", "torchvision:resnet18,pretrained=false"):
        source = load(f"{text},size=64,classes=2")
        assert source.images.size == (3, 64, 64)
        prepared = source.images.transform(image)
        assert prepared.shape == (3, 64, 64)
        assert source.model(prepared[None]).shape == (1, 2)


def test_a_normalisation_of_ones_own():
    images = load(f"{SMALL},mean=0,std=1").images
    assert (images.mean, images.std) == ((0,) * 3, (1,) * 3)
    white = Image.new("RGB", (50, 40), "white")
    torch.testing.assert_close(images.transform(white), torch.ones(3, 160, 160))
    refused(f"{SMALL},mean=0/1", r"mean: expected 1 or 3 numbers, got 2")
    refused(f"{SMALL},std=0", r"std: expected numbers above 0, got 0.0")


def test_torchvision_with_its_own_configuration():
    source = load("torchvision:resnet18,pretrained=false")
    assert source.images.mean == (0.485, 0.456, 0.406)
    assert source.images.size == (3, 224, 224)
    assert source.classes["tench"] == 0
    assert not load("torchvision:resnet18,pretrained=false,classes=2").classes


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrap", [None, "state_dict"])
def test_weights_of_ones_own(tmp_path, suffix, wrap):
    model = load(f"{SMALL},classes=3").model
    state = {
        name: value + 1 if value.dtype.is_floating_point else value
        for name, value in model.state_dict().items()
    }
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        stored = {f"module.{name}": value for name, value in state.items()}
        torch.save(stored if wrap is None else {wrap: stored, "epoch": 3}, path)
    loaded = load(f"timm:test_resnet,classes=3,weights={path}").model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_weights_that_do_not_fit_or_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load(f"{SMALL},classes=3").model.state_dict()
    save_file(state, "three.safetensors")
    text = "timm:test_resnet,weights="
    refused(f"{text}three.safetensors", r"fc.weight is \(3, 96\), expected \(1000, 96\); .* say classes=K")
    save_file({name: value for name, value in state.items() if name != "fc.bias"}, "less.safetensors")
    refused(f"{text}less.safetensors", r"is of another model: 1 tensors missing \(fc.bias\), 0 not known")
    refused(f"{text}none.pth", "weights: no file none.pth")
    Path("damaged.safetensors").write_bytes(b"123")
    Path("damaged.pth").write_bytes(b"123")
    torch.save({"a": Evil()}, "evil.pth")
    torch.save({"epoch": 3}, "odd.pth")
    for name in ("damaged.safetensors", "damaged.pth", "evil.pth"):
        refused(f"{text}{name}", f"{name} cannot be read as tensors .*; expected .safetensors, or a .pth")
    assert not Path("evil").exists()
    refused(f"{text}odd.pth", r"odd.pth holds no tensors by name; save model.state_dict\(\)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:test_resnett", r"timm has no model of this name \(did you mean 'test_resnet' or "),
        (
            "timm:resnet50.a1_in2k",
            r"no weights 'a1_in2k' \(did you mean 'a1_in1k'\?\); resnet50 has a1_in1k, ",
        ),
        ("torchvision:resnet19", r"torchvision has no classifier of this name \(did you mean 'resnet18' or "),
        ("torchvision:fcn_resnet50,pretrained=false", r"torchvision has no classifier of this name"),
        ("timm:test_resnet,classes=3", r"untrained last layer; say weights=FILE .* or pretrained=false"),
        ("timm:local-dir:/nowhere", r"MODEL timm:local-dir:/nowhere: FileNotFoundError"),
        ("timm:test_resnet,pretrained=1", r"pretrained: expected true or false, got '1'"),
    ],
)
def test_a_model_that_cannot_be_had(text, message):
    refused(text, message)


def test_a_hub_that_cannot_be_reached(tmp_path):
    cached = "its files are not in the local cache, and the hub cannot be reached. Run once with"
    refused(
        "timm:test_resnet",
        f"MODEL timm:test_resnet: {cached}.*timm:local-dir:DIR, or weights=FILE. HF",
    )
    refused("torchvision:resnet18", f"{cached}.* weights=FILE. TORCH_HOME says where the cache is")
    refused("hf:someone/bert-tiny", f"{cached}.* hf:DIR, a folder written by save_pretrained")


def test_libraries_that_are_not_there(monkeypatch):
    for module, text, extra in (
        ("timm", "timm:resnet50", "timm"),
        ("torchvision.models", "torchvision:resnet18", "torchvision"),
        ("transformers", "hf:bert-base-uncased", "text"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        refused(text, rf'MODEL {text} needs {module}.*pip install "offramp\[{extra}\]"', MissingExtraError)


def test_a_users_own_model_tells_what_it_can(bert):
    timm = pytest.importorskip("timm")
    own = of_callable(timm.create_model("test_resnet", num_classes=3))
    assert not own.images.certain
    assert own.images.mean == (0.5, 0.5, 0.5)
    plain = of_callable(nn.Linear(2, 2))
    assert (plain.images, plain.text, plain.vocabulary) == (None, None, None)
    assert of_callable(load(f"hf:{bert}").model).vocabulary == 10


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "the", "##s"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a tiny classifier and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def own_bert(bert, tmp_path):
    copy = tmp_path / "bert"
    copy.mkdir()
    for file in bert.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_text_classifier_with_its_tokenizer(bert):
    source = load(f"hf:{bert}")
    assert source.classes == {"bad": 0, "good": 1}
    assert (source.text.longest, source.vocabulary) == (24, 10)
    tokens = source.text.encode(["the good films", "bad"], 8)
    assert tokens["input_ids"].tolist() == [[2, 8, 5, 7, 9, 3, 0, 0], [2, 6, 3, 0, 0, 0, 0, 0]]
    assert tokens["attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 3 + [0] * 5]
    assert source.model(**tokens).logits.shape == (2, 2)


def test_no_tokenizer_is_said_when_text_comes(own_bert, bert):
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (own_bert / name).unlink()
    source = load(f"hf:{own_bert}")
    assert source.text is None
    assert f"no tokenizer in {own_bert}; save it there with tokenizer.save_pretrained" in source.fault
    assert load(f"hf:{own_bert},tokenizer={bert}").text.longest == 24
    refused(f"hf:{bert},tokenizer={own_bert}", "no tokenizer in")


def test_a_tokenizer_without_words(own_bert):
    (own_bert / "tokenizer.json").unlink()
    (own_bert / "vocab.txt").write_text("")
    assert "knows no words" in load(f"hf:{own_bert}").fault


def test_a_tokenizer_of_a_larger_model(own_bert, bert):
    transformers = pytest.importorskip("transformers")
    (own_bert / "vocab.txt").write_text("\n".join([*WORDS, "more", "words"]))
    transformers.BertTokenizer(str(own_bert / "vocab.txt")).save_pretrained(own_bert)
    message = r"the tokenizer of .* has 12 tokens, the model's embedding only 10 rows; name .* tokenizer=DIR"
    refused(f"hf:{own_bert}", message)
    refused(f"hf:{bert},tokenizer={own_bert}", message)


def test_folders_that_hold_no_classifier(own_bert, tmp_path):
    refused("hf:/nowhere/model", "no folder /nowhere/model; for a model of the hub say hf:NAME")
    (tmp_path / "empty").mkdir()
    refused(f"hf:{tmp_path / 'empty'}", "MODEL hf:.*/empty: ")
    config = json.loads((own_bert / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (own_bert / "config.json").write_text(json.dumps(config))
    refused(
        f"hf:{own_bert}", r"expected a classifier \(ForSequenceClassification, .*\), got BertModel; fine-tune"
    )


def test_weights_without_a_classifier(own_bert):
    state = load(f"hf:{own_bert}").model.state_dict()
    headless = {name: value for name, value in state.items() if not name.startswith("classifier")}
    save_file(headless, own_bert / "model.safetensors", {"format": "pt"})
    refused(
        f"hf:{own_bert}",
        r"it holds no weights for 2 tensors \(classifier.bias, classifier.weight\); fine-tune",
    )


def test_random_weights_of_a_configuration(own_bert):
    (own_bert / "model.safetensors").unlink()
    refused(f"hf:{own_bert}", "no file named model.safetensors")
    assert load(f"hf:{own_bert},pretrained=false").text is not None


def test_an_image_classifier_with_its_processor(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    refused(f"hf:{tmp_path}", "MODEL hf:.*image processor")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    source = load(f"hf:{tmp_path}")
    images = source.images
    assert (images.size, images.mean, images.key) == ((3, 32, 32), (0.5,) * 3, "pixel_values")
    assert not source.classes  # LABEL_0 and so on are no names
    white = images.transform(Image.new("RGB", (50, 40), "white"))
    torch.testing.assert_close(white, torch.ones(3, 32, 32))
    assert source.model(pixel_values=white[None]).logits.shape == (1, 3)


def test_a_tokenizer_without_padding(own_bert):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (own_bert / name).unlink(missing_ok=True)
    tokenizers = pytest.importorskip("tokenizers")
    plain = tokenizers.Tokenizer.from_file(str(own_bert / "tokenizer.json"))
    pytest.importorskip("transformers").PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(
        own_bert
    )
    assert "has no padding token; set one and save it again" in load(f"hf:{own_bert}").fault


def test_a_library_of_the_library_that_is_not_there(monkeypatch, bert):
    def needy(*_, **__):
        raise ImportError("this model needs sentencepiece")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", needy)
    refused(f"hf:{bert}", r'needs sentencepiece; pip install "offramp\[text\]"', MissingExtraError)


def test_a_users_own_text_model_with_a_tokenizer_for_its_data(bert, tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f"good film{'s' * (i % 9)},{i % 2}\n" for i in range(40))
    )
    own = of_callable(load(f"hf:{bert}").model)
    data = f"csv:{tmp_path / 'a.csv'},max_length=6"
    task = make_task("classification")
    with pytest.raises(
        InputError, match=r"does not say how it takes text; name a tokenizer \(tokenizer=DIR\)"
    ):
        load_samples(parse_spec("DATA", data, DATA_SCHEMES), own, task)
    splits = load_samples(parse_spec("DATA", f"{data},tokenizer={bert}", DATA_SCHEMES), own, task)
    inputs, _ = next(iter(splits.train))
    assert inputs["input_ids"][:, :2].tolist() == [[2, 5]] * len(inputs["input_ids"])


def test_an_exit_at_the_input_reads_the_same_tokens_and_channels(own_bert, bert, monkeypatch):
    transformers = pytest.importorskip("transformers")
    (own_bert / "tokenizer.json").unlink()
    (own_bert / "vocab.txt").write_text("\n".join(WORDS[:5] + WORDS[5:][::-1]))
    transformers.BertTokenizer(str(own_bert / "vocab.txt")).save_pretrained(own_bert)
    source = load(f"hf:{bert}")
    assert isinstance(load_input_exits([f"same=hf:{bert}"], source)["same"], nn.Module)
    with pytest.raises(
        InputError, match=r"its tokenizer is not the model's, and both are given the same tokens"
    ):
        load_input_exits([f"other=hf:{own_bert}"], source)
    source = load(SMALL)
    grey = replace(source, images=replace(source.images, size=(1, 160, 160), mean=(0.5,), std=(0.5,)))
    monkeypatch.setattr("offramp.sources.project.load_source_model", lambda *_: grey)
    with pytest.raises(InputError, match="--input-exit a=timm:x: it takes 1 channels, the model 3"):
        load_input_exits(["a=timm:x"], source)


def edit_config(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


def test_code_that_comes_with_a_model_is_not_run(own_bert, monkeypatch):
    (own_bert / "own.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    edit_config(own_bert, auto_map={"AutoConfig": "own.Config"}, model_type="of-my-own")
    message = (
        r"bert comes with code of its own, which is not run; load it yourself, .*package.module:callable"
    )
    refused(f"hf:{own_bert}", message)


def test_names_of_classes_by_either_table(own_bert):
    made_up = {"LABEL_0": 0, "LABEL_1": 1}
    for by_index, by_name, wanted in (
        ({0: "no", 1: "yes"}, made_up, {"no": 0, "yes": 1}),
        ({0: "LABEL_0", 1: "LABEL_1"}, {"yes": 1, "no": 0}, {"no": 0, "yes": 1}),
        ({0: "LABEL_0", 1: "LABEL_1"}, made_up, {}),
    ):
        assert _class_names(None, SimpleNamespace(id2label=by_index, label2id=by_name)) == wanted
    spec = parse_spec("MODEL", f"hf:{own_bert}", MODEL_SCHEMES)
    wrong = SimpleNamespace(id2label={0: "no", 1: "yes"}, label2id={"no": 1, "yes": 0})
    with pytest.raises(InputError, match=r"its config.json contradicts itself: id2label is .*; mend it"):
        _class_names(spec, wrong)


def test_two_classes_of_one_name_have_none():
    names = ["crane", "bird", "crane"]
    source = _vision_source(parse_spec("MODEL", SMALL, MODEL_SCHEMES), nn.Identity(), None, names)
    assert source.classes == {"bird": 1}
