"""Token classification: what is each character of a line of Python: name, string, comment, number, ...?

    python examples/tasks/token_classification.py

The text is Python's own standard library, the labels are those of its module ``tokenize``: real data that is
on every machine. Lines are padded to one length and come with a mask; what is behind a line's end never
counts. Lines inside longer strings are left out: alone, they cannot be told from code. Files searched or
reported on are not those trained on. Needs nothing but offramp.
"""

import io
import keyword
import random
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import offramp
from offramp.tasks.classification import IGNORED

CLASSES = ("space", "name", "keyword", "operator", "number", "string", "comment")
LENGTH = 64  # characters of a line that are looked at
OTHER = 127  # stands for every character that is not ASCII


@dataclass(frozen=True)
class Result:
    """What the example ends with, to look at or to go on from."""

    net: offramp.ExitNetwork
    frontier: offramp.Frontier
    records: offramp.ExitRecords
    costs: offramp.CostTable
    inputs: dict[str, Tensor]
    labels: Tensor


def classes_of(source: str) -> list[list[int] | None]:
    """The class of every character, line by line; None for lines inside a longer string."""
    found: list[list[int] | None] = [[0] * len(line) for line in source.splitlines()]
    kinds = {
        tokenize.NAME: "name",
        tokenize.OP: "operator",
        tokenize.NUMBER: "number",
        tokenize.STRING: "string",
        tokenize.COMMENT: "comment",
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kinds.get(token.type)
        if token.type == tokenize.NAME and keyword.iskeyword(token.string):
            kind = "keyword"
        if kind is None and tokenize.tok_name[token.type].startswith("FSTRING"):  # since Python 3.12
            kind = "string"
        if kind is None:
            continue
        (row, start), (last, stop) = token.start, token.end
        if last > row:
            found[row - 1 : last] = [None] * (last - row + 1)
        elif (line := found[row - 1]) is not None:
            line[start:stop] = [CLASSES.index(kind)] * (stop - start)
    return found


def lines_of(files: list[Path]) -> list[tuple[str, list[int]]]:
    """(line, class of each character) of every line that is not empty."""
    found = []
    for file in files:
        source = file.read_text(encoding="utf-8").replace("\f", " ")
        for line, classes in zip(source.splitlines(), classes_of(source), strict=True):
            if line.strip() and classes is not None:
                found.append((line[:LENGTH], classes[:LENGTH]))
    return found


class Lines(Dataset):
    """Lines of source: {"characters" (L,), "attention_mask" (L,), "labels" (L,)}, padded to one length."""

    def __init__(self, files: list[Path], count: int) -> None:
        lines = lines_of(files)
        random.Random(0).shuffle(lines)
        shape = (min(count, len(lines)), LENGTH)
        self.columns = {
            "characters": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for row, (line, classes) in enumerate(lines[: shape[0]]):
            codes = [min(ord(character), OTHER) for character in line]
            for name, values in (("characters", codes), ("attention_mask", 1), ("labels", classes)):
                self.columns[name][row, : len(line)] = torch.as_tensor(values)

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}

    def inputs(self) -> dict[str, Tensor]:
        """All of them, as the model takes them."""
        return {name: self.columns[name] for name in ("characters", "attention_mask")}


def splits(train: int, held_out: int) -> dict[str, Lines]:
    """Lines for each use, from disjoint files of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    return {
        "train": Lines(files[:60], train),
        "search": Lines(files[60:90], held_out),
        "report": Lines(files[90:120], held_out),
    }


class Block(nn.Module):
    """Each character looks at three others on either side, ``step`` apart; padding is not seen."""

    def __init__(self, width: int, step: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.around = nn.Conv1d(width, width, 7, padding=3 * step, dilation=step, groups=width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, L, C), (B, L, 1) to (B, L, C)."""
        y = self.around((self.norm(x) * real).transpose(1, 2)).transpose(1, 2)
        return x + self.narrow(nn.functional.gelu(self.wide(y)))


class Tagger(nn.Module):
    """Ten such blocks, and a score for each class and character."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(OTHER + 1, width)
        self.blocks = nn.ModuleList(Block(width, step) for step in (1, 2, 4, 1, 2, 4, 1, 2, 4, 1))
        self.scores = nn.Linear(width, len(CLASSES))

    def forward(self, characters: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) twice to (B, L, 7)."""
        x, real = self.embed(characters), attention_mask.unsqueeze(2).to(torch.float32)
        for block in self.blocks:
            x = block(x, real)
        return self.scores(x)


def trained(data: Lines, epochs: int) -> nn.Module:
    """A backbone: what you would bring."""
    torch.manual_seed(0)
    model, batches = Tagger(), DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for batch in batches:
            labels = batch.pop("labels").flatten()
            optimiser.zero_grad()
            scores = model(**batch).flatten(0, 1)
            nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def run(train: int = 3000, held_out: int = 2000, epochs: int = 4, head_epochs: int = 6) -> Result:
    """Train a backbone, put exits on it, search, and print what the report lines say."""
    data = splits(train, held_out)
    model = trained(data["train"], epochs)
    loaders = {name: DataLoader(part, batch_size=256) for name, part in data.items()}

    few = {name: column[:2] for name, column in data["train"].inputs().items()}
    net = offramp.attach_exits(model, few, task="token-classification", mask="attention_mask")
    offramp.train_exits(net, loaders["train"], config=offramp.TrainConfig(epochs=head_epochs))
    costs = offramp.measure_cost(net)
    frontier = offramp.search(offramp.record_outputs(net, loaders["search"]), costs)
    records = offramp.record_outputs(net, loaders["report"])

    full = offramp.evaluate(records, costs, offramp.ExitConfig())
    print(f"full model: {full.quality:.2%} of the characters right, {full.cost / 1e6:.2f} M MACs")
    for drop in (0.0, 0.002, 0.005, 0.01, 0.02):
        outcome = offramp.evaluate(records, costs, frontier.at(max_drop=drop))
        print(
            f"at most {drop:.1%} less expected: {outcome.quality - full.quality:+.2%} at "
            f"{outcome.relative_cost:.0%} of the MACs"
        )
    report = data["report"]
    return Result(net, frontier, records, costs, report.inputs(), report.columns["labels"])


if __name__ == "__main__":
    run()
