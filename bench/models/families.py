"""Further families of models, each tried once: the second table of docs/models.md.

    python bench/models families [--only TEXT]

Random weights, nothing is fetched. Each model is traced and cut automatically, compared with its segments bit
for bit (at two batch sizes; for texts at two lengths), and its engine with all exits off with the model
itself. Small ones then go all the way: heads are trained, recorded and searched. Writes
bench/results/families.json and the table; --only tries those whose name holds the text again.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.shared import command, results
from bench.shared.results import ROOT

sys.path.insert(0, str(ROOT / "tests" / "shim"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torchvision_operators

torchvision_operators.install()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import offramp  # noqa: E402
from offramp.errors import OfframpError  # noqa: E402
from offramp.graph import evaluating  # noqa: E402
from offramp.tasks import select_output  # noqa: E402

RESULTS = results.RESULTS / "families.json"
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- made by bench/models families -->", "<!-- end of families -->"
HEADER = "| Family | Model tried | Positions | Exits and frontier | Outcome |\n|---|---|---:|---|---|"
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """A model and a batch for it; ``all_the_way``: heads are trained and searched, too."""

    kind: str
    make: Callable[[], nn.Module]
    draw: Callable[[int], Any]
    all_the_way: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


def timm_model(name: str, size: int = 224) -> Family:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return Family("images", make, images(size))


def torchvision_model(name: str, size: int = 224) -> Family:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None)

    return Family("images", make, images(size))


def video_model(name: str, frames: int, size: int) -> Family:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None)

    return Family("video", make, lambda batch: torch.randn(batch, 3, frames, size, size))


def sentences(batch: int, length: int = 16, end: int | None = None) -> dict[str, Tensor]:
    lengths = torch.randint(5, length + 1, (batch, 1))
    mask = (torch.arange(length) < lengths).long()
    ids = torch.where(mask > 0, torch.randint(5, 100, (batch, length)), 0)
    if end is not None:
        ids.scatter_(1, lengths - 1, end)
    return {"input_ids": ids, "attention_mask": mask}


def hugging_face(
    kind: str,
    model: str,
    config: str,
    draw: Callable[[int], Any] = sentences,
    *,
    task: str = "",
    **settings: Any,
) -> Family:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**settings))  # type: ignore[no-any-return]

    return Family(kind, make, draw, all_the_way=True, options={"task": task} if task else {})


def text(name: str, config: str = "", **settings: Any) -> Family:
    kind = settings.pop("kind", "text encoder")
    return hugging_face(
        kind, f"{name}ForSequenceClassification", f"{config or name}Config", **{**TEXT, **settings}
    )


class Tabular(nn.Module):
    """Categories and numbers of a table, embedded, through a residual MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(10, 8) for _ in range(4))
        self.start = nn.Linear(4 * 8 + 6, 64)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
            for _ in range(4)
        )
        self.top = nn.Linear(64, 3)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """(B, 4) and (B, 6) to (B, 3)."""
        parts = [embed(categories[:, i]) for i, embed in enumerate(self.embed)]
        x = self.start(torch.cat([*parts, numbers], 1))
        for block in self.blocks:
            x = x + block(x)
        return self.top(x)  # type: ignore[no-any-return]


class FeatureTransformer(nn.Module):
    """Every column a token, a class token before them, a transformer encoder (after FT-Transformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(10, 32)), nn.Parameter(torch.randn(10, 32))
        self.cls = nn.Parameter(torch.randn(1, 1, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.top = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 10) to (B, 3)."""
        tokens = x[..., None] * self.scale + self.shift
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1)
        return self.top(self.encoder(tokens)[:, 0])  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Three LSTM layers and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(a, 32, batch_first=True) for a in (12, 32, 32))
        self.top = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, 12) to (B, 3)."""
        for layer in self.layers:
            x, _ = layer(x)
        return self.top(x[:, -1])  # type: ignore[no-any-return]


def table(batch: int) -> dict[str, Tensor]:
    return {"categories": torch.randint(0, 10, (batch, 4)), "numbers": torch.randn(batch, 6)}


def sound(batch: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, 4000)}


AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
SMALL_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
}
DECODER = {"kind": "decoder"}

FAMILIES: dict[str, Family] = {
    **{
        f"timm:{name}": timm_model(name, size)
        for name, size in {
            "regnety_002": 224,
            "resnest14d": 224,
            "res2net50_26w_4s": 224,
            "seresnet18": 224,
            "skresnet18": 224,
            "densenet121": 224,
            "dla34": 224,
            "hrnet_w18_small": 224,
            "mobilenetv2_050": 224,
            "mobilenetv4_conv_small": 224,
            "ghostnet_100": 224,
            "mnasnet_small": 224,
            "rexnet_100": 224,
            "edgenext_xx_small": 256,
            "mobilevit_xxs": 256,
            "mobilevitv2_050": 256,
            "fastvit_t8": 256,
            "repvgg_a0": 224,
            "repvit_m0_9": 224,
            "efficientformer_l1": 224,
            "poolformer_s12": 224,
            "caformer_s18": 224,
            "mixer_s32_224": 224,
            "resmlp_12_224": 224,
            "gmlp_s16_224": 224,
            "deit_tiny_patch16_224": 224,
            "cait_xxs24_224": 224,
            "xcit_nano_12_p16_224": 224,
            "pit_ti_224": 224,
            "levit_128s": 224,
            "twins_pcpvt_small": 224,
            "pvt_v2_b0": 224,
            "swinv2_tiny_window8_256": 256,
            "mvitv2_tiny": 224,
            "hiera_tiny_224": 224,
            "inception_next_tiny": 224,
            "focalnet_tiny_srf": 224,
            "sequencer2d_s": 224,
            "tiny_vit_5m_224": 224,
            "ese_vovnet19b_dw": 224,
            "coat_lite_tiny": 224,
            "crossvit_tiny_240": 240,
            "nest_tiny": 224,
            "volo_d1_224": 224,
        }.items()
    },
    **{
        f"torchvision:{name}": torchvision_model(name)
        for name in ("alexnet", "vgg11", "squeezenet1_1", "shufflenet_v2_x0_5", "convnext_tiny", "swin_v2_t")
    },
    "torchvision:r3d_18": video_model("r3d_18", 4, 56),
    "torchvision:r2plus1d_18": video_model("r2plus1d_18", 4, 56),
    "torchvision:mc3_18": video_model("mc3_18", 4, 56),
    "torchvision:s3d": video_model("s3d", 16, 224),
    "torchvision:swin3d_t": video_model("swin3d_t", 4, 64),
    "torchvision:mvit_v2_s": video_model("mvit_v2_s", 16, 224),
    "hf:ALBERT": text("Albert", embedding_size=32),
    "hf:ELECTRA": text("Electra", embedding_size=32),
    "hf:DeBERTa v2": text(
        "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8
    ),
    "hf:MPNet": text("MPNet"),
    "hf:XLM-RoBERTa": text("XLMRoberta", pad_token_id=1),
    "hf:ModernBERT": text("ModernBert", cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2),
    "hf:MobileBERT": text("MobileBert", embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32),
    "hf:FNet": hugging_face(
        "text encoder",
        "FNetForSequenceClassification",
        "FNetConfig",
        lambda batch: {"input_ids": torch.randint(5, 100, (batch, 16))},
        **{**TEXT, "max_position_embeddings": 64},
    ),
    "hf:BigBird": text("BigBird", attention_type="original_full"),
    "hf:XLNet": hugging_face(
        "text encoder",
        "XLNetForSequenceClassification",
        "XLNetConfig",
        vocab_size=100,
        d_model=32,
        n_layer=4,
        n_head=2,
        d_inner=64,
        num_labels=3,
        pad_token_id=0,
    ),
    "hf:BERT, one score (reranker)": hugging_face(
        "reranker", "BertForSequenceClassification", "BertConfig", task="binary", **{**TEXT, "num_labels": 1}
    ),
    "hf:XLM-RoBERTa, one score (reranker)": hugging_face(
        "reranker",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaConfig",
        task="binary",
        **{**TEXT, "num_labels": 1, "pad_token_id": 1},
    ),
    "hf:GPT-2": hugging_face(
        "decoder",
        "GPT2ForSequenceClassification",
        "GPT2Config",
        vocab_size=100,
        n_embd=32,
        n_layer=4,
        n_head=2,
        n_positions=64,
        num_labels=3,
        pad_token_id=0,
    ),
    "hf:Llama": text("Llama", num_key_value_heads=2, **DECODER),
    "hf:Qwen2": text("Qwen2", num_key_value_heads=2, **DECODER),
    "hf:Qwen3": text("Qwen3", num_key_value_heads=2, head_dim=16, **DECODER),
    "hf:Mistral": text("Mistral", num_key_value_heads=2, **DECODER),
    "hf:Gemma": text("Gemma", num_key_value_heads=2, head_dim=16, **DECODER),
    "hf:Phi-3": text("Phi3", num_key_value_heads=2, **DECODER),
    "hf:OPT": text("OPT", ffn_dim=64, word_embed_proj_dim=32, **DECODER),
    "hf:GPT-NeoX": text("GPTNeoX", **DECODER),
    "hf:T5": hugging_face(
        "encoder and decoder",
        "T5ForSequenceClassification",
        "T5Config",
        lambda batch: sentences(batch, end=1),
        vocab_size=100,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=3,
        num_heads=2,
        num_labels=3,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=1,
    ),
    "hf:BART": hugging_face(
        "encoder and decoder",
        "BartForSequenceClassification",
        "BartConfig",
        lambda batch: sentences(batch, end=2),
        vocab_size=100,
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        num_labels=3,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=2,
    ),
    "hf:wav2vec 2.0": hugging_face(
        "audio", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", sound, **AUDIO
    ),
    "hf:HuBERT": hugging_face("audio", "HubertForSequenceClassification", "HubertConfig", sound, **AUDIO),
    "hf:WavLM": hugging_face("audio", "WavLMForSequenceClassification", "WavLMConfig", sound, **AUDIO),
    "hf:Audio Spectrogram Transformer": hugging_face(
        "audio",
        "ASTForAudioClassification",
        "ASTConfig",
        lambda batch: {"input_values": torch.randn(batch, 64, 32)},
        max_length=64,
        num_mel_bins=32,
        **SMALL_TRANSFORMER,
    ),
    "hf:Whisper": hugging_face(
        "audio",
        "WhisperForAudioClassification",
        "WhisperConfig",
        lambda batch: {"input_features": torch.randn(batch, 16, 64)},
        num_mel_bins=16,
        d_model=32,
        encoder_layers=4,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        max_source_positions=32,
        num_labels=3,
        classifier_proj_size=16,
    ),
    "hf:VideoMAE": hugging_face(
        "video",
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        lambda batch: {"pixel_values": torch.randn(batch, 4, 3, 32, 32)},
        image_size=32,
        num_frames=4,
        patch_size=8,
        **SMALL_TRANSFORMER,
    ),
    "hf:TimeSformer": hugging_face(
        "video",
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        lambda batch: {"pixel_values": torch.randn(batch, 4, 3, 32, 32)},
        image_size=32,
        num_frames=4,
        patch_size=8,
        **SMALL_TRANSFORMER,
    ),
    "hf:DINOv2": hugging_face(
        "images",
        "Dinov2ForImageClassification",
        "Dinov2Config",
        lambda batch: {"pixel_values": torch.randn(batch, 3, 32, 32)},
        image_size=32,
        patch_size=8,
        **SMALL_TRANSFORMER,
    ),
    "hf:BEiT": hugging_face(
        "images",
        "BeitForImageClassification",
        "BeitConfig",
        lambda batch: {"pixel_values": torch.randn(batch, 3, 32, 32)},
        image_size=32,
        patch_size=8,
        **SMALL_TRANSFORMER,
    ),
    "hf:SegFormer": hugging_face(
        "images",
        "SegformerForImageClassification",
        "SegformerConfig",
        lambda batch: {"pixel_values": torch.randn(batch, 3, 64, 64)},
        hidden_sizes=[16, 16, 32, 32],
        num_attention_heads=[1, 1, 2, 2],
        depths=[1, 1, 2, 1],
        decoder_hidden_size=32,
        num_labels=3,
    ),
    "hf:PatchTST": hugging_face(
        "time series",
        "PatchTSTForClassification",
        "PatchTSTConfig",
        lambda batch: {"past_values": torch.randn(batch, 64, 3)},
        num_input_channels=3,
        context_length=64,
        patch_length=8,
        patch_stride=8,
        d_model=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        ffn_dim=64,
        num_targets=3,
        use_cls_token=True,
    ),
    "LSTM, three layers": Family("time series", Recurrent, lambda batch: torch.randn(batch, 20, 12), True),
    "residual MLP on categories and numbers": Family("tabular", Tabular, table, True),
    "transformer over columns": Family(
        "tabular", FeatureTransformer, lambda batch: torch.randn(batch, 10), True
    ),
}


def tried(name: str) -> dict[str, Any]:
    """One family: what came out."""
    family, began = FAMILIES[name], time.perf_counter()
    torch.manual_seed(0)
    found: dict[str, Any] = {"name": name, "kind": family.kind, "positions": 0, "frontier": 0, "outcome": ""}
    try:
        model = family.make().eval()
        net = offramp.attach_exits(model, family.draw(3), **family.options)
        found["positions"] = len(net.positions) - 1
        batch = family.draw(5)
        with evaluating(model):  # without fused attention, whose last bits differ
            output = model(**batch) if isinstance(batch, dict) else model(batch)
        wanted = select_output(output, None, scalar=True)
        equal = torch.equal(offramp.Engine(net)(batch).outputs, wanted)
        found["outcome"] = "equal, bit for bit" if equal else "differs"
        lengths = net.partition.spec.lengths
        if lengths is not None:
            found["outcome"] += ", texts of any length" if lengths.vary else ", texts filled up to one length"
        if family.all_the_way:
            found["frontier"] = all_the_way(net, family)
    except OfframpError as error:
        found["outcome"] = f"refused: {' '.join(str(error).split())[:160]}"
    found["seconds"] = time.perf_counter() - began
    return found


def all_the_way(net: offramp.ExitNetwork, family: Family) -> int:
    """Configurations that a search finds, of heads trained for an epoch."""
    loaders = [[family.draw(32) for _ in range(3)] for _ in range(2)]
    offramp.train_exits(net, loaders[0], config=offramp.TrainConfig(epochs=2), progress=False)
    records = offramp.record_outputs(net, loaders[1], quality="agreement", progress=False)
    return len(offramp.search(records, offramp.measure_cost(net)))


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    outcome = re.sub(r"[|<>]", " ", found["outcome"])
    plural = "" if found["frontier"] == 1 else "s"
    searched = f"trained, {found['frontier']} configuration{plural}" if found["frontier"] else ""
    return f"| {found['kind']} | `{found['name']}` | {found['positions'] or ''} | {searched} | {outcome} |"


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="families whose name holds this")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    found = {each["name"]: each for each in results.read(RESULTS)} if only else {}
    for name in FAMILIES:
        if only in name:
            found[name] = tried(name)
            print(row(found[name]), f"{found[name]['seconds']:.1f} s", flush=True)
    write([found[name] for name in FAMILIES if name in found])


def write(found: list[dict[str, Any]]) -> None:
    """Everything into the JSON file, the table into the page."""
    results.write(RESULTS, found)
    rows = [HEADER, *map(row, sorted(found, key=lambda each: each["kind"]))]
    page = PAGE.read_text()
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(before + "\n".join([START, *rows, END]) + after)
