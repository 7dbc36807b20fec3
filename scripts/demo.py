"""The main job, end to end, on this machine: three tenants share two small pools of KV memory.

    scripts/demo [--json FILE] [--svg FILE] [--keep]

  library  policy full, and room for all of it
  press    policy scissorhands on a tight budget; served by the same worker as library
  crowd    policy streaming, and demand beyond its limit: sessions wait until others end

Halfway crowd's limit is raised and library's lowered. Every session is a forward pass of the committed
model on the project's own prompts. Shows used, leased and limit while it runs, then a table and a
picture. Takes about a minute after the build.

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import datetime
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from demo_cluster import MIB, Cluster

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "worker/models/prose-5m"
POOL_MIB = 24
SAMPLE_SECONDS = 0.2
TENANTS_FILE = """version: 1
tenants:
  - name: library
    guaranteed: 8 MiB
    limit: 18 MiB
    policy: {name: full}
  - name: press
    guaranteed: 4 MiB
    limit: 6 MiB
    policy: {name: scissorhands, budget: 96, window: 96, recent: 16, drop: 48}
  - name: crowd
    guaranteed: 4 MiB
    limit: 6 MiB
    policy: {name: streaming, sinks: 4, recent: 156, slack: 32}
"""
# Sessions, tokens to generate for each, agent and worker that serve them.
LOAD = {"library": (64, 420), "press": (40, 640), "crowd": (70, 400)}
WORKERS = {"worker-0": ("agent-0", ["library", "press"]), "worker-1": ("agent-1", ["crowd"])}
POLICIES = {"library": "full", "press": "scissorhands", "crowd": "streaming"}
CHANGES = [("crowd", "12 MiB", "raised"), ("library", "10 MiB", "lowered")]


def write_prompts(path, tenants):
    """JSON lines for one worker: its tenants' sessions in turn, sampled with seeds of their own."""
    lines = [line.rstrip("\n") for line in open(ROOT / "worker/demo/prompts.txt") if line.strip()]
    sessions = []
    for tenant in tenants:
        count, tokens = LOAD[tenant]
        for i in range(count):
            prompt = lines[i % len(lines)].encode().decode("unicode_escape", "replace") \
                if "\\" in lines[i % len(lines)] else lines[i % len(lines)]
            sessions.append((i / count, {"prompt": prompt, "tenant": tenant, "max_tokens": tokens,
                                         "temperature": 0.8, "seed": 1000 + i}))
    sessions.sort(key=lambda entry: entry[0])
    path.write_text("".join(json.dumps(session) + "\n" for _, session in sessions))


def start_worker(cluster, name, agent, tenants, tokens):
    prompts = cluster.folder / f"{name}.jsonl"
    write_prompts(prompts, tenants)
    token_files = [arg for tenant in tenants
                   for arg in ("--token-file", f"{tenant}={tokens[tenant]}")]
    return cluster.start(name, "kvpool-worker", "--model", MODEL, "--kv", "pool", "--agent",
                         cluster.folder / f"{agent}.sock", "--worker-name", name, *token_files,
                         "--prompts", prompts, "--batch", 14, "--chunk", 32, "--json",
                         cluster.folder / f"{name}.json", "-o", "json")


def bar(value, limit, width=24):
    filled = min(width, round(width * value / limit)) if limit else 0
    return "#" * filled + "." * (width - filled)


class Monitor:
    """Samples the manager, remembers the series, and shows it."""

    def __init__(self, cluster):
        self.cluster, self.begin = cluster, time.monotonic()
        self.samples, self.events, self.lines = [], [], 0
        self.peak = {tenant: 0 for tenant in LOAD}
        self.live = sys.stdout.isatty()
        self.last_shown = 0.0

    def sample(self):
        now = time.monotonic() - self.begin
        tenants = {t["name"]: t for t in self.cluster.get("/v1/tenants")["tenants"]}
        self.samples.append({"t": round(now, 2), "tenants": {
            name: {"used": t["used"], "leased": t["leased"], "limit": t["limit"]}
            for name, t in tenants.items()}})
        for name, tenant in tenants.items():
            self.peak[name] = max(self.peak[name], tenant["used"])
        if now - self.last_shown > (0.5 if self.live else 5):
            self.show(now, tenants)
            self.last_shown = now

    def show(self, now, tenants):
        if self.live and self.lines:
            print(f"\x1b[{self.lines}A", end="")
        rows = [f"{now:5.1f} s   tenant     used MiB  leased  limit   used of limit              "
                "sessions refusals compactions"]
        for name in LOAD:
            t = tenants[name]
            rows.append(f"          {name:<10} {t['used'] / MIB:8.1f} {t['leased'] / MIB:7.1f} "
                        f"{t['limit'] / MIB:6.1f}   [{bar(t['used'], t['limit'])}] "
                        f"{t['sessions']:8d} {t['refusals']:8d} {t['compactions']:11d}")
        print("\n".join(f"\x1b[2K{row}" if self.live else row for row in rows), flush=True)
        self.lines = len(rows)

    def event(self, text):
        now = time.monotonic() - self.begin
        self.events.append({"t": round(now, 2), "text": text})
        print(f"{now:5.1f} s   {text}", flush=True)
        self.lines = 0


def run_load(cluster, monitor, workers):
    """Until every worker has finished; the changes come when half of the sessions have ended."""
    total = sum(count for count, _ in LOAD.values())
    changed = False
    while any(worker.poll() is None for worker in workers):
        cluster.check_alive()
        monitor.sample()
        finished = sum(line_count(cluster.folder / f"{name}.log") for name in WORKERS)
        if not changed and finished >= total // 2:
            for tenant, limit, verb in CHANGES:
                cluster.kvpoolctl("set", "tenant", tenant, "--limit", limit)
                monitor.event(f"{tenant}: limit {verb} to {limit}")
            changed = True
        time.sleep(SAMPLE_SECONDS)
    cluster.check_alive()
    monitor.sample()
    if not changed:
        raise RuntimeError("the load ended before the limits were changed")


def line_count(path):
    """Results printed so far: one JSON line a finished session."""
    return sum(1 for line in open(path, "rb") if line.startswith(b'{"id"'))


def perplexities(cluster, tokens):
    """{tenant: (under its policy, under full)} of the project's own text, in this run."""
    text = ["--model", MODEL, "--score", ROOT / "worker/demo/text.txt", "--context", 768, "--chunk",
            32]
    runs = {"full": cluster.start("score-full", "kvpool-worker", *text, "--kv", "private", "--json",
                                  cluster.folder / "score-full.json")}
    for worker, (agent, tenants) in WORKERS.items():
        for tenant in tenants:
            runs[tenant] = cluster.start(
                f"score-{tenant}", "kvpool-worker", *text, "--kv", "pool", "--agent",
                cluster.folder / f"{agent}.sock", "--tenant", tenant, "--token-file",
                f"{tenant}={tokens[tenant]}", "--json", cluster.folder / f"score-{tenant}.json")
    for run in runs.values():
        run.wait()
    cluster.check_alive()
    results = {name: json.loads((cluster.folder / f"score-{name}.json").read_text())["score"][
        "perplexity"] for name in runs}
    return {tenant: (results[tenant], results["full"]) for tenant in LOAD}


def collect(cluster, monitor, scores):
    """One row per tenant: what the workers and the manager counted."""
    views = {t["name"]: t for t in cluster.get("/v1/tenants")["tenants"]}
    rows = []
    for worker in WORKERS:
        for row in json.loads((cluster.folder / f"{worker}.json").read_text())["tenants"]:
            view = views[row["tenant"]]
            rows.append({"tenant": row["tenant"], "policy": POLICIES[row["tenant"]],
                         "sessions": row["finished"], "failed": row["failed"],
                         "tokens": row["prompt_tokens"] + row["generated_tokens"],
                         "peak_bytes": monitor.peak[row["tenant"]],
                         "full_cache_bytes": row["full_cache_bytes"],
                         "refusals": view["refusals"], "compactions": view["compactions"],
                         "recovery_mean": view["recovery"]["mean"],
                         "recovery_min": view["recovery"]["min"],
                         "perplexity": scores[row["tenant"]][0],
                         "perplexity_full": scores[row["tenant"]][1]})
    return rows


def print_table(rows):
    def share(value):
        return "-" if value is None else f"{value:.3f}"

    print(f"\n{'tenant':<9}{'policy':<14}{'sessions':>8}{'tokens':>8}{'peak MiB':>10}"
          f"{'full MiB':>10}{'refusals':>10}{'compactions':>13}{'recovery':>10}{'minimum':>9}"
          f"{'perplexity':>12}{'under full':>12}")
    for r in rows:
        print(f"{r['tenant']:<9}{r['policy']:<14}{r['sessions']:>8}{r['tokens']:>8}"
              f"{r['peak_bytes'] / MIB:>10.1f}{r['full_cache_bytes'] / MIB:>10.1f}"
              f"{r['refusals']:>10}{r['compactions']:>13}{share(r['recovery_mean']):>10}"
              f"{share(r['recovery_min']):>9}{r['perplexity']:>12.2f}{r['perplexity_full']:>12.2f}")
    full = sum(r["full_cache_bytes"] for r in rows)
    pools = 2 * POOL_MIB * MIB
    print(f"\npeak MiB: the most used bytes that were sampled, every {SAMPLE_SECONDS} s; a shorter peak "
          "can be missed.")
    print(f"Full caches of all sessions: {full / MIB:.0f} MiB, {full / pools:.1f} times the pools' "
          f"{pools / MIB:.0f} MiB.")
    return full / pools


def draw(cluster, monitor, svg):
    series = cluster.folder / "series.json"
    now = datetime.datetime.now(datetime.timezone.utc)
    series.write_text(json.dumps({"start": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                                  "samples": monitor.samples, "events": monitor.events}))
    subprocess.run([sys.executable, ROOT / "scripts/plot_memory.py", series, svg], check=True)
    print(f"Picture: {svg}")


def run(args, cluster):
    print(f"Two agents with {POOL_MIB} MiB each; logs in {cluster.folder}"
          f"{'' if args.keep else ' until the end'}")
    cluster.start_manager()
    for agent in sorted({agent for agent, _ in WORKERS.values()}):
        cluster.start_agent(agent, POOL_MIB)
    tenants_file = cluster.folder / "tenants.yaml"
    tenants_file.write_text(TENANTS_FILE)
    print(cluster.kvpoolctl("apply", "-f", tenants_file).rstrip())
    tokens = {tenant: cluster.worker_token(tenant) for tenant in LOAD}

    monitor = Monitor(cluster)
    workers = [start_worker(cluster, name, agent, tenants, tokens)
               for name, (agent, tenants) in WORKERS.items()]
    run_load(cluster, monitor, workers)
    print("\nMeasuring the perplexity of one text under each policy and under full", flush=True)
    scores = perplexities(cluster, tokens)
    rows = collect(cluster, monitor, scores)
    ratio = print_table(rows)
    draw(cluster, monitor, args.svg)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"tenants": rows}, indent=1) + "\n")
        print(f"Table: {args.json}")
    failed = [r["tenant"] for r in rows if r["failed"] or r["sessions"] != LOAD[r["tenant"]][0]]
    if failed or ratio < 3:
        raise RuntimeError(f"sessions failed for {failed}" if failed else
                           "the load was too small to show anything")
    if args.keep:
        print(f"\nStill running. kvpoolctl: {cluster.programs}/kvpoolctl --server "
              f"127.0.0.1:{cluster.http_port} --token-file {cluster.operator_token} top\n"
              "Press Ctrl-C to stop.")
        while True:
            time.sleep(1)


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/host/bin", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON")
    parser.add_argument("--svg", metavar="FILE", default="build/demo.svg",
                        help="where the picture goes (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end, and the logs after that")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` stops the daemons
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvpool-demo-"))
    cluster = Cluster(args.bin, folder)
    begin = time.monotonic()
    failed = True  # then the logs are worth keeping
    try:
        run(args, cluster)
        failed = False
    except KeyboardInterrupt:
        failed = False
        return 130
    except RuntimeError as error:
        print(f"scripts/demo: {error}\nLogs: {folder}", file=sys.stderr)
        return 1
    finally:
        cluster.stop()
        if not failed and not args.keep:
            shutil.rmtree(folder)
    print(f"Done in {time.monotonic() - begin:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
