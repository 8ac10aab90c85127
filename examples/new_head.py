"""A head of your own: a module from the feature at a position to the model's outputs, registered by a name.

``profile`` reads the mean of each row, the built-in ``linear`` that of each channel. Both are trained after
two layers of a small network for scikit-learn's digits; printed are accuracies on digits held out.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import offramp


@offramp.register_head("profile")
def profile(feature, outputs):
    rows, channels = feature.extent[0], feature.channels
    return nn.Sequential(nn.AdaptiveAvgPool2d((rows, 1)), nn.Flatten(), nn.Linear(channels * rows, outputs))


torch.manual_seed(0)
x, y = (torch.tensor(part).split(200) for part in load_digits(return_X_y=True))
*train, test = zip((part.float().view(-1, 1, 8, 8) / 16 for part in x), y, strict=True)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 10))
net = offramp.attach_exits(model, test[0][:2], heads=("linear", "profile"), cuts=["1", "2"])
config = offramp.TrainConfig(backbone="finetune", backbone_epochs=10, backbone_rate=5e-3)
offramp.train_exits(net, train, config=config)
for (p, c), outputs in net.forward_all(test[0])[0].items():
    right = (outputs.argmax(1) == test[1]).float().mean()
    print(f"after {net.positions[p]}: {net.head_names[c]:7} {right:.1%}")
