"""What serves here from ``bench/fashion_mnist``: data, splits, residual networks, training batches."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fashion_mnist"))

from fashion import DEFAULT_FOLDER as DEFAULT_FOLDER
from fashion import Fashion as Fashion
from fashion import Labelled as Labelled
from fashion import load_fashion as load_fashion
from resnet import Block as Block
from resnet import ResNet as ResNet
from resnet import load_backbone as load_backbone
from train_backbones import BATCH as BATCH
from train_backbones import accuracy as accuracy
from train_backbones import mini_batches as mini_batches
