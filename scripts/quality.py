"""What every policy does to a model's predictions, through a real manager and a real agent.

    scripts/quality [--json FILE] [--svg FILE] [--markdown FILE] [--model DIR] [--text FILE]...
                    [--only POLICY]... [--quick] [--check]

One tenant for each line of scripts/quality_policies.txt. Windows of text are fed in chunks of 16 tokens
through the tenant's cache in the pool and through a full cache of the worker's own, and compared at every
token after the prompt: keys and bytes kept, perplexity against the full cache, its standard error over
windows, what `random` and `streaming` make of as many bytes (between their measured rows), how often both caches have the same likeliest next token, KL(full || policy) in nats, facts planted in
the prompt that are recalled in every digit at the end, recovery as the agent measured it, and the time per
token on this machine.

The text is held-out novels in ../shared where that is, or else a short text of the project's own.
Takes minutes; --quick takes seconds and shows that everything works, no more.

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import plot_quality
import quality_report
from demo_cluster import MIB, Cluster

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLAB = 2 * MIB  # of Cluster.start_agent
POLICIES = ROOT / "scripts/quality_policies.txt"
OWN_TEXT = ROOT / "worker/demo/text.txt"
SHAPE = {"windows": 12, "context": 1536, "prompt": 768, "facts": 4}
# Own text: windows of a short text overlap, so that more of them say little more.
OWN_TEXT_SHAPE = {**SHAPE, "windows": 4}
QUICK_SHAPE = {"windows": 2, "context": 384, "prompt": 192, "facts": 1}
QUICK_POLICIES = "full\nstreaming sinks=4 recent=92 slack=32\nscissorhands budget=128 window=64\n"


def parse_value(text):
    """A parameter as JSON has it: a whole number, a number, or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def parse_policies(text):
    """[(policy, {parameter: value})] of a file of policies. Raises ValueError that names the line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        pairs = [word.partition("=") for word in words[1:]]
        if not all(name and equals and value for name, equals, value in pairs):
            raise ValueError(f"line {number}: expected POLICY PARAMETER=VALUE...: {line}")
        found.append((words[0], {name: parse_value(value) for name, _, value in pairs}))
    return found


def tenant_bytes(model, shape):
    """Room for all windows of a tenant with a full cache, and half as much again for what else is
    charged: planes, tables, query windows, whole slabs."""
    config = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    row = 2 * 2 * dim * config.get("num_key_value_heads", heads) * config["num_hidden_layers"]
    return shape["windows"] * shape["context"] * row * 3 // 2 + 32 * MIB


def tenants_file(policies, room):
    """{tenant: (policy, params)} and the file that makes them."""
    tenants = {f"q{index:02}-{policy}": (policy, params) for index, (policy, params) in enumerate(policies)}
    lines = ["version: 1", "tenants:"]
    for name, (policy, params) in tenants.items():
        spec = ", ".join([f"name: {policy}"] + [f"{key}: {value}" for key, value in params.items()])
        lines.append(f"  - {{name: {name}, guaranteed: {room} B, limit: {room} B, policy: {{{spec}}}}}")
    return tenants, "\n".join(lines) + "\n"


def measure(cluster, args, shape, policies):
    """The rows, in the order of the policies; the first one also has the model's persistence by layer."""
    room = -(-tenant_bytes(args.model, shape) // SLAB) * SLAB
    cluster.start_manager()
    cluster.start_agent("agent", len(policies) * room // MIB)
    tenants, text = tenants_file(policies, room)
    path = cluster.folder / "tenants.yaml"
    path.write_text(text)
    cluster.kvpoolctl("apply", "-f", path)
    flags = [f"--{key}={value}" for key, value in shape.items()]
    flags += [f"--text={path}" for path in args.text]
    flags += [f"--tenant={tenant}={cluster.worker_token(tenant)}" for tenant in tenants]
    rows = {}
    for line in run_program(cluster, "--model", args.model, "--agent", cluster.folder / "agent.sock", *flags):
        found = json.loads(line)
        if "persistence" in found:
            persistence = found
            continue
        tenant = found.pop("tenant")
        policy, params = tenants[tenant]
        rows[tenant] = row = {"policy": policy, "params": params, "format": str(params.get("format", "native")),
                              **found}
        if tenant == next(iter(tenants)):
            row |= persistence
        print(f"  {len(rows):2}/{len(policies)}  {quality_report.label(row)}: {row['kept_ratio']:.1%} of the keys, "
              f"perplexity {row['ppl_delta']:+.2%}, recall {row['recall']:.0%}", flush=True)
    for tenant, recovery in recoveries(cluster, tenants).items():
        rows[tenant]["recovery"] = recovery
    return quality_report.compare(list(rows.values()))


def run_program(cluster, *args):
    """The lines that kvpool-quality prints, as they come."""
    with open(cluster.folder / "quality.log", "wb") as log, subprocess.Popen(
            [cluster.programs / "kvpool-quality", *map(str, args)], stdout=subprocess.PIPE, stderr=log,
            stdin=subprocess.DEVNULL, encoding="utf-8") as process:
        cluster.processes.append(process)
        process.name = "quality"
        yield from process.stdout
    cluster.check_alive()


def recoveries(cluster, tenants):
    """{tenant: mean recovery or None}, once the agent has reported the end of all sessions."""
    def views():
        return {view["name"]: view for view in cluster.get("/v1/tenants")["tenants"]}

    cluster.wait("the agent has reported that all sessions ended",
                 lambda: all(views()[tenant]["sessions"] == 0 for tenant in tenants))
    return {name: view["recovery"]["mean"] for name, view in views().items()}


def choose_text(args):
    """The texts, and the shape of the windows that they are good for."""
    if args.quick:
        return args.text or [OWN_TEXT], QUICK_SHAPE
    if args.text:
        return args.text, SHAPE
    shared = sorted((ROOT / "../shared/data/text").glob("eval_*.txt"))
    return (shared, SHAPE) if shared else ([OWN_TEXT], OWN_TEXT_SHAPE)


def choose_policies(args):
    policies = parse_policies(QUICK_POLICIES if args.quick else POLICIES.read_text(encoding="utf-8"))
    known = {policy for policy, _ in policies}
    if unknown := set(args.only) - known:
        raise RuntimeError(f"--only {min(unknown)}: no such line; there are {', '.join(sorted(known))}")
    wanted = {"full", *quality_report.BASELINES, *(args.only or known)}
    return [(policy, params) for policy, params in policies if policy in wanted]


def run(args, cluster):
    args.text, shape = choose_text(args)
    policies = choose_policies(args)
    print(f"{len(policies)} tenants, each with {shape['windows']} windows of {shape['context']} tokens, of which "
          f"{shape['prompt']} are the prompt, from {', '.join(path.name for path in args.text)}; "
          f"logs in {cluster.folder} until the end", flush=True)
    origin = circumstances(args)  # before files are written that may be part of the tree
    rows = measure(cluster, args, shape, policies)
    found = quality_report.verdicts(rows)
    print(f"\n{quality_report.table(rows)}\n\nPerplexity of the full cache {rows[0]['ppl_full']:.2f} over "
          f"{rows[0]['positions']} tokens; it recalls {rows[0]['recall_full']:.0%} of {rows[0]['asked']} facts.\n"
          f"\n{quality_report.persistence_text(rows)}\n\n{quality_report.gates_text(found)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.svg:
        args.svg.write_text(plot_quality.picture(plot_quality.read_rows(json.dumps(rows))), encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(quality_report.page(rows, found, shape, *origin), encoding="utf-8")
    return [verdict for verdict in found if verdict.verdict == "MISS"]


def circumstances(args):
    """(date and commit, model, text and machine) for people."""
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, check=False,
                          encoding="utf-8")
    commit = f" at commit {done.stdout.strip()}" if done.returncode == 0 else ""
    texts = ", ".join(f"`{path.name}`" for path in args.text)
    models = re.findall(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = f"{os.cpu_count()} cores" + (f" of {models[0]}" if models else "")
    return f"{datetime.date.today()}{commit}", f"`{args.model.name}` on {texts}; {machine}"


def parse_arguments():
    parser = argparse.ArgumentParser(prog="scripts/quality", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/host/bin", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--svg", type=pathlib.Path, metavar="FILE", help="draw perplexity and recall against memory")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the page docs/quality.md")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", default=ROOT / "worker/models/prose-5m",
                        help="another checkpoint of the Llama family")
    parser.add_argument("--text", type=pathlib.Path, metavar="FILE", action="append",
                        help="a text to measure with; repeatable")
    parser.add_argument("--only", metavar="POLICY", action="append", default=[],
                        help="this policy beside full, random and streaming; repeatable")
    parser.add_argument("--quick", action="store_true", help="three policies and two short windows")
    parser.add_argument("--check", action="store_true", help="exit with 3 when a gate is missed")
    return parser.parse_args()


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the daemons
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvpool-quality-"))
    cluster = Cluster(args.bin, folder)
    begin = time.monotonic()
    failed = True  # then the logs are worth keeping
    try:
        missed = run(args, cluster)
        failed = False
    except KeyboardInterrupt:
        failed = False
        return 130
    except (RuntimeError, OSError, ValueError) as error:
        print(f"scripts/quality: {error}\nLogs: {folder}", file=sys.stderr)
        return 1
    finally:
        cluster.stop()
        if not failed:
            shutil.rmtree(folder)
    print(f"Done in {time.monotonic() - begin:.0f} s.")
    return 3 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
