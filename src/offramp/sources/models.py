"""Models of timm, torchvision and Hugging Face, with what they say about their inputs and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.errors import InputError, MissingExtraError
from offramp.sources.preprocessing import (
    ImageInput,
    TextInput,
    check_tokens,
    processor_images,
    renormalised,
    timm_images,
    torchvision_images,
)
from offramp.sources.readings import place
from offramp.sources.spec import Scheme, Spec, near, require, unreachable

_VISION = ("pretrained", "weights", "classes", "size", "mean", "std")
MODEL_SCHEMES = (
    Scheme("timm", "NAME", _VISION),
    Scheme("torchvision", "NAME", _VISION),
    Scheme("hf", "NAME_OR_DIR", ("pretrained", "tokenizer")),
)
_AT_HAND = {
    "timm": "timm:local-dir:DIR, or weights=FILE. HF_HUB_OFFLINE=1 keeps to the cache; pretrained=false "
    "gives random weights",
    "torchvision": "weights=FILE. TORCH_HOME says where the cache is; pretrained=false gives random weights",
    "hf": "hf:DIR, a folder written by save_pretrained. HF_HUB_OFFLINE=1 keeps to the cache",
}
_HEADS = ("ForSequenceClassification", "ForImageClassification", "ForTokenClassification")
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True)
class SourceModel:
    """A model in eval mode, and what is known about it.

    How it takes images and text (None where it takes none, or nobody knows; ``fault`` says why it should but
    does not), the rows of its embedding of tokens, and its classes: name -> index of the output. ``spec`` is
    what it was named by.
    """

    model: nn.Module
    images: ImageInput | None = None
    text: TextInput | None = None
    vocabulary: int | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""
    spec: str = ""

    def check(self, index: int, batch: object) -> None:
        """Refuse a loader's batch with pixels or token ids that the model cannot have been trained for."""
        if self.images is not None:
            self.images.check(index, batch)
        if self.vocabulary is not None:
            check_tokens(batch, self.vocabulary)


def load_source(spec: Spec) -> SourceModel:
    """Make the model that a specification names.

    ``InputError``: there is no such model, its weights cannot be had, or an option does not fit.
    ``MissingExtraError``: the library is not installed.
    """
    source = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}[spec.scheme](spec)
    source.model.eval()
    return replace(source, spec=spec.text)


def of_callable(model: nn.Module) -> SourceModel:
    """What a user's own model tells: timm's carry their data config, Hugging Face's their embedding."""
    images = None
    if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        with suppress(MissingExtraError):
            images = timm_images(model, certain=False)
    return SourceModel(model=model, images=images, vocabulary=_vocabulary(model))


def _vocabulary(model: nn.Module) -> int | None:
    """Rows of a Hugging Face model's embedding of tokens."""
    find = getattr(model, "get_input_embeddings", None)
    embedding = find() if callable(find) else None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def with_tokenizer(spec: Spec, source: SourceModel) -> SourceModel:
    """The model with the tokenizer that data name by their option "tokenizer"."""
    return _with_text(spec, source, require("transformers", "text", f"DATA {spec.text}"), "")


def _timm(spec: Spec) -> SourceModel:
    timm = require("timm", "timm", f"MODEL {spec.text}")
    name, dot, tag = spec.name.partition(".")  # resnet50.a1_in1k names one of several sets of weights
    local = ":" in spec.name or "/" in spec.name
    if not local and not timm.is_model(name):
        raise spec.error(f"timm has no model of this name{near(spec.name, timm.list_models(), 3)}")
    if dot and timm.is_model(name):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        if tag not in tags:
            raise spec.error(f"no weights {tag!r}{near(tag, tags)}; {name} has {', '.join(tags) or 'none'}")
    pretrained, classes = _weights_and_classes(spec)
    create = partial(timm.create_model, spec.name, pretrained=pretrained, **classes)
    model = _vision_model(spec, create, "img_size")
    images = timm_images(model, spec.integer("size", None))
    names = timm.data.ImageNetInfo().label_names() if getattr(model, "num_classes", None) == 1000 else []
    return _vision_source(spec, model, images, names)


def _torchvision(spec: Spec) -> SourceModel:
    models = require("torchvision.models", "torchvision", f"MODEL {spec.text}")
    known = models.list_models(module=models)  # those for classification
    if spec.name not in known:
        raise spec.error(f"torchvision has no classifier of this name{near(spec.name, known, 3)}")
    weights = models.get_model_weights(spec.name).DEFAULT
    pretrained, classes = _weights_and_classes(spec)
    create = partial(models.get_model, spec.name, weights=weights if pretrained else None, **classes)
    model = _vision_model(spec, create, "image_size")
    images = torchvision_images(weights, spec.integer("size", None))
    return _vision_source(spec, model, images, [] if classes else weights.meta.get("categories", []))


def _weights_and_classes(spec: Spec) -> tuple[bool, dict[str, int]]:
    """Whether the library's weights are wanted, and the number of classes as a keyword, if one is given."""
    classes = spec.integer("classes", None)
    pretrained = spec.flag("pretrained", "weights" not in spec.options)
    if classes is not None and pretrained:
        raise spec.error(
            "classes= gives the pretrained model an untrained last layer; say weights=FILE with the weights "
            "that you trained, or pretrained=false"
        )
    return pretrained, {} if classes is None else {"num_classes": classes}


def _vision_model(spec: Spec, create: Callable[..., nn.Module], size_keyword: str) -> nn.Module:
    """What the library creates, with the weights of the user's file if there is one."""
    size = spec.integer("size", None)

    def make() -> nn.Module:
        if size is not None:
            with suppress(TypeError):  # what takes no size when it is made takes any when it is called
                return create(**{size_keyword: size})
        return create()

    model: nn.Module = _made(spec, make)
    if "weights" in spec.options:
        _load_weights(spec, model)
    return model


def _vision_source(spec: Spec, model: nn.Module, images: ImageInput, names: Sequence[str]) -> SourceModel:
    """The model with its class names, and its images by the mean and std that are given."""
    if {"mean", "std"} & spec.options.keys():
        mean, std = spec.numbers("mean") or images.mean, spec.numbers("std") or images.std
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, images.size[0]):
                raise spec.error(f"{name}: expected 1 or {images.size[0]} numbers, got {len(values)}")
        if min(std) <= 0:
            raise spec.error(f"std: expected numbers above 0, got {min(std)}")
        images = renormalised(images, mean, std)
    unique = {name for name, count in Counter(names).items() if count == 1}  # ImageNet has two cranes
    classes = {name: i for i, name in enumerate(names) if name in unique}
    return SourceModel(model=model, images=images, classes=classes)


def _made(spec: Spec, make: Callable[[], Any]) -> Any:
    """Call a library; what it cannot do comes out as a message."""
    try:
        with torch.random.fork_rng(devices=[]):  # random weights are the same each time: an artifact fits
            torch.default_generator.manual_seed(0)
            return make()
    except (InputError, MissingExtraError):
        raise
    except Exception as error:
        if unreachable(error):
            at_hand = _AT_HAND.get(spec.scheme, _AT_HAND["hf"])
            raise spec.error(
                "its files are not in the local cache, and the hub cannot be reached. Run once with a "
                f"connection, which fills the cache; or name what you have: {at_hand}"
            ) from error
        if isinstance(error, ImportError) or "torchvision::" in str(error):
            extra = spec.scheme if spec.scheme in ("timm", "torchvision") else "text"
            raise MissingExtraError(
                f'{spec.what} {spec.text}: {error}; pip install "offramp[{extra}]"'
            ) from error
        raise spec.error(f"{type(error).__name__}: {error}") from error


def _load_weights(spec: Spec, model: nn.Module) -> None:
    path = place(spec, "weights")
    if not path.is_file():
        raise spec.error(f"weights: no file {path}")
    state = _state(spec, path)
    own = model.state_dict()
    missing, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or strange:
        raise spec.error(
            f"weights: {path} is of another model: {len(missing)} tensors missing{_few(missing)}, "
            f"{len(strange)} not known{_few(strange)}"
        )
    other = [name for name in own if own[name].shape != state[name].shape]
    if other:
        shapes = f"{other[0]} is {tuple(state[other[0]].shape)}, expected {tuple(own[other[0]].shape)}"
        raise spec.error(
            f"weights: {path} does not fit: {shapes}; for another number of classes say classes=K"
        )
    model.load_state_dict(state)


def _few(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _state(spec: Spec, path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, out of a file that can run no code."""
    from safetensors.torch import load_file

    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # safetensors, zip, restricted unpickling: each has errors of its own
        said = str(error).partition("\n")[0]
        raise spec.error(
            f"weights: {path} cannot be read as tensors ({type(error).__name__}: {said}); "
            "expected .safetensors, or a .pth that holds a state dict and nothing else"
        ) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise spec.error(f"weights: {path} holds no tensors by name; save model.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _hugging_face(spec: Spec) -> SourceModel:
    transformers = require("transformers", "text", f"MODEL {spec.text}")
    folder = place(spec)
    if not folder.is_dir() and (spec.name[0] in "./~" or spec.name.count("/") > 1):
        raise spec.error(f"no folder {folder}; for a model of the hub say hf:NAME or hf:OWNER/NAME")
    name = str(folder) if folder.is_dir() else spec.name
    config = _pretrained(spec, transformers.AutoConfig, name)
    kind = next((head for head in _HEADS for it in config.architectures or () if it.endswith(head)), None)
    if kind is None:
        found = ", ".join(config.architectures or ()) or "a configuration without architectures"
        raise spec.error(
            f"expected a classifier ({', '.join(_HEADS)}), got {found}; fine-tune one and name its folder"
        )
    auto = getattr(transformers, f"AutoModel{kind}")
    if spec.flag("pretrained", True):
        model, loading = _pretrained(spec, auto, name, output_loading_info=True)
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise spec.error(
                f"it holds no weights for {len(missing)} tensors{_few(missing)}; fine-tune it first"
            )
    else:
        model = _made(spec, lambda: auto.from_config(config, trust_remote_code=False))
    source = SourceModel(model=model, classes=_class_names(spec, config))
    if kind == "ForImageClassification":
        processor = _pretrained(spec, transformers.AutoImageProcessor, name)
        return replace(source, images=processor_images(processor, model.main_input_name))
    return _with_text(spec, source, transformers, name)


def _pretrained(spec: Spec, kind: Any, name: str, **options: Any) -> Any:
    """What a class of transformers loads; code that comes with it is not run, nor is anybody asked."""
    try:
        return _made(spec, lambda: kind.from_pretrained(name, trust_remote_code=False, **options))
    except InputError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise spec.error(
            f"{name} comes with code of its own, which is not run; load it yourself, in a function that you "
            "name instead: package.module:callable"
        ) from error


def _class_names(spec: Spec, config: Any) -> dict[str, int]:
    """Name of a class -> index, by either table that a configuration has; those that it makes up are none."""
    by_name = {str(name): int(index) for name, index in (config.label2id or {}).items()}
    by_index = {str(name): int(index) for index, name in (config.id2label or {}).items()}
    known = [table for table in (by_index, by_name) if not all(name.startswith("LABEL_") for name in table)]
    if len(known) == 2 and known[0] != known[1]:
        raise spec.error(
            f"its config.json contradicts itself: id2label is {known[0]}, label2id {known[1]}; mend it"
        )
    return known[0] if known else {}


def _with_text(spec: Spec, source: SourceModel, transformers: Any, name: str) -> SourceModel:
    """The tokenizer, or why there is none: data that is tokenized already needs none."""
    vocabulary = _vocabulary(source.model)
    where = spec.options.get("tokenizer", name)
    source = replace(source, vocabulary=vocabulary)
    try:
        tokenizer = _tokenizer(spec, transformers, where)
    except InputError as error:
        if "tokenizer" in spec.options:
            raise
        return replace(source, fault=str(error))
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise spec.error(
            f"the tokenizer of {where} has {len(tokenizer)} tokens, the model's embedding only {vocabulary} "
            "rows; name the tokenizer that the model was trained with: tokenizer=DIR"
        )
    config = getattr(source.model, "config", None)
    most = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    longest = min(int(most), int(tokenizer.model_max_length))
    keys = tuple(key for key in ("input_ids", "attention_mask") if key in tokenizer.model_input_names)
    return replace(source, text=TextInput(tokenizer, keys, longest, where))


def _tokenizer(spec: Spec, transformers: Any, where: str) -> Any:
    if Path(where).is_dir() and not any((Path(where) / name).is_file() for name in _TOKENIZER_FILES):
        raise spec.error(
            f"no tokenizer in {where}; save it there with tokenizer.save_pretrained, or name one: "
            "tokenizer=DIR"
        )
    tokenizer = _pretrained(spec, transformers.AutoTokenizer, where)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes of nothing
        raise spec.error(f"the tokenizer of {where} knows no words; name another: tokenizer=DIR")
    if tokenizer.pad_token is None:
        raise spec.error(f"the tokenizer of {where} has no padding token; set one and save it again")
    return tokenizer
