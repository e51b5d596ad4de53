"""The command line in a process to which something happens at its n-th step.

A step is a system call that changes a file, takes a lock or starts a program, or a request to the store (once before it
is sent, once after it was answered). They are counted by wrappers put around the functions of the standard library and
of botocore, so the product itself has no hook for tests.

``harness.py once ACTION N ARGUMENT…`` runs one command of the command line, ``harness.py serve`` runs them as they come
in, one JSON document a line, each in a fork: what one of them imports is there for all that follow. N counts from 1;
``NAME:N`` is the n-th step of that name. Actions: ``count`` lets it run, ``kill``, ``term`` and ``stop`` send a signal
to this very process, ``fill:FOLDER`` fills that folder's file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_FILES = [
    "rename",
    "replace",
    "link",
    "unlink",
    "open",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "fdatasync",
    "mkdir",
    "chmod",
]


class Steps:
    def __init__(self):
        self.lock = threading.Lock()
        self.count = self.at = 0
        self.action = "count"
        self.names = []

    def plan(self, action, at):
        self.count, self.action, self.at, self.names = 0, action, at, []

    def step(self, name):
        with self.lock:
            self.count += 1
            self.names.append(name)
            if self.at not in (self.count, f"{name}:{self.names.count(name)}"):
                return
            if self.action.startswith("fill:"):
                fill(Path(self.action[5:]))
            elif self.action != "count":
                os.kill(os.getpid(), _SIGNALS[self.action])


STEPS = Steps()
real_open, real_write = os.open, os.write


def fill(folder):
    descriptor = real_open(folder / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    real_write(descriptor, b"x" * size)
            except OSError:
                continue
    finally:
        os.close(descriptor)


def watched(name, function, *, after=False):
    def call(*arguments, **options):
        if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
            return function(*arguments, **options)
        STEPS.step(name)
        result = function(*arguments, **options)
        if after:
            STEPS.step(f"{name} answered")
        return result

    return call


def watch():
    from botocore.httpsession import URLLib3Session

    for name in _FILES:
        setattr(os, name, watched(name, getattr(os, name)))
    fcntl.flock = watched("flock", fcntl.flock)
    subprocess.Popen.__init__ = watched("start", subprocess.Popen.__init__)
    URLLib3Session.send = watched("request", URLLib3Session.send, after=True)


def serve():
    for line in sys.stdin:
        order = json.loads(line)
        known = set(sys.modules)
        heard, tell = os.pipe()
        error = os.memfd_create("stderr")
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(error, 1)
            os.dup2(error, 2)
            os.environ.update(order["environ"])
            STEPS.plan(order["action"], order["at"])
            code = cli.run(order["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            new = [name for name in sys.modules if name not in known]
            real_write(tell, json.dumps({"steps": STEPS.count, "names": STEPS.names, "new": new}).encode())
            os._exit(code)
        os.close(tell)
        with os.fdopen(heard) as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        with os.fdopen(error, "rb") as output:
            output.seek(0)
            said = output.read().decode(errors="replace")
        told = json.loads(text) if text else {"steps": 0, "names": [], "new": []}
        learn(told.pop("new"))
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said, **told}), flush=True)


def prepare():
    """What each fork would pay for besides imports: what is made once in a process."""
    from duckling_provider.config.s3 import S3Settings
    from duckling_provider.oversight import back_reach, notices, record
    from duckling_provider.stores import s3_client

    settings = S3Settings(enabled=True, region="us-east-1")
    client = s3_client.make_client(settings, s3_client.Credentials("none", "none"))
    client.can_paginate("list_objects_v2")
    for module in (back_reach, notices, record):
        module._adapter()


def learn(names):
    """Import what a fork had to import: the next ones find it."""
    if not names:
        return
    for name in names:
        with contextlib.suppress(ImportError):  # some modules are made by others only
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that looks for garbage would copy all pages


if __name__ == "__main__":
    from duckling_provider.cli import app as cli

    watch()
    if sys.argv[1] == "serve":
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads before the forks
        prepare()
        serve()
    else:
        STEPS.plan(sys.argv[2], int(sys.argv[3]) if sys.argv[3].isdigit() else sys.argv[3])
        sys.exit(cli.run(sys.argv[4:]))
