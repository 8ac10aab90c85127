"""torchvision can be imported, here and in a process that a test starts; nobody pays who does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

QUIET = "import sys; assert 'torch' not in sys.modules, 'the shim imports torch'"
MODELS = "import torchvision.models as m; m.resnet18; import torch; print(torch.ops.torchvision.nms)"


def test_torchvision_is_importable() -> None:
    models = pytest.importorskip("torchvision.models")
    assert models.resnet18


@pytest.mark.parametrize("code", [QUIET, MODELS], ids=["quiet", "models"])
def test_a_process_of_its_own(code: str) -> None:
    pytest.importorskip("torchvision")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
