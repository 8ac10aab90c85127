"""What serves here from ``bench/fashion_mnist``: data, splits, residual networks, training batches."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fashion_mnist"))

from fashion import (
    DEFAULT_FOLDER as DEFAULT_FOLDER,
    Fashion as Fashion,
    Labelled as Labelled,
    load_fashion as load_fashion,
)
from resnet import Block as Block, ResNet as ResNet, load_backbone as load_backbone
from train_backbones import BATCH as BATCH, accuracy as accuracy, mini_batches as mini_batches
