"""The models that Offramp is tested with: random weights, small inputs, and what their cost is said to be.

`ZOO[name].build()` returns (model in eval mode, draw), and `draw(batch, seed=0)` inputs as the model takes
them. Parameters that start at zero are drawn too, so that no branch is dead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toys import Draw, randn, seeded

TOKENS = 128  # of the text that the cost of text models is published for
TORCHVISION = "torchvision, table of weights"
TIMM = "timm, table of benchmarks"


def images(pixels: int) -> Draw:
    """Draws square images of so many pixels."""
    return randn(3, pixels, pixels)


def pictures(pixels: int) -> Draw:
    """The same, by the name that Hugging Face gives them."""
    return lambda batch, seed=0: {"pixel_values": randn(3, pixels, pixels)(batch, seed)}


def sentences(padding: int) -> Callable[[int], Draw]:
    """Draws so many tokens, padded on the right from a random length of at least 3, and their mask."""

    def at(length: int) -> Draw:
        def draw(batch: int, seed: int = 0) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(5, 100, (batch, length), generator=generator)
            lengths = torch.randint(3, length + 1, (batch, 1), generator=generator)
            mask = (torch.arange(length) < lengths).long()
            return {"input_ids": torch.where(mask > 0, ids, padding), "attention_mask": mask}

        return draw

    return at


@dataclass(frozen=True)
class Model:
    """One model of the list.

    Args:
        make: the model for an input of some size, in pixels of a square image or in tokens.
        blocks: how many blocks it has, by its paper or its documentation; at the small size, for text.
        classes: names of the classes that are blocks, to count them in the model itself.
        draw: of inputs of some size.
        small: size of the input it is tested with.
        full: size of the input that its cost is published for.
        gmacs: that cost, in 10^9 multiply-accumulate operations for one sample.
        source: who says so.
        long: whether it takes too long for every run of the tests.
        note: for the table in the documentation.
    """

    make: Callable[[int], nn.Module]
    blocks: int
    classes: tuple[str, ...]
    draw: Callable[[int], Draw] = images
    small: int = 32
    full: int = 224
    gmacs: float | None = None
    source: str = ""
    long: bool = False
    note: str = ""

    def build(self) -> tuple[nn.Module, Draw]:
        """The small model in eval mode, and what draws a batch for it."""
        return seeded(lambda: _alive(self.make(self.small))), self.draw(self.small)

    def count_blocks(self, model: nn.Module) -> int:
        """Blocks in the model itself."""
        return sum(type(module).__name__ in self.classes for module in model.modules())


def _alive(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.05)
    return model


def timm_model(name: str, fixed_size: bool = False) -> Callable[[int], nn.Module]:
    def make(pixels: int) -> nn.Module:
        import timm

        return timm.create_model(name, **({"img_size": pixels} if fixed_size else {}))

    return make


def torchvision_model(name: str, fixed_size: bool = False) -> Callable[[int], nn.Module]:
    def make(pixels: int) -> nn.Module:
        import torchvision.models

        return torchvision.models.get_model(name, **({"image_size": pixels} if fixed_size else {}))

    return make


def classifier(kind: str, attention: str | None = None) -> Callable[[int], nn.Module]:
    """A sequence classifier of Hugging Face, made from its configuration: nothing is fetched."""

    def make(tokens: int) -> nn.Module:
        import transformers

        sizes = {} if tokens == TOKENS else {**TEXT[kind], "vocab_size": 100}
        config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=3)
        if attention is not None:
            config._attn_implementation = attention
        return getattr(transformers, f"{kind}ForSequenceClassification")(config)

    return make


_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
TEXT: dict[str, dict[str, int]] = {
    "Bert": _SIZES,
    "Roberta": _SIZES,
    "DistilBert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 40},
}


def vit(pixels: int) -> nn.Module:
    import transformers

    small = {key: size for key, size in _SIZES.items() if key != "max_position_embeddings"}
    sizes = {} if pixels == 224 else {**small, "image_size": pixels, "patch_size": 8}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_labels=1000))


def resnet(pixels: int) -> nn.Module:
    import transformers

    small = {"embedding_size": 8, "hidden_sizes": [16, 32, 48, 64], "depths": [2, 2, 2, 2]}
    sizes = {} if pixels == 224 else {**small, "layer_type": "basic"}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=1000))


def bfloat16(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    return lambda pixels: make(pixels).bfloat16()


def quantised(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Dynamically quantised: the linear layers compute in 8 bits, with scales read off each batch."""

    def quantise(pixels: int) -> nn.Module:
        with warnings.catch_warnings():
            # torch announces that all this will move to torchao; the models that people have are still these
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor, .* are deprecated", UserWarning)
            return torch.ao.quantization.quantize_dynamic(make(pixels).eval(), {nn.Linear}, torch.qint8)

    return quantise


ZOO: dict[str, Model] = {
    "timm:resnet50": Model(
        timm_model("resnet50"), 16, ("Bottleneck",), gmacs=4.09, source=TORCHVISION, long=True
    ),
    "timm:resnet152": Model(
        timm_model("resnet152"), 50, ("Bottleneck",), gmacs=11.51, source=TORCHVISION, long=True
    ),
    "timm:convnextv2_atto": Model(
        timm_model("convnextv2_atto"),
        12,
        ("ConvNeXtBlock",),
        gmacs=0.55,
        source="ConvNeXt V2, README",
    ),
    "timm:convnextv2_tiny": Model(
        timm_model("convnextv2_tiny"),
        18,
        ("ConvNeXtBlock",),
        gmacs=4.47,
        source="ConvNeXt V2, README",
        long=True,
    ),
    "timm:davit_tiny": Model(
        timm_model("davit_tiny"),
        12,
        ("SpatialBlock", "ChannelBlock"),
        gmacs=4.5,
        source="DaViT, README",
        long=True,
    ),
    "timm:davit_base": Model(
        timm_model("davit_base"),
        24,
        ("SpatialBlock", "ChannelBlock"),
        gmacs=15.5,
        source="DaViT, README",
        long=True,
    ),
    "timm:swin_tiny_patch4_window7_224": Model(
        timm_model("swin_tiny_patch4_window7_224", fixed_size=True),
        12,
        ("SwinTransformerBlock",),
        small=56,
        gmacs=4.51,
        source=TIMM,
        long=True,
    ),
    "timm:maxvit_tiny_tf_224": Model(
        timm_model("maxvit_tiny_tf_224", fixed_size=True),
        11,
        ("MaxxVitBlock",),
        small=64,
        gmacs=5.558,
        source=TORCHVISION + ", `maxvit_t`",
        note="the paper rounds to 5.6",
        long=True,
    ),
    "timm:mobilenetv3_small_100": Model(
        timm_model("mobilenetv3_small_100"),
        11,
        ("InvertedResidual", "DepthwiseSeparableConv"),
        gmacs=0.057,
        source=TORCHVISION,
    ),
    "timm:efficientnet_b0": Model(
        timm_model("efficientnet_b0"),
        16,
        ("InvertedResidual", "DepthwiseSeparableConv"),
        gmacs=0.386,
        source=TORCHVISION,
        note="the paper rounds to 0.39",
    ),
    "timm:efficientvit_m2": Model(
        timm_model("efficientvit_m2", fixed_size=True),
        6,
        ("EfficientVitBlock",),
        small=64,
        gmacs=0.201,
        source="EfficientViT, README",
        long=True,
    ),
    "timm:vit_tiny_patch16_224": Model(
        timm_model("vit_tiny_patch16_224", fixed_size=True),
        12,
        ("Block",),
        gmacs=1.26,
        source=TIMM,
    ),
    "torchvision:resnet18": Model(
        torchvision_model("resnet18"), 8, ("BasicBlock",), gmacs=1.814, source=TORCHVISION
    ),
    "torchvision:mobilenet_v3_small": Model(
        torchvision_model("mobilenet_v3_small"),
        11,
        ("InvertedResidual",),
        gmacs=0.057,
        source=TORCHVISION,
    ),
    "torchvision:vit_b_16": Model(
        torchvision_model("vit_b_16", fixed_size=True),
        12,
        ("EncoderBlock",),
        gmacs=17.564,
        source=TORCHVISION,
        long=True,
    ),
    "hf:BERT": Model(
        classifier("Bert"),
        4,
        ("BertLayer",),
        draw=sentences(0),
        small=12,
        full=TOKENS,
        gmacs=11.25,
        source="TinyBERT paper, table 1",
        note="published as 22.5 billion operations",
    ),
    "hf:BERT, eager attention": Model(
        classifier("Bert", "eager"), 4, ("BertLayer",), draw=sentences(0), small=12, full=TOKENS
    ),
    "hf:DistilBERT": Model(
        classifier("DistilBert"), 4, ("TransformerBlock",), draw=sentences(0), small=12, full=TOKENS
    ),
    "hf:DistilBERT, eager attention": Model(
        classifier("DistilBert", "eager"), 4, ("TransformerBlock",), draw=sentences(0), small=12, full=TOKENS
    ),
    "hf:RoBERTa": Model(
        classifier("Roberta"), 4, ("RobertaLayer",), draw=sentences(1), small=12, full=TOKENS
    ),
    "hf:RoBERTa, eager attention": Model(
        classifier("Roberta", "eager"), 4, ("RobertaLayer",), draw=sentences(1), small=12, full=TOKENS
    ),
    "hf:ViT": Model(vit, 4, ("ViTLayer",), draw=pictures, gmacs=17.56, source=TORCHVISION),
    "hf:ResNet": Model(
        resnet,
        8,
        ("ResNetBasicLayer", "ResNetBottleNeckLayer"),
        draw=pictures,
        gmacs=4.09,
        source=TORCHVISION,
    ),
    "timm:convnextv2_atto, bfloat16": Model(
        bfloat16(timm_model("convnextv2_atto")),
        12,
        ("ConvNeXtBlock",),
        draw=lambda pixels: randn(3, pixels, pixels, dtype=torch.bfloat16),
    ),
    "hf:BERT, bfloat16": Model(
        bfloat16(classifier("Bert")), 4, ("BertLayer",), draw=sentences(0), small=12, full=TOKENS
    ),
    "timm:vit_tiny_patch16_224, int8": Model(
        quantised(timm_model("vit_tiny_patch16_224", fixed_size=True)), 12, ("Block",)
    ),
    "hf:BERT, int8": Model(
        quantised(classifier("Bert")), 4, ("BertLayer",), draw=sentences(0), small=12, full=TOKENS
    ),
}
