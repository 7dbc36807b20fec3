"""What scripts/quality makes of its rows: the comparison with the baselines at equal bytes, the gates,
the table for people and the page for docs/. Pure: values in, values and text out.

A row is a dict: policy, params, format, kept_ratio, bytes_ratio, peak_ratio, kept_bytes, ppl, ppl_full, ppl_delta,
ppl_error, agreement, kl, recall, recall_full, recovery (None when nothing was compacted), us_per_token. The first
row also has persistence: a list of {persistence, important}, one for each cached layer of the full cache.

SPDX-License-Identifier: Apache-2.0
"""

import collections
import math
import statistics

BASELINES = ("random", "streaming")
SEEDS = ("scissorhands", "corm", "fastgen")
MEASURES = {"kl": "KL", "ppl_delta": "perplexity"}  # by which a row is better than a baseline

# A gate reads: one of `rows` fulfils `check`; without rows it was not run.
Gate = collections.namedtuple("Gate", "name rows check")
Verdict = collections.namedtuple("Verdict", "gate verdict text")


def at_equal_bytes(rows, baseline, ratio, measure="ppl_delta"):
    """The baseline's measure at this share of the full cache's bytes, between its two nearest native rows
    (of several of equal bytes, their mean): in proportion where both lose something, else on a straight
    line; a full cache loses nothing. None where the baseline was not measured so low."""
    measured = collections.defaultdict(list)
    for row in rows:
        if row["policy"] == baseline and row["format"] == "native":
            measured[row["bytes_ratio"]].append(row[measure])
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
    """Adds to each row what the baselines make of as many bytes: random_kl, streaming_ppl_delta and so on."""
    for row in rows:
        for baseline in BASELINES:
            for measure in MEASURES:
                row[f"{baseline}_{measure}"] = at_equal_bytes(rows, baseline, row["bytes_ratio"], measure)
    return rows


def keeps_at_most(policy, share, data_format="native"):
    return lambda row: (row["policy"] == policy and row["format"] == data_format
                        and row["kept_ratio"] <= share)


def peaks_at_most(policy, share):
    return lambda row: row["policy"] == policy and row["format"] == "native" and row["peak_ratio"] <= share


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
    Gate("scissorhands, B is 1/2 of the length, 2x in the paper: perplexity at most +1 %",
         peaks_at_most("scissorhands", 0.505), delta(0.01)),
    Gate("scissorhands, B is 1/3 of the length, 3x in the paper: perplexity at most +5 %",
         peaks_at_most("scissorhands", 0.337), delta(0.05)),
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


def baseline_verdict(policy, baseline, measure, rows):
    """Whether a seed method is better than a baseline at equal bytes, wherever it removes something."""
    name = f"{policy}: better {MEASURES[measure]} than {baseline} at equal bytes"
    other = f"{baseline}_{measure}"
    found = [row for row in rows if row["policy"] == policy and row["format"] == "native"
             and row["bytes_ratio"] < 0.99 and row[other] is not None]
    if not found:
        return Verdict(name, "not run", "no such rows")
    worse = [row for row in found if row[measure] >= row[other]]
    text = f"{len(found) - len(worse)} of {len(found)} rows"
    if worse:
        row = max(worse, key=lambda row: row[measure] - row[other])
        show = "{:+.2%}" if measure == "ppl_delta" else "{:.4f}"
        text += (f"; {label(row)}: {show.format(row[measure])} at {row['bytes_ratio']:.0%} of the bytes, against "
                 f"{show.format(row[other])}")
    return Verdict(name, "MISS" if worse else "pass", text)


def bytes_verdict(rows):
    """Whether the bytes of native keys go with the keys."""
    name = "every policy: bytes kept are the share of the keys kept, within two pages a session"
    found = [row for row in rows if row["format"] == "native" and row["kept_ratio"] < 1]
    if not found:
        return Verdict(name, "not run", "no such rows")
    row = max(found, key=pages_over)
    text = f"at most {pages_over(row):.2f} pages more, {label(row)}"
    return Verdict(name, "pass" if pages_over(row) <= 2 else "MISS", text)


def pages_over(row):
    """Pages that a session holds, in the mean, beyond the share of its keys that it kept."""
    full_bytes = row["kept_bytes"] / row["bytes_ratio"]
    return (row["kept_bytes"] - full_bytes * row["kept_ratio"]) / row["page_bytes"]


def verdicts(rows):
    return ([gate_verdict(gate, rows) for gate in GATES] + [bytes_verdict(rows)]
            + [baseline_verdict(policy, baseline, measure, rows)
               for policy in SEEDS for baseline in BASELINES for measure in MEASURES])


def label(row):
    """'scissorhands budget=736 int4'."""
    words = [f"{name}={value}" for name, value in row["params"].items() if name != "format"]
    return " ".join([row["policy"], *words] + ([row["format"]] if row["format"] != "native" else []))


HEADINGS = ("policy", "keys", "bytes", "peak", "perplexity", "+-", "random", "streaming", "KL", "random",
            "streaming", "agreement", "recall", "recovery", "us/token")


def cells(row):
    def show(form, *keys):
        return ["-" if row[key] is None else form.format(row[key]) for key in keys]

    return (label(row), *show("{:.1%}", "kept_ratio", "bytes_ratio", "peak_ratio"), *show("{:+.2%}", "ppl_delta"),
            *show("{:.2%}", "ppl_error"), *show("{:+.2%}", "random_ppl_delta", "streaming_ppl_delta"),
            *show("{:.4f}", "kl", "random_kl", "streaming_kl"), *show("{:.1%}", "agreement"),
            *show("{:.0%}", "recall"), *show("{:.3f}", "recovery"), *show("{:.0f}", "us_per_token"))


def table(rows):
    """For a terminal: columns side by side."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width)
                               in enumerate(zip(line, widths))) for line in lines)


def markdown_table(headings, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *lines])


PERSISTENCE = ("layer", "persistence", "important")


def persistence_cells(rows):
    return [(str(layer), f"{found['persistence']:.1%}", f"{found['important']:.1%}")
            for layer, found in enumerate(rows[0]["persistence"])]


def persistence_text(rows):
    """For a terminal."""
    return "\n".join(["Of the keys that the second half of a window finds important (alpha >= 1 / step), those that",
                      "the first half found important (persistence), and what part of it that is (important):",
                      *("  ".join(cell.rjust(len(name)) for cell, name in zip(line, PERSISTENCE))
                        for line in [PERSISTENCE, *persistence_cells(rows)])])


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
| peak | keys at the step that had most, as a share of the longest full cache: what memory must be there; for `scissorhands` B / length, as the paper counts |
| perplexity | relative to the full cache's {ppl_full:.2f}; `+-` is its standard error over windows |
| KL | KL(full, policy) of the next token's distribution, nats, mean |
| random, streaming | what that policy makes of as many bytes, of the measure before, between its two nearest rows |
| agreement | positions at which both caches have the same likeliest next token |
| recall | facts told in the prompt's second half ("The secret THING of NAME is DDDDD.") and asked at the end, right in all digits with the right ones before; the full cache recalls {recall_full:.0%} of {asked} |
| recovery | share of attention mass on the keys that stayed, mean of the agent's compactions |
| us/token | of the run, on this machine: safe points, compactions and the model's pass, all windows together |

![Perplexity and recall against memory](images/quality.svg)

## Figures

{rows}

## Persistence of important keys

Scissorhands rests on it (section 3.2 and figure 2): of the keys of a window's first half that some query of the second half finds
important (1 / step or more, from one of a KV head's query heads), the share that the first half's queries found important too; and
the share of all keys that the first half's queries find important. In the full cache, over all windows and heads of a layer. The
paper has more than 95 % in most layers, of far fewer keys. Where nearly all keys are important to some query, as in a small model that attends
flatly, a high ratio says nothing: which keys can go shows in how often they are, which is what Scissorhands counts.

{persistence}

## Gates

What each method has to reach here, and how it stands. One row of those that a gate is about has to fulfil
it; the one that loses least is shown. A method is better than a baseline when each of its rows is.

{gates}

## Reading them

- A model of a few million parameters attends flatly: within CORM's window most keys get 1 / step or more from some query, and FastGen finds
  heads that need every key at a T near 1. Then CORM and FastGen remove less at the papers' parameters than from large models, and lose less
  than the gates allow; parameters that remove as much leave the papers' ground, and may lose more than `streaming`.
- CORM's gate asks for 60 % removed. Its threshold, 1 / step, is what a query gives each key when it looks at all alike; the paper finds fewer
  than a tenth of the keys above it in a model of 7B. Here a query finds about a fifth of the older ones important (`window=1 recent=256`: 39 %
  kept, of which the 256 newest are 23 %), and other queries find others: with the paper's w = 256 each head keeps 70 to 98 % of them. Only a w of
  a few queries removes 60 %, with either threshold: then chance decides which keys are asked for in time, and the gate is missed by far. The row
  here lost least of those that remove as much. That is the model and its short contexts; it says nothing about 7B.
- CORM loses facts that FastGen recalls at as many keys, by its own rule. In the full cache three of the four KV heads of the last layer look
  the digits up (40 to 80 % of their attention at the question). CORM keeps 96 to 98 % of the older keys in them, but a number that nothing in
  the prose refers to is among the others: within the 256 queries before the question the least important digit of a fact reaches 0.02 to 0.5
  / step, and one lost digit loses the fact. FastGen decides for whole heads: at T = .98 and .95 it finds that these three need every key.
- What such a model predicts in prose is mostly near. That makes `streaming` hard to beat by perplexity; the divergence (KL) and the recall of
  facts tell methods apart.
- Differences of perplexity below the error of a row (`+-`) say nothing. A row is compared with what lies between measured rows of the
  baseline, not with a run of exactly as many bytes.
- Scissorhands with the paper's m = B / 2 keeps about three quarters of B in the mean; smaller drops keep more at the same peak.
"""


def page(rows, found, shape, when, what):
    """docs/quality.md."""
    first = rows[0]
    gates = [("gate", "verdict", "measured"), *((v.gate, v.verdict, v.text) for v in found)]
    return PAGE.format(when=when, what=what, persistence=markdown_table(PERSISTENCE, persistence_cells(rows)), rows=markdown_table(HEADINGS, map(cells, rows)),
                       gates=markdown_table(gates[0], gates[1:]), **shape,
                       **{key: first[key] for key in ("positions", "ppl_full", "recall_full", "asked")})
