"""What scripts/quality makes of its rows: the comparison with the baselines at equal bytes, the gates,
the table for people and the page for docs/. Pure: values in, values and text out.

A row is a dict: policy, params, format, kept_ratio, bytes_ratio, kept_bytes, ppl, ppl_full, ppl_delta, ppl_error,
agreement, kl, recall, recall_full, recovery (None when nothing was compacted), us_per_token.

SPDX-License-Identifier: Apache-2.0
"""

import collections
import math
import statistics

BASELINES = ("random", "streaming")
SEEDS = ("scissorhands", "corm", "fastgen")

# A gate reads: one of `rows` fulfils `check`; without rows it was not run.
Gate = collections.namedtuple("Gate", "name rows check")
Verdict = collections.namedtuple("Verdict", "gate verdict text")


def at_equal_bytes(rows, baseline, ratio):
    """The baseline's ppl_delta at this share of the full cache's bytes, between its two nearest native rows
    (of several of equal bytes, their mean): in proportion where both lose something, else on a straight
    line; a full cache loses nothing. None where the baseline was not measured so low."""
    measured = collections.defaultdict(list)
    for row in rows:
        if row["policy"] == baseline and row["format"] == "native":
            measured[row["bytes_ratio"]].append(row["ppl_delta"])
    if not measured:
        return None
    if ratio >= 1:
        return 0.0
    curve = [(share, statistics.fmean(measured[share])) for share in sorted(measured) if share < 1] + [(1.0, 0.0)]
    for (low, delta_low), (high, delta_high) in zip(curve, curve[1:]):
        if low <= ratio <= high:
            part = (ratio - low) / (high - low)
            if delta_low > 0 and delta_high > 0:
                return delta_low * math.pow(delta_high / delta_low, part)
            return delta_low + (delta_high - delta_low) * part
    return None


def compare(rows):
    """Adds to each row what the baselines make of as many bytes: random_delta and streaming_delta."""
    for row in rows:
        for baseline in BASELINES:
            row[f"{baseline}_delta"] = at_equal_bytes(rows, baseline, row["bytes_ratio"])
    return rows


def keeps_at_most(policy, share, data_format="native"):
    return lambda row: (row["policy"] == policy and row["format"] == data_format
                        and row["kept_ratio"] <= share)


def with_recovery(share):
    return lambda row: row["policy"] == "fastgen" and row["params"].get("recovery") == share


def only_format(data_format):
    return lambda row: row["format"] == data_format and row["kept_ratio"] > 0.999


def delta(most):
    return lambda row: row["ppl_delta"] <= most


def both(*checks):
    return lambda row: all(check(row) for check in checks)


# A share that a policy is to keep is met when it keeps 1 % more: budgets come in whole tokens.
GATES = [
    Gate("scissorhands, 2x: perplexity at most +1 %", keeps_at_most("scissorhands", 0.51), delta(0.01)),
    Gate("scissorhands, 3x: perplexity at most +5 %", keeps_at_most("scissorhands", 0.343), delta(0.05)),
    Gate("scissorhands, 2x and int4: perplexity at most +2 %",
         keeps_at_most("scissorhands", 0.51, "int4"), delta(0.02)),
    Gate("corm, at least 60 % removed: perplexity at most +2 %", keeps_at_most("corm", 0.4), delta(0.02)),
    Gate("corm, at least 60 % removed: at least 95 % of the facts that full recalls",
         keeps_at_most("corm", 0.4), lambda row: row["recall"] >= 0.95 * row["recall_full"]),
    Gate("fastgen, T=.98: perplexity at most +0.5 %, at least 15 % pruned", with_recovery(0.98),
         both(delta(0.005), lambda row: row["kept_ratio"] <= 0.85)),
    Gate("fastgen, T=.95: perplexity at most +2 %, at least 35 % pruned", with_recovery(0.95),
         both(delta(0.02), lambda row: row["kept_ratio"] <= 0.65)),
    Gate("fp8: perplexity at most +0.1 %", only_format("fp8"), delta(0.001)),
    Gate("int4: perplexity at most +0.5 %, agreement at least 98 %", only_format("int4"),
         both(delta(0.005), lambda row: row["agreement"] >= 0.98)),
]


def gate_verdict(gate, rows):
    found = [row for row in rows if gate.rows(row)]
    if not found:
        return Verdict(gate.name, "not run", "no such row")
    good = [row for row in found if gate.check(row)]
    row = min(good or found, key=lambda row: row["ppl_delta"])
    text = (f"{label(row)}: {row['kept_ratio']:.1%} kept, perplexity {row['ppl_delta']:+.2%}, "
            f"agreement {row['agreement']:.1%}, recall {row['recall']:.0%} of {row['recall_full']:.0%}")
    return Verdict(gate.name, "pass" if good else "MISS", text)


def baseline_verdict(policy, baseline, rows):
    """Whether a seed method is better than a baseline at equal bytes, wherever it removes something."""
    name = f"{policy}: better than {baseline} at equal bytes"
    found = [row for row in rows if row["policy"] == policy and row["format"] == "native"
             and row["bytes_ratio"] < 0.99 and row[f"{baseline}_delta"] is not None]
    if not found:
        return Verdict(name, "not run", "no such rows")
    worse = [row for row in found if row["ppl_delta"] >= row[f"{baseline}_delta"]]
    text = f"{len(found) - len(worse)} of {len(found)} rows"
    if worse:
        row = max(worse, key=lambda row: row["ppl_delta"] - row[f"{baseline}_delta"])
        text += (f"; at {row['bytes_ratio']:.0%} of the bytes {row['ppl_delta']:+.2%} against "
                 f"{row[f'{baseline}_delta']:+.2%}")
    return Verdict(name, "MISS" if worse else "pass", text)


def verdicts(rows):
    return ([gate_verdict(gate, rows) for gate in GATES]
            + [baseline_verdict(policy, baseline, rows) for policy in SEEDS for baseline in BASELINES])


def label(row):
    """'scissorhands budget=736 int4'."""
    words = [f"{name}={value}" for name, value in row["params"].items() if name != "format"]
    return " ".join([row["policy"], *words] + ([row["format"]] if row["format"] != "native" else []))


HEADINGS = ("policy", "keys", "bytes", "perplexity", "+-", "random", "streaming", "agreement", "KL", "recall",
            "recovery", "us/token")


def cells(row):
    def signed(value):
        return "-" if value is None else f"{value:+.2%}"

    return (label(row), f"{row['kept_ratio']:.1%}", f"{row['bytes_ratio']:.1%}", signed(row["ppl_delta"]),
            f"{row['ppl_error']:.2%}", signed(row["random_delta"]), signed(row["streaming_delta"]),
            f"{row['agreement']:.1%}", f"{row['kl']:.4f}", f"{row['recall']:.0%}",
            "-" if row["recovery"] is None else f"{row['recovery']:.3f}", f"{row['us_per_token']:.0f}")


def table(rows):
    """For a terminal: columns side by side."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width)
                               in enumerate(zip(line, widths))) for line in lines)


def markdown_table(headings, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *lines])


def gates_text(found):
    width = max(len(verdict.gate) for verdict in found)
    return "\n".join(f"{v.verdict:<8}{v.gate:<{width}}  {v.text}" for v in found)


PAGE = """# Quality

What every policy does to a model's predictions, measured through a real manager, agent and worker. Written by

```sh
scripts/quality --json quality.json --svg docs/images/quality.svg --markdown docs/quality.md
```

{when}: {what}. Do not edit by hand.

The model is small: it degrades more under compression than models of billions of parameters do. Compare policies on it; do
not quote it as theirs.

## What is measured

A window is a prompt of {prompt} tokens, text that is scored token by token, and questions, {context} tokens in all; it is fed in
chunks of 16 tokens, through the tenant's cache in the pool and through a full cache of the worker's own (bf16). A policy acts at
the safe points between chunks, as in decoding. All figures are over {positions} tokens of {windows} windows.

| column | what |
|---|---|
| keys, bytes | kept, in the mean over the steps with scored tokens, as a share of a full cache's: rows over all heads; pages that the agent counts as used |
| perplexity | relative to the full cache's {ppl_full:.2f}; `+-` is its standard error over windows |
| random, streaming | what that policy makes of as many bytes, between its two nearest rows |
| agreement | positions at which both caches have the same likeliest next token |
| KL | KL(full, policy) of the next token's distribution, nats, mean |
| recall | facts told in the prompt's second half ("The secret THING of NAME is DDDDD.") and asked at the end, right in all digits with the right ones before; the full cache recalls {recall_full:.0%} of {asked} |
| recovery | share of attention mass on the keys that stayed, mean of the agent's compactions |
| us/token | of the run, on this machine: safe points, compactions and the model's pass, all windows together |

![Perplexity and recall against memory](images/quality.svg)

## Figures

{rows}

## Gates

What each method has to reach here, and how it stands. One row of those that a gate is about has to fulfil
it; the one that loses least is shown. A method is better than a baseline when each of its rows is.

{gates}
"""


def page(rows, found, shape, when, what):
    """docs/quality.md."""
    first = rows[0]
    gates = [("gate", "verdict", "measured"), *((v.gate, v.verdict, v.text) for v in found)]
    return PAGE.format(when=when, what=what, rows=markdown_table(HEADINGS, map(cells, rows)),
                       gates=markdown_table(gates[0], gates[1:]), **shape,
                       **{key: first[key] for key in ("positions", "ppl_full", "recall_full", "asked")})
