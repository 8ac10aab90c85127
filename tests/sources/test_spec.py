"""The grammar of what names a model or data, and libraries that are not there."""

import sys

import pytest

from offramp.errors import InputError, MissingExtraError
from offramp.sources.spec import Scheme, near, numbers_in, parse_spec, require, split_options, unreachable

SCHEMES = (Scheme("timm", "NAME", ("pretrained", "size", "mean")), Scheme("csv", "FILE", ("text", "label")))


def parsed(text):
    return parse_spec("MODEL", text, SCHEMES)


def test_a_scheme_an_argument_and_options():
    spec = parsed("timm:resnet50.a1_in1k,pretrained=false,size=64")
    assert (spec.scheme, spec.name) == ("timm", "resnet50.a1_in1k")
    assert spec.options == {"pretrained": "false", "size": "64"}
    assert spec.flag("pretrained", True) is False
    assert spec.flag("other", True) is True
    assert spec.integer("size", None) == 64
    assert [spec.integer("other", default) for default in (None, 3)] == [None, 3]


def test_commas_that_no_option_follows_belong_to_the_value():
    spec = parsed("csv:mails, new,old.csv,text=subject, body,label=kind=of")
    assert spec.name == "mails, new,old.csv"
    assert spec.options == {"text": "subject, body", "label": "kind=of"}
    assert split_options("regression,scale=2") == ("regression", {"scale": "2"})


def test_a_colon_may_be_part_of_the_argument():
    assert parsed("timm:local-dir:/models/one").name == "local-dir:/models/one"


def test_a_callable():
    spec = parsed("package.module:callable")
    assert (spec.scheme, spec.name, dict(spec.options)) == ("", "package.module:callable", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet50", r"MODEL: expected timm:NAME, csv:FILE or package.module:callable, got 'resnet50'$"),
        ("timmm:resnet50.a1", r"got 'timmm:resnet50.a1' \(did you mean timm:resnet50.a1\?\)"),
        ("timm:", r"MODEL timm:: expected timm:NAME, got nothing after the colon"),
        (
            "timm:a,pretraned=false",
            r"no option 'pretraned' \(did you mean 'pretrained'\?\); timm: knows pretrained, size, mean",
        ),
        ("", r"got ''"),
        ("a b:c", r"expected timm:NAME"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message):
        parsed(text)


@pytest.mark.parametrize(
    ("text", "ask", "message"),
    [
        (
            "timm:a,pretrained=no",
            lambda s: s.flag("pretrained", True),
            "pretrained: expected true or false, got 'no'",
        ),
        (
            "timm:a,size=0",
            lambda s: s.integer("size", None),
            "size: expected a whole number of at least 1, got '0'",
        ),
        ("timm:a,size=6.5", lambda s: s.integer("size", None), "size: expected a whole number"),
        ("timm:a,size=²", lambda s: s.integer("size", None), "size: expected a whole number"),
        (
            "timm:a,mean=1/x",
            lambda s: s.numbers("mean"),
            "mean: expected a number, or several with '/' between, got",
        ),
    ],
)
def test_options_of_another_kind(text, ask, message):
    with pytest.raises(InputError, match=f"MODEL {text}: {message}"):
        ask(parsed(text))


def test_numbers():
    assert numbers_in("here", "0.5") == (0.5,)
    assert numbers_in("here", "1/2/3e-1") == (1, 2, 0.3)
    for wrong in ("nan", "1//2"):
        with pytest.raises(InputError, match=rf"here: expected a number, or several with '/'.*{wrong!r}"):
            numbers_in("here", wrong)


def test_near():
    assert near("resnt50", ["resnet50", "vit"]) == " (did you mean 'resnet50'?)"
    assert near("zzz", ["resnet50"]) == ""


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        MissingExtraError, match=r"MODEL x needs timm, which cannot .*pip install \"offramp\[timm\]\""
    ):
        require("timm", "timm", "MODEL x")


def test_a_torchvision_that_does_not_fit_torch(monkeypatch, tmp_path):
    (tmp_path / "misfit.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('something else')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingExtraError, match=r"does not fit the torch beside it .*nms.*--upgrade torch torchvision"
    ):
        require("misfit", "timm", "MODEL x")
    with pytest.raises(RuntimeError, match="something else"):
        require("broken", "timm", "MODEL x")


def test_errors_of_a_hub_that_cannot_be_asked():
    offline = type("LocalEntryNotFoundError", (OSError,), {})
    wrapped = RuntimeError("cannot load")
    wrapped.__cause__ = offline("no")
    assert unreachable(wrapped)
    assert unreachable(OSError("We couldn't connect to 'https://huggingface.co'"))
    assert unreachable(ConnectionRefusedError())
    assert not unreachable(ValueError("other"))
