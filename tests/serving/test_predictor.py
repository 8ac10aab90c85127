"""A predictor: what it takes, what it answers, and which model and preprocessing it takes them with."""

import json
import sys

import numpy as np
import pytest
import torch

import offramp
from offramp.errors import ArtifactError, InputError
from offramp.pipeline import BuildConfig, build
from offramp.serving.prediction import label_of
from offramp.sources import DataSummary, load_project
from offramp.training import TrainConfig

Image = pytest.importorskip("PIL.Image")

OWN = """
import numpy as np
import torch
from torch import nn

class Shade(nn.Module):
    '''Class 0 is bright, class 1 is dark.'''

    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()) for _ in range(3)]
        self.blocks = nn.Sequential(*blocks)
        for block in self.blocks:
            block[0].weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, x):
        mean = self.blocks(x).mean((1, 2, 3))
        return 20 * torch.stack([mean - 0.5, 0.5 - mean], 1)

def model():
    return Shade().eval()

def transform(picture):
    return torch.from_numpy(np.array(picture.resize((8, 8)))).permute(2, 0, 1).float() / 255
"""
WHITE, BLACK = Image.new("RGB", (20, 10), "white"), Image.new("L", (8, 8), 10)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a module of one's own, pictures, and an artifact built from them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "shades.py").write_text(OWN)
    for name, value in (("Bright", 52000), ("Dark", 9000)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.fromarray(np.full((9, 9), value + 30 * i, np.uint16))
            picture.save(folder / "photos" / name / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        project = load_project("shades:model", "imagefolder:photos,transform=shades:transform")
        built = build(
            project.model,
            project.splits,
            BuildConfig(heads=("linear",), train=TrainConfig(epochs=1), task=project.task),
        )
        offramp.save(folder / "art", built.net, built.frontier, built.costs, summary=built.summary)
        offramp.save(folder / "bare", built.net, built.frontier, built.costs)
    return folder


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    return place


@pytest.fixture
def predictor(inside):
    return offramp.load_predictor("art")


def test_one_sample_of_any_kind(predictor):
    for sample, label in (
        (WHITE, "Bright"),
        ("photos/Dark/3.png", "Dark"),
        (np.full((30, 40, 3), 250, np.uint8), "Bright"),
        (np.full((30, 40), 20, np.uint8), "Dark"),
        (np.full((30, 40, 4), 250, np.uint8), "Bright"),
        (np.full((30, 40), 60000, np.uint16), "Bright"),
        (torch.full((3, 30, 40), 20, dtype=torch.uint8), "Dark"),
        (torch.full((3, 8, 8), 0.9), "Bright"),
        (np.full((3, 8, 8), 0.1), "Dark"),
        (np.full((3, 8, 8), 0.1, ">f4"), "Dark"),
    ):
        found = predictor(sample)
        assert isinstance(found, offramp.Prediction)
        assert found.label == label
        assert 0.5 < found.probability <= 1
        assert found.position == "output"
        assert found.outputs.shape == (2,)
    assert str(predictor(WHITE)).startswith("Bright 100.0%, from output")


def test_many_samples_come_back_in_their_order(predictor, place):
    mixed = [WHITE, place / "photos" / "Dark" / "1.png", np.full((8, 8, 3), 255, np.uint8), BLACK] * 20
    assert [each.label for each in predictor(mixed)] == ["Bright", "Dark", "Bright", "Dark"] * 20
    batch = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.9)])
    for given in (batch, batch.numpy(), list(batch), tuple(batch), iter(batch), (each for each in batch)):
        assert [each.label for each in predictor(given)] == ["Dark", "Bright"]
    pixels = np.stack([np.full((9, 9, 3), 10, np.uint8), np.full((9, 9, 3), 200, np.uint8)])
    assert [each.label for each in predictor(pixels)] == ["Dark", "Bright"]
    assert predictor([]) == []
    assert len(predictor([WHITE])) == 1


def test_it_answers_as_the_engine_does(predictor):
    values = torch.rand(70, 3, 8, 8)
    answer = predictor.engine(values)
    found = predictor(values)
    np.testing.assert_array_equal(np.stack([each.outputs for each in found]), answer.outputs.numpy())
    assert [each.confidence for each in found] == answer.confidence.tolist()


def test_a_configuration_is_chosen_and_switched(inside):
    predictor = offramp.load_predictor("art", max_cost=1, batch_size=5)
    assert predictor.engine.config == predictor.frontier.at(max_cost=1)
    predictor.use(min_quality=0)
    assert predictor.engine.config == predictor.frontier.at(min_quality=0)
    predictor.use(predictor.frontier.full_model)
    assert "2 named classes" in repr(predictor)
    with pytest.raises(InputError, match="use: expected a configuration, or one of max_cost"):
        predictor.use()
    with pytest.raises(InputError, match="batch_size: expected a whole number above 0, got 0"):
        offramp.load_predictor("art", batch_size=0)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("nothing.png", "nothing.png cannot be read as an image"),
        (7, "expected a PIL image, a path, .*; or a list of such; got a int"),
        ([3.5], "expected a PIL image, a path, .*; got a float"),
        (np.zeros((8, 8, 3), np.float32), r"expected arrays of shape \(3, 8, 8\).*x.transpose\(2, 0, 1\)"),
        (np.zeros(5), r"expected arrays of shape \(3, 8, 8\), or uint8 images; got"),
        (("a", "b"), "expected a PIL image, a path"),
        ({"x": torch.zeros(2), "y": torch.zeros(3)}, r"expected one number of samples, got \[2, 3\]"),
        ([WHITE, np.full((3, 9, 9), 0.5, np.float32)], r"expected arrays of shape \(3, 8, 8\)"),
    ],
)
def test_samples_it_does_not_take(predictor, sample, message):
    with pytest.raises(InputError, match=message):
        predictor(sample)


def test_the_model_can_be_given(inside):
    import shades

    for model in (shades.model(), "shades:model"):
        assert offramp.load_predictor("art", model)(WHITE).label == "Bright"
    with pytest.raises(InputError, match=r"model: expected a torch.nn.Module or a MODEL as text, got a int"):
        offramp.load_predictor("art", 3)
    with pytest.raises(
        InputError, match=r"bare does not say which model it was built for; give it: load_pred"
    ):
        offramp.load_predictor("bare")
    bare = offramp.load_predictor("bare", shades.model())
    assert bare(torch.full((3, 8, 8), 0.9)).label == 0
    with pytest.raises(InputError, match=r"got a Image, and nobody knows how .* shape \(3, 8, 8\), name the"):
        bare(WHITE)
    given = offramp.load_predictor("bare", shades.model(), transform=shades.transform)
    assert given(BLACK).label == 1


def test_nothing_is_run_because_a_file_names_it(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"built for shades:model, which is not in this folder, and nothing is"
    ):
        offramp.load_predictor(inside / "art")
    with pytest.raises(InputError, match=r"transform=shades:transform, which is not in this folder; name it"):
        offramp.load_predictor(inside / "art", "shades:model")


def test_another_preprocessing_is_refused(inside, tmp_path):
    names = ["timm:test_resnet,pretrained=false,classes=2,size=32", "imagefolder:photos"]
    pytest.importorskip("timm")
    project = load_project(*names)
    config = BuildConfig(
        heads=("linear",), cuts=("layer1.0",), train=TrainConfig(epochs=1), task=project.task
    )
    built = build(project.model, project.splits, config)
    offramp.save(tmp_path / "art", built.net, built.frontier, built.costs, summary=built.summary)
    assert offramp.load_predictor(tmp_path / "art")(WHITE).label in ("Bright", "Dark")
    with pytest.raises(InputError, match=r"built with mean \S+, this has mean 0.4/0.4/0.4; its"):
        offramp.load_predictor(tmp_path / "art", names[0] + ",mean=0.4")


def test_what_is_said_of_the_data_is_checked(inside, tmp_path):
    from offramp.artifacts.manifest import ARTIFACT, load_summary, read_manifest

    manifest = json.loads((inside / "art" / "manifest.json").read_text())
    assert load_summary(inside / "art", manifest) == DataSummary.from_dict(manifest["data"])
    for wrong in (3, {}, manifest["data"] | {"classes": {"a": -1}}, manifest["data"] | {"notes": [1]}):
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        for file in (inside / "art").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        described = {key: manifest[key] for key in ("backbone", "network", "inputs")}
        ARTIFACT.write(copy, {**described, "data": wrong})
        with pytest.raises(ArtifactError, match="what it says of its data"):
            load_summary(copy, read_manifest(copy))


@pytest.mark.parametrize(
    ("task", "outputs", "label", "probability"),
    [
        ("classification", [0.0, np.log(3)], "b", 0.75),
        ("classification", [0.2, 0.8], "b", 0.8),  # probabilities already
        ("classification", [900.0, -900.0, 0.0], "a", 1.0),
        ("multi-label", [np.log(3), -np.log(3), 0.1], ("a", 2), 0.75 * 0.75 / (1 + np.exp(-0.1))),
        ("binary", [np.log(3)], "b", 0.75),
        ("binary", [-np.log(3)], "a", 0.75),
        ("regression", [3.5], 3.5, None),
        ("regression", [3.5, 1.0], [3.5, 1.0], None),
    ],
)
def test_labels_of_all_tasks(task, outputs, label, probability):
    found = label_of(task, np.array(outputs), {0: "a", 1: "b"})
    assert found[0] == label
    assert found[1] == pytest.approx(probability)


@pytest.mark.parametrize(
    ("task", "outputs", "activation", "label", "probability"),
    [
        ("classification", [0.25, 0.75], "softmax", "b", 0.75),
        ("classification", np.log([0.25, 0.75]), "log_softmax", "b", 0.75),
        ("classification", [0.9, 0.6], "sigmoid", "a", 0.9),
        ("multi-label", [0.75, 0.25], "sigmoid", ("a",), 0.75 * 0.75),
        ("binary", [0.4], "sigmoid", "a", 0.6),
    ],
)
def test_labels_of_models_that_answer_probabilities(task, outputs, activation, label, probability):
    found = label_of(task, np.array(outputs), {0: "a", 1: "b"}, activation)
    assert found[0] == label
    assert found[1] == pytest.approx(probability)
