"""Check and time the int4 kernels on a GPU: python bench.py --seconds 150 --out results.json

A supervisor starts a worker (the only process that touches the GPU) and starts it again without the config that
crashed it, if one did. The worker compiles in a pool of processes, checks every config against a reference, times it
cold in CUDA graphs, and writes a line a result to OUT.jsonl as it goes. The supervisor prints tables last.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

SHAPES = [(4096, 4096), (28672, 4096), (4096, 14336), (6144, 4096), (8192, 8192), (2880, 4096)]
MS = [1, 8, 32, 16, 64, 4, 2, 128]
GB_S = 4300.0
COLD_BYTES = 160e6
SMS = 132


# ------------------------------------------------------------------------------------------- candidates


def registers(c) -> int:
    weights = c.u * c.r * 8 * (2 if c.mode == 2 else 1)
    x = 2 * c.bm * c.u // c.w if c.stages == 1 else 8
    if c.v2:
        x += 2 * c.bm
    else:
        x += 16 * c.r * (c.u > 1) + c.bm * c.u // c.warps
    acc = c.r * c.bm // 2 * (1 + c.scale)
    return weights + x + acc + (8 if c.v2 else 32) * c.r + (28 if c.v2 else 36)


def score(c, m: int, n: int, k: int) -> float | None:
    """Lower is better, roughly; None where hopeless."""
    regs = registers(c)
    threads = 32 * c.warps
    if regs > 256 or regs * threads > 65536:
        return None
    smem = c.stages * c.bm * 256 * c.u * c.s if c.stages > 1 else c.bm * 256 * c.s
    if smem > 200 * 1024:
        return None
    grid = c.grid(min(c.bm, 128), n)
    if grid < 96 or grid > SMS * 16 * max(1, n // 8192):
        return None
    if c.split_k > 1 and -(-n // c.bn) * c.bn * c.split_k * c.bm > 16e6:
        return None
    resident = max(1, min(65536 // (regs * threads), 228 * 1024 // (smem + 2048), 2048 // threads))
    tile = c.s * c.u * c.bn * 64
    flight = min(resident, -(-grid // SMS)) * tile
    if flight < (14 if c.bm <= 16 else 8) * 1024:
        return None
    quantization = -(-grid // SMS) * SMS / grid
    waves = -(-grid // (SMS * resident))
    # x is read by every program, partial sums written and read by every split; 3 times as cheap as HBM.
    weights = n * k / 2
    rows = 2 if m <= 2 else c.bm  # rows past m are not read
    traffic = (grid * rows * (k / c.split_k) * 2 + (c.split_k > 1) * 2 * 4 * n * rows * c.split_k) / 3
    us = weights / 4.3e6 * max(1, (36e3 if c.bm <= 32 else 20e3) / flight) ** 0.7 * (1 if grid > 8 * SMS else quantization) + traffic / 4.3e6
    return us + 1.0 * (c.split_k > 1) + 0.3 * waves


def candidates(m: int, n: int, k: int) -> list:
    from kernels import Config

    blocks = -(-k // 128)
    if m <= 8:
        plans = [(8, p) for p in ((1, 1, 4), (2, 1, 4), (1, 1, 8), (1, 1, 2), (2, 1, 2), (1, 4, 1), (1, 8, 1), (2, 4, 1), (2, 8, 1), (1, 16, 1))]
        plans += [(16, p) for p in ((1, 1, 4), (2, 1, 4))]
    elif m <= 16:
        plans = [(16, p) for p in ((1, 1, 4), (2, 1, 4), (1, 1, 8), (1, 1, 2), (1, 4, 1), (1, 8, 1), (2, 4, 1))]
    elif m <= 32:
        plans = [(32, p) for p in ((1, 1, 4), (2, 1, 4), (1, 1, 8), (2, 1, 8))]
    elif m <= 64:
        plans = [(64, p) for p in ((1, 1, 4), (2, 1, 4), (1, 1, 8), (2, 1, 8), (1, 1, 16))]
    else:
        plans = [(64, (1, 1, 4)), (64, (1, 1, 8)), (64, (2, 1, 4)), (128, (1, 1, 4)), (128, (1, 1, 8)), (128, (2, 1, 8)), (64, (1, 1, 16)), (128, (1, 1, 16))]
    chosen = []
    for bm, (r, s, w) in plans:
        scale = 1 if bm <= 32 else 0
        wgmma = bm >= 16 and s == 1 and w % 4 == 0
        for mode in (0, 1, 2):
            here = []
            for u in (2, 4, 8) if mode == 1 else (1, 2, 4, 8) if mode == 0 else (1, 2, 4):
                if mode == 0:
                    splits, stages = [-(-blocks // (s * u))], [1]
                else:
                    splits = [1, 2, 3, 4, 6, 7, 8]
                    stages = [3, 4] if wgmma else [1] if s > 1 else [1, 3]
                for split in splits:
                    for stage in stages:
                        c = Config(bm, r, s, w, u, split, mode, stage, scale)
                        if split <= 16 and c.legal(m, n, k):
                            points = score(c, m, n, k)
                            if points is not None:
                                here.append((points * math.ceil(m / bm) ** 0.5, c))
            here.sort(key=lambda pair: pair[0])
            chosen += here[: 3 if mode == 0 or bm >= 32 else 2]
    chosen.sort(key=lambda pair: pair[0])
    picked = [c for _, c in chosen][:46]
    if picked and m <= 32:  # what the other way of scaling, and no PDL, would change
        from dataclasses import replace

        picked += [replace(picked[0], scale=0), replace(picked[0], pdl=0)]
    return picked


def compile_job(job) -> str:
    from kernels import compile_config

    try:
        compile_config(*job)
        return ""
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a result
        return f"{type(error).__name__}: {str(error)[-300:]}"


RAGGED = [  # m, n, k, group, zeros
    (3, 1012, 1120, 32, True),
    (13, 1000, 1088, 64, False),
    (29, 1012, 1152, 128, True),
    (61, 1000, 1152, 128, False),
]


def ragged_configs(m: int) -> list:
    from kernels import Config

    if m <= 8:
        return [
            Config(8, 1, 1, 4, 3, 3, 0), Config(8, 1, 4, 1, 3, 1, 0), Config(8, 1, 4, 1, 1, 2, 1), Config(8, 2, 1, 4, 2, 2, 1, 3),
            Config(8, 1, 1, 2, 2, 1, 2, 1, 0), Config(8, 1, 8, 1, 2, 1, 0, 1, 0), Config(16, 1, 1, 4, 2, 5, 0),
        ]  # fmt: skip
    if m <= 16:
        return [
            Config(16, 1, 1, 4, 2, 5, 0), Config(16, 1, 1, 4, 2, 2, 1, 3), Config(16, 2, 1, 4, 1, 2, 2, 3, 0),
            Config(16, 1, 4, 1, 1, 1, 1),
        ]  # fmt: skip
    if m <= 32:
        return [Config(32, 1, 1, 4, 2, 2, 1, 3), Config(32, 1, 1, 8, 1, 3, 1, 3, 0), Config(32, 1, 1, 4, 1, 9, 0)]
    return [Config(64, 1, 1, 8, 1, 2, 1, 3, 0), Config(64, 1, 1, 4, 2, 2, 2, 3, 0), Config(64, 1, 1, 4, 1, 3, 1, 4, 1)]


# ------------------------------------------------------------------------------------------- the worker


class Worker:
    def __init__(self, args) -> None:
        self.out, self.deadline, self.args = args.out + "l", args.deadline, args
        self.done: set[tuple] = set()
        self.bad: set[str] = set()
        if os.path.exists(self.out):
            started = None
            for line in open(self.out):
                row = json.loads(line)
                if row["what"] == "finished":
                    self.done.add(tuple(row["task"]))
                    started = None
                elif row["what"] == "running":
                    started = row["key"]
                elif row["what"] == "ran":
                    started = None
            if started:
                self.bad.add(started)
        self.file = open(self.out, "a", buffering=1)
        self.bad |= set(args.bad.split(",")) if args.bad else set()

    def write(self, **row) -> None:
        self.file.write(json.dumps(row) + "\n")

    def left(self) -> float:
        return self.deadline - time.time()

    def run(self) -> None:
        shapes = [tuple(map(int, s.split("x"))) for s in self.args.shapes.split(",")] if self.args.shapes else SHAPES
        ms = [int(m) for m in self.args.ms.split(",")] if self.args.ms else MS
        tasks = [("ragged", *case) for case in RAGGED]
        tasks += [("time", n, k, m, 128, False) for n, k in shapes for m in ms]
        tasks = [task for task in tasks if task not in self.done]
        # All is compiled in this order; a fork before CUDA starts is cheap and safe.
        self.pool = ProcessPoolExecutor(self.args.jobs, mp_context=multiprocessing.get_context("fork"))
        self.futures: dict = {}
        import kernels  # noqa: F401 - before the fork, so that the children have it

        for task in tasks:
            for job in self.jobs(task):
                self.futures.setdefault(job, None)
        for job in self.futures:
            self.futures[job] = self.pool.submit(compile_job, job)
        self.write(what="compiling", jobs=len(self.futures))
        print(f"{len(tasks)} tasks, {len(self.futures)} kernels to compile", flush=True)
        import torch

        self.torch = torch
        torch.cuda.init()
        self.stream = torch.cuda.Stream()
        self.workspace = torch.empty(18_000_000, dtype=torch.float32, device="cuda")
        self.counters = torch.zeros(65536, dtype=torch.int32, device="cuda")
        self.compiled: dict = {}
        self.shape, self.weights = None, None
        self.write(what="device", name=torch.cuda.get_device_name(), torch=torch.__version__)
        with torch.cuda.stream(self.stream):
            for task in tasks:
                if self.left() < 4:
                    break
                begin = time.time()
                try:
                    (self.ragged if task[0] == "ragged" else self.time)(*task[1:])
                    self.write(what="finished", task=list(task), seconds=time.time() - begin)
                except Exception as error:  # noqa: BLE001
                    text = f"{type(error).__name__}: {str(error)[:400]}"
                    self.write(what="failed", task=list(task), error=text)
                    print("FAILED", task, text, flush=True)
                    torch.cuda.synchronize()  # raises again if the context is lost: the supervisor starts anew
                print(f"{task} {time.time() - begin:.1f} s, {self.left():.0f} s left", flush=True)
            if self.left() > 15 and not self.args.shapes:
                self.other_groups()
        self.pool.shutdown(wait=False, cancel_futures=True)

    # configs and kernels

    def configs(self, task) -> list:
        return ragged_configs(task[1]) if task[0] == "ragged" else candidates(task[3], task[1], task[2])

    def jobs(self, task) -> list:
        if task[0] == "ragged":
            _, m, n, k, group, zeros = task
        else:
            _, n, k, m, group, zeros = task
        return [(c, group, zeros, c.even(k), n % 8 == 0) for c in self.configs(task)]

    def kernel(self, job):
        import kernels

        if job not in self.compiled:
            future = self.futures.get(job)
            if future is not None:
                detail = future.result(timeout=max(1.0, self.left()))
                if detail:
                    raise RuntimeError("compile: " + detail)
            kernel = kernels.compile_config(*job)  # from the disk cache
            kernel._init_handles()
            self.compiled[job] = kernel
        return self.compiled[job]

    def launcher(self, c, group, zeros, x, weights, out, n, k):
        import kernels

        words, meta, np_ = weights
        even = c.even(k)
        kernel = self.kernel((c, group, zeros, even, n % 8 == 0))
        m = x.shape[0]
        grid = c.grid(m, n)
        tiles = grid // c.split_k
        assert c.split_k == 1 or (tiles <= self.counters.numel() and grid * c.bn * c.bm <= self.workspace.numel()), "scratch"
        arguments = kernels.arguments(
            c, group, zeros, even, x, words, meta, np_, out, self.workspace, self.counters, m, n, k
        )  # fmt: skip
        run, function, metadata = kernel.run, kernel.function, kernel.packed_metadata

        def launch() -> None:
            run(grid, 1, 1, self.stream.cuda_stream, function, metadata, None, None, None, *arguments)

        return launch

    def check(self, c, launch, out, expected) -> tuple[str, float]:
        torch = self.torch
        results = []
        for _ in range(2):
            out.fill_(math.nan)
            launch()
            results.append(out.clone())
        self.stream.synchronize()
        error = (results[0].float() - expected).norm() / expected.norm()
        worst = ((results[0].float() - expected).abs().max() / expected.square().mean().sqrt()).item()
        rel = error.item()
        if not math.isfinite(rel) or rel > 0.006 or worst > 0.1:
            return f"WRONG worst={worst:.3g}", rel
        if not torch.equal(results[0], results[1]):
            return "NONDETERMINISTIC", rel
        return "ok", rel

    # data

    def make(self, n, k, group, zeros, seed=0):
        torch = self.torch
        import kernels

        g = torch.Generator(device="cuda").manual_seed(seed)
        q = torch.randint(0, 16, (n, k), device="cuda", generator=g, dtype=torch.int32)
        s = (torch.rand((n, k // group), device="cuda", generator=g) * 0.5 + 0.5).mul_(0.2 / math.sqrt(k)).bfloat16()
        z = torch.randint(0, 16, (n, k // group), device="cuda", generator=g) if zeros else None
        exact = q.float() - (z.float().repeat_interleave(group, 1) if zeros else 8.0)
        exact *= s.float().repeat_interleave(group, 1)
        return q, s, exact, kernels.pack(q, s, z, group)

    def ragged(self, m, n, k, group, zeros) -> None:
        torch = self.torch
        _, _, exact, packed = self.make(n, k, group, zeros)
        wide = torch.randn((m, k + 8), device="cuda").bfloat16()
        x = wide[:, :k]
        expected = (x.double() @ exact.double().T).float()
        out = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")
        for c in ragged_configs(m):
            self.try_one(c, group, zeros, x, packed, out, expected, n, k, m)

    def try_one(self, c, group, zeros, x, packed, out, expected, n, k, m):
        """The launcher, or None where the config does not work."""
        key = f"{c.key()}_g{group}{'z' if zeros else ''}"
        if key in self.bad:
            return None
        row = dict(what="check", key=key, n=n, k=k, m=m, group=group, zeros=zeros)
        try:
            launch = self.launcher(c, group, zeros, x, packed, out, n, k)
            self.write(what="running", key=key)
            status, rel = self.check(c, launch, out, expected)
            self.write(what="ran")
            self.write(**row, status=status, rel=rel)
            if status != "ok":
                print("  ", key, m, n, k, status, f"{rel:.4g}", flush=True)
            return launch if status == "ok" else None
        except Exception as error:  # noqa: BLE001
            text = f"{type(error).__name__}: {str(error)[:300]}"
            self.write(**row, status=text, rel=None)
            print("  ", key, m, n, k, text[:150], flush=True)
            self.torch.cuda.synchronize()
            return None

    def prepare(self, n, k, group, zeros) -> None:
        """Weights of one shape, in as many copies as L2 cannot hold."""
        torch = self.torch
        if self.shape == (n, k, group, zeros):
            return
        self.shape, self.weights, self.tiny, self.dense = None, None, None, None
        torch.cuda.empty_cache()
        q, s, exact, packed = self.make(n, k, group, zeros)
        copies = max(2, math.ceil(COLD_BYTES / (n * k / 2)))
        words, meta, np_ = packed
        self.weights = [packed] + [(torch.roll(words, i), meta.clone(), np_) for i in range(1, copies)]
        self.dense = [exact.bfloat16() for _ in range(max(2, math.ceil(COLD_BYTES / (n * k * 2))))]
        try:
            both = (q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8).contiguous()
            tiny = torch.ops.aten._convert_weight_to_int4pack(both, 8)
            st = s.t().contiguous()
            zt = torch.zeros_like(st)
            sz = torch.stack([st, zt], dim=-1).contiguous()
            self.tiny = [(tiny.clone(), sz.clone()) for _ in range(copies)]
        except Exception as error:  # noqa: BLE001
            print("   tinygemm:", str(error)[:200], flush=True)
        self.exact, self.shape = exact, (n, k, group, zeros)

    # timing

    def capture(self, launches, count: int):
        torch = self.torch
        graph = torch.cuda.CUDAGraph()
        self.stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for index in range(count):
                launches[(self.window + index) % len(launches)]()
        finally:
            graph.capture_end()
        self.window = self.window + count
        graph.replay()
        self.stream.synchronize()
        return graph

    def replay(self, graph, count: int) -> float:
        torch = self.torch
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / count

    def time(self, n, k, m, group, zeros, configs=None) -> list:
        torch = self.torch
        self.prepare(n, k, group, zeros)
        self.window = 0
        x = torch.randn((m, k), device="cuda", generator=torch.Generator(device="cuda").manual_seed(1)).bfloat16()
        exact = self.exact
        with torch.no_grad():
            torch.backends.cuda.matmul.allow_tf32 = False
            expected = x.float() @ exact.T
        out = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")
        racers = []  # name, graph, count, samples
        ideal = n * k / 2 / GB_S / 1e3
        if self.dense:
            launches = [lambda w=w: torch.mm(x, w.t(), out=out) for w in self.dense]
            launches[0]()
            count = max(4, min(40, int(200 / (4 * ideal + 2))))
            racers.append(["mm", self.capture(launches, count), count, []])
        if self.tiny:
            try:
                launches = [lambda w=w, sz=sz: torch._weight_int4pack_mm(x, w, group, sz) for w, sz in self.tiny]
                got = launches[0]().float()
                rel = ((got - expected).norm() / expected.norm()).item() if not zeros else -1.0
                count = max(4, min(48, int(200 / (2 * ideal + 2))))
                racers.append(["tinygemm", self.capture(launches, count), count, []])
                self.write(what="check", key="tinygemm", n=n, k=k, m=m, group=group, zeros=zeros, status="vendor", rel=rel)
            except Exception as error:  # noqa: BLE001
                print("   tinygemm:", str(error)[:200], flush=True)
        count = max(4, min(64, int(200 / (ideal + 1.5))))
        names = {}
        for c in configs or candidates(m, n, k):
            if self.left() < 3:
                break
            if self.try_one(c, group, zeros, x, self.weights[0], out, expected, n, k, m) is None:
                continue
            launches = [self.launcher(c, group, zeros, x, w, out, n, k) for w in self.weights]
            names[c.key()] = c
            racers.append([c.key(), self.capture(launches, count), count, []])
        vendors = ("mm", "tinygemm")
        for _ in range(3):
            for racer in racers:
                racer[3].append(self.replay(racer[1], racer[2]))
        best = min((min(r[3]) for r in racers), default=0)
        kept = [r for r in racers if r[0] in vendors or min(r[3]) < 1.25 * best or r[0].endswith("_p0")]
        for _ in range(8):
            if self.left() < 1.5:
                break
            for racer in kept:
                racer[3].append(self.replay(racer[1], racer[2]))
        rows = sorted((statistics.median(r[3]), r[0]) for r in racers)
        self.write(what="time", n=n, k=k, m=m, group=group, zeros=zeros, us=[[name, round(us, 3)] for us, name in rows])
        ours = [(us, name) for us, name in rows if name not in vendors]
        vendor = {name: us for us, name in rows if name in vendors}
        if ours:
            us, name = ours[0]
            parts = " ".join(f"{v} {vendor[v]:.2f} ({vendor[v] / us:.2f}x)" for v in vendors if v in vendor)
            print(f"n={n} k={k} m={m} g={group}{'z' if zeros else ''}: {us:.2f} us {name}  {parts}", flush=True)
        return [names[name] for _, name in ours if name in names]

    def other_groups(self) -> None:
        """The best configs of group 128 with groups of 32 and 64, and with zero points."""
        n, k = 4096, 4096
        for m in (1, 16, 64):
            best = []
            for line in open(self.out):
                row = json.loads(line)
                if row["what"] == "time" and (row["n"], row["k"], row["m"], row["group"]) == (n, k, m, 128) and not row["zeros"]:
                    best = [name for name, _ in row["us"]]
            by_key = {c.key(): c for c in candidates(m, n, k)}
            from dataclasses import replace

            top = [by_key[name] for name in best if name in by_key][:4]
            top += [replace(c, scale=1 - c.scale) for c in top[:2]]
            top = list(dict.fromkeys(top))
            for group, zeros in ((32, False), (64, False), (128, True), (32, True)):
                for c in top:
                    job = (c, group, zeros, c.even(k), True)
                    if job not in self.futures:
                        self.futures[job] = self.pool.submit(compile_job, job)
        for group, zeros in ((32, False), (64, False), (128, True), (32, True)):
            for m in (1, 16, 64):
                if self.left() < 6:
                    return
                configs = [j[0] for j in self.futures if j[1] == group and j[2] == zeros and j[4]]
                want = {1: (8, 16), 16: (16,), 64: (64,)}[m]
                configs = [c for c in dict.fromkeys(configs) if c.bm in want and c.even(k) and c.legal(m, n, k)]
                try:
                    self.time(n, k, m, group, zeros, configs[:10])
                except Exception as error:  # noqa: BLE001
                    print("FAILED group", group, zeros, m, str(error)[:200], flush=True)
                    self.torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------- the supervisor


def tables(path: str, out: str) -> None:
    rows = [json.loads(line) for line in open(path)]
    times = [row for row in rows if row["what"] == "time"]
    checks = [row for row in rows if row["what"] == "check" and row["status"] != "vendor"]
    wrong = [row for row in checks if row["status"] != "ok"]
    json.dump(rows, open(out, "w"))
    good = [row["rel"] for row in checks if row["status"] == "ok"]
    print(f"\n{len(checks)} checks, {len(wrong)} not ok; relative error of the ok ones at most {max(good, default=-1):.5f}")
    for row in wrong[:8]:
        print("   ", row["key"], (row["m"], row["n"], row["k"]), row["status"][:110])
    print(f"{'n':>6} {'k':>6} {'m':>4} {'g':>4} {'us':>7} {'mm':>7} {'x':>5} {'tiny':>7} {'x':>5} {'%bw':>4}  config (next best)")
    for row in times:
        us = dict(row["us"])
        ours = [(t, name) for name, t in row["us"] if name not in ("mm", "tinygemm")]
        if not ours:
            continue
        best, name = min(ours)
        mm, tiny = us.get("mm", math.nan), us.get("tinygemm", math.nan)
        bytes_ = row["n"] * row["k"] * (0.5 + (4 if row["zeros"] else 2) / row["group"])
        second = sorted(ours)[1] if len(ours) > 1 else (math.nan, "")
        print(
            f"{row['n']:>6} {row['k']:>6} {row['m']:>4} {str(row['group']) + ('z' if row['zeros'] else ''):>4} {best:>7.2f} {mm:>7.2f}"
            f" {mm / best:>5.2f} {tiny:>7.2f} {tiny / best:>5.2f} {100 * bytes_ / best / 1e3 / GB_S:>4.0f}  {name} ({second[0]:.2f} {second[1]})"
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--out", default="int4_results.json")
    parser.add_argument("--shapes", default="", help="such as 4096x4096,8192x8192 (n x k)")
    parser.add_argument("--ms", default="", help="such as 1,8,32")
    parser.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 4))
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--deadline", type=float, default=0)
    parser.add_argument("--bad", default="")
    args = parser.parse_args()
    if args.worker:
        Worker(args).run()
        return
    path = args.out + "l"
    if os.path.exists(path):
        os.remove(path)
    deadline = time.time() + args.seconds - 3
    bad: list[str] = []
    for _ in range(6):
        command = [sys.executable, os.path.abspath(__file__), "--worker", *sys.argv[1:], "--deadline", str(deadline)]
        if bad:
            command += ["--bad", ",".join(bad)]
        # A session of its own, so that compiling children never outlive it.
        worker = subprocess.Popen(command, start_new_session=True)
        try:
            code = worker.wait(timeout=max(5.0, deadline - time.time() + 2))
        except subprocess.TimeoutExpired:
            print("stopped: out of time", flush=True)
            code = None
        try:
            os.killpg(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        worker.wait()
        if code is None:
            break
        if code == 0 or deadline - time.time() < 12:
            break
        running = None
        for line in open(path) if os.path.exists(path) else []:
            row = json.loads(line)
            running = row["key"] if row["what"] == "running" else None if row["what"] == "ran" else running
        print(f"worker ended with {code}; it was running {running}", flush=True)
        if running:
            bad.append(running)
    if os.path.exists(path):
        tables(path, args.out)


if __name__ == "__main__":
    main()
