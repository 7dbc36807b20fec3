"""The demo's processes: a manager, agents and workers in a scratch folder, and the calls an operator
makes. Starts and stops, reads and asks; what happens when is scripts/demo.py's.

SPDX-License-Identifier: Apache-2.0
"""

import json
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

MIB = 1 << 20


def free_port():
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """A manager and agents. Programs come from `programs`, everything they write goes to `folder`."""

    def __init__(self, programs, folder):
        self.programs = pathlib.Path(programs).resolve()
        self.folder = pathlib.Path(folder)
        self.processes = []
        self.agents_port, self.http_port = free_port(), free_port()
        self.operator_token = self.secret("operator.token", "kvp_demo_operator")
        self.agent_token = self.secret("agent.token", "kvp_demo_agent")

    def secret(self, name, text):
        """A file that only we can read, holding one line."""
        path = self.folder / name
        path.write_text(text + "\n")
        path.chmod(0o600)
        return path

    def start(self, name, program, *args):
        """Starts a program with its output in NAME.log."""
        log = open(self.folder / f"{name}.log", "ab")
        process = subprocess.Popen([self.programs / program, *map(str, args)], stdout=log,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        process.name = name
        self.processes.append(process)
        return process

    def start_manager(self):
        self.start("manager", "kvpool-manager", "--agents", f"127.0.0.1:{self.agents_port}",
                   "--http", f"127.0.0.1:{self.http_port}",
                   "--database", self.folder / "manager.sqlite",
                   "--agent-token-file", self.agent_token,
                   "--operator-token-file", self.operator_token, "--learning", "1 s")
        self.wait("the manager is ready", lambda: self.get("/readyz") is not None)

    def start_agent(self, name, pool_mib):
        self.start(name, "kvpool-agent", "--name", name, "--socket", self.folder / f"{name}.sock",
                   "--manager", f"127.0.0.1:{self.agents_port}", "--manager-token-file",
                   self.agent_token, "--http", f"127.0.0.1:{free_port()}", "--pool",
                   f"{pool_mib + 4} MiB", "--slab-bytes", "2 MiB", "--reserve-slabs", 2)
        self.wait(f"agent {name} is registered", lambda: any(
            agent["name"] == name and agent["connected"]
            for agent in self.get("/v1/agents")["agents"]))

    def wait(self, what, condition, seconds=20):
        """Polls until the condition holds; tells whose log to read when it never does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check_alive()
            try:
                if condition():
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.05)
        raise RuntimeError(f"waited {seconds} s in vain until {what}; logs are in {self.folder}")

    def check_alive(self):
        for process in self.processes:
            if process.poll() not in (None, 0):
                tail = (self.folder / f"{process.name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{process.name} ended with code {process.returncode}:\n{tail}")

    def get(self, path):
        """JSON from the operator API; None for a page that is no JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", headers={
            "Authorization": "Bearer " + self.operator_token.read_text().strip()})
        with urllib.request.urlopen(request, timeout=5) as response:
            body = response.read()
        return json.loads(body)

    def kvpoolctl(self, *args):
        """Runs the operator's tool and returns its output; a failure is an error with its text."""
        done = subprocess.run(
            [self.programs / "kvpoolctl", "--server", f"127.0.0.1:{self.http_port}",
             "--token-file", self.operator_token, *map(str, args)],
            capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"kvpoolctl {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done.stdout

    def worker_token(self, tenant):
        """A new worker token of a tenant, in a file."""
        answer = json.loads(self.kvpoolctl("token", "create", tenant, "-o", "json"))
        return self.secret(f"{tenant}.token", answer["token"])

    def stop(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
