"""A baseline of your own, a function from records and costs to a frontier: equal shares leave at any exit."""

import numpy as np

import offramp
from offramp.baselines import same_threshold


def equal_shares(records, costs):
    configs, full = [], float(records.final_quality.mean())
    for levels in np.quantile(records.confidence[1:, 0], np.linspace(0, 1, 41), axis=1):
        choices = tuple(map(offramp.ExitChoice, records.positions[1:], ["head"] * 5, levels))
        out = offramp.evaluate(records, costs, offramp.ExitConfig(choices))
        figures = offramp.Expected(out.quality, out.cost, full, costs.full, records.samples)
        configs.append(offramp.ExitConfig(choices, expected=figures))
    return offramp.Frontier.of(configs)


draw, names = np.random.default_rng(0), ("input", *"abcde")
margin = draw.normal(0.3 * np.arange(7)[:, None, None], 0.5, (7, 1, 3000)) + draw.normal(size=3000)
right, exists = margin > 0, np.arange(6)[:, None] > 0
records = offramp.ExitRecords(abs(margin[:6]) + right[:6], right[:6], right[6, 0], exists, names, ("head",))
costs = offramp.CostTable(np.arange(7), 0.1 * exists, "macs")
mine, same = equal_shares(records, costs), same_threshold(records, costs, [0.9]).values()
found = {"equal shares": mine, "same threshold": same, "search": offramp.search(records, costs)}
for name, configs in found.items():  # the lowest J, at the trade-off 0.9
    j = min(0.9 * e.drop / e.full_quality + 0.1 * e.relative_cost for e in (c.expected for c in configs))
    print(f"{name:14} J {j:.4f}")
