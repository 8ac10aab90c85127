"""A confidence of your own: a function from an exit's outputs (B, K) to (B,), registered by a name.

``gap`` is the largest output minus the second largest, without the softmax. Printed for it and two others:
how often an exit is right on that half of the held-out digits where its confidence is highest.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import offramp


@offramp.register_confidence("gap")
def gap(outputs):
    return -outputs.float().topk(2).values.diff().squeeze(1)


x, y = (torch.tensor(part).split(300) for part in load_digits(return_X_y=True))
*train, test = zip((part.float().view(-1, 1, 8, 8) / 16 for part in x), y, strict=True)
config = offramp.TrainConfig(backbone="finetune", backbone_epochs=10, backbone_rate=5e-3)
for name in ("gap", "max-probability", "entropy"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    net = offramp.attach_exits(model, test[0][:2], heads=("mlp",), cuts=["1"], confidence=name)
    offramp.train_exits(net, train, config=config)
    records = offramp.record_outputs(net, [test])
    right = records.quality[1, 0, records.confidence[1, 0].argsort()]
    print(f"{name:15} all {right.mean():.1%}, highest half {right[len(right) // 2 :].mean():.1%}")
