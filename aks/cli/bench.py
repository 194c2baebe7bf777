"""``aks bench``: what serving costs on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aks.cli.options import Seed, command_line, split_integers, split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aks.integrations.decoding import DecodeRate

bench = typer.Typer(help="Measure what serving costs on this machine.", no_args_is_help=True)


@bench.command()
def dispatch(
    bundle: Annotated[Path, typer.Option(help="Folder that 'aks export --bundle' wrote for this GPU.")],
    calls: Annotated[int, typer.Option(help="Calls that are timed, of each way and shape.")] = 5000,
    problems: Annotated[
        int, typer.Option(help="Random problems that are launched while nothing may be loaded.")
    ] = 10_000,
) -> None:
    """Time the host's part of a call: native dispatcher, aks.linear, PyTorch, the bare driver call.

    Then launch random problems and say what was compiled, loaded or allocated meanwhile: nothing.

    \b
    Examples:
      aks bench dispatch --bundle bundles/gemm/h200
    """
    from aks.evaluate.dispatch import bench_dispatch, check_steady

    print(f"{'shape':>16}  {'way':<40}{'median us':>10}{'p99 us':>10}")
    for row in bench_dispatch(bundle, calls=calls):
        p99 = "" if row["p99_us"] is None else f"{row['p99_us']:.2f}"
        memory = f"   {row['device_mib']:.0f} MiB of the GPU's memory" if "device_mib" in row else ""
        print(f"{row['shape']:>16}  {row['way']:<40}{row['median_us']:>10.2f}{p99:>10}{memory}")
    steady = check_steady(bundle, problems=problems)
    print(
        f"{steady['problems']} random problems, {steady['left_to_libraries']} of them left to the vendor's libraries:"
    )
    for name, value in steady["after"].items():
        print(f"  {name:<26}{steady['before'][name]:>8} -> {value}")


@bench.command()
def decode(
    model: Annotated[
        str, typer.Option(help="llama-8b, llama-1b, qwen2-7b, qwen3-8b, gemma3-4b, gpt-oss-20b or tiny.")
    ] = "llama-8b",
    batches: Annotated[str, typer.Option(help="Sequences decoded at once, comma-separated.")] = "1",
    ways: Annotated[
        str, typer.Option(help="eager, graph (a CUDA graph of a step), compiled (max-autotune); comma-separated.")
    ] = "eager,graph,compiled",
    kernels: Annotated[
        str,
        typer.Option(
            help="torch (as it is), aks (patched), fp8, fp8-block, int8, int4 (quantised and patched); these with "
            "-vendor-mm behind the name (products by torch._scaled_mm and such) or with -vendor (not patched, all by "
            "PyTorch's kernels); comma-separated."
        ),
    ] = "torch,aks",
    context: Annotated[int, typer.Option(min=1, help="Tokens before the first step.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Tokens of a round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each way, in turns; the median counts.")] = 5,
    layers: Annotated[int, typer.Option(min=0, help="So many layers instead of the model's; 0: its own.")] = 0,
    each_fusion: Annotated[
        bool, typer.Option("--each-fusion", help="Patched with linear layers alone, then with one fusion more each.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where, as PyTorch names it; on cpu, eager alone.")] = "cuda",
    seed: Seed = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
) -> None:
    """Time decode steps of a Hugging Face model: with PyTorch's kernels, patched (aks.patch), quantised (aks.quantize).

    Weights are random, sequences have the same length, the cache is static, the next token is the likeliest. Of
    each way the kinds of kernels take turns. Needs the 'transformers' extra. Compiling an 8B model takes minutes:
    for a quick trial take fewer layers.

    \b
    Examples:
      aks bench decode --batches 1,16 --json decode.json
      aks bench decode --model llama-1b --layers 4 --ways eager,graph
      aks bench decode --model gpt-oss-20b --context 32 --steps 32
      aks bench decode --ways graph --each-fusion
      aks bench decode --ways graph --kernels torch,aks,fp8,fp8-vendor-mm,fp8-vendor
    """
    from importlib.metadata import version

    from aks.collect.environment import current_environment
    from aks.integrations.decoding import EACH_FUSION, KERNELS, Length, bench_decode, make_model
    from aks.integrations.patching import patch, unpatch

    sizes, words = split_integers(batches, "batches"), split_words(ways, "ways")
    kinds = split_words(kernels, "kernels", KERNELS)
    chosen = EACH_FUSION if each_fusion else {kind: KERNELS[kind] for kind in kinds}
    made = make_model(model, device=_available(device), layers=layers, seed=seed)
    summary = patch(made)
    unpatch(made, verbose=False)
    length = Length(context, steps, rounds)
    rates = bench_decode(made, sizes, words, length, kernels=chosen, say=lambda line: print(line, file=sys.stderr))
    about = {"command": command_line(), "device": _device_name(made), **asdict(current_environment())}
    about["transformers"] = version("transformers")
    _print_rates(about, rates)
    if json_out:
        document = {
            **about,
            "model": model,
            "layers": made.config.num_hidden_layers,
            **asdict(length),
            "replaced": len(summary.replaced),
            "skipped": summary.skipped,
            "fused": summary.fused,
            "rates": [asdict(rate) for rate in rates],
        }
        json_out.write_text(json.dumps(document, indent=1) + "\n")


@bench.command()
def serving(
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder that 'aks export --bundle' wrote for this GPU; without: Triton compiles."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the trace.")] = 5000,
    batch: Annotated[int, typer.Option(min=2, help="Most sequences of a step.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Blocks of Llama-3-8B; 0.44 GB and some 0.2 ms each.")] = 8,
    ways: Annotated[
        str,
        typer.Option(
            help="aks, torch, torch prepared, autotune, autotune cold, aks graphs, torch graphs; comma-separated."
        ),
    ] = "aks,torch,torch prepared,autotune,autotune cold,aks graphs,torch graphs",
    fixed_batch: Annotated[
        int, typer.Option(min=1, help="Rows of the steps of one size, and of a first request.")
    ] = 16,
    fixed_steps: Annotated[int, typer.Option(min=1, help="How many steps of one size.")] = 1000,
    cold_seconds: Annotated[float, typer.Option(min=1, help="As long the cold autotuner may serve.")] = 20,
    seed: Seed = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all figures there.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML page there; needs jinja2, matplotlib, pandas and pyarrow.")
    ] = None,
) -> None:
    """Time steps of a server whose batch changes all the time: p50, p99 and p99.9, of aks, PyTorch and autotuning.

    A step is all linear layers of some blocks of an 8B model; its latency is the host's clock until the GPU is done.
    The batch changes at every step, in bursts, and speculation multiplies it by 2 to 8 now and then. All ways serve
    the same steps by turns, but 'autotune cold', which tunes while it serves and would need hours. Then steps of one
    size, and the first request of a new process after loading. NVML says how busy the GPU is.

    \b
    Examples:
      aks bench serving --bundle bundles/gemm/h200 --json serving.json --report serving.html
      aks bench serving --bundle bundles/gemm/h200 --steps 500 --layers 2 --ways aks,torch
    """
    from functools import partial

    from aks.collect.environment import current_environment
    from aks.evaluate.blocks import Load
    from aks.evaluate.serving import bench_serving
    from aks.evaluate.serving_table import device_name, serving_row, serving_table
    from aks.integrations.torch_ops import linear

    if report:  # before minutes are spent, should something be missing
        from aks.evaluate.serving_report import write_serving_report
    load = Load(steps, batch, layers, fixed_batch, fixed_steps, cold_seconds, seed)
    result = bench_serving(
        partial(linear, static_weights=True),
        load,
        bundle=bundle,
        ways=split_words(ways, "ways"),
        say=lambda line: print(line, file=sys.stderr),
    )
    about = {"command": command_line(), "device": device_name(), **asdict(current_environment())}
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "command"))
    print(serving_table(result))
    if json_out:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(json.dumps({**about, "load": asdict(load), **serving_row(result)}, indent=1) + "\n")
    if report:
        write_serving_report(result, load, about, report)


def _available(device: str) -> str:
    import torch

    from aks.core.errors import BenchError

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchError(f"device is {device!r}, but no CUDA GPU is visible; use a machine with one, or cpu")
    return device


def _device_name(model: Any) -> str:
    import torch

    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _print_rates(about: dict[str, str], rates: Sequence[DecodeRate]) -> None:
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "command"))
    print(f"{'batch':>5} {'way':<9} {'kernels':<14} {'tokens/s':>10} {'slowest':>10} {'fastest':>10}", end="")
    print(f" {'over torch':>11} {'over compiled':>14} {'logits differ':>14}")
    known = {(rate.batch, rate.way, rate.kernels): rate.tokens_per_s for rate in rates}
    for rate in rates:
        ratios = [
            f"{rate.tokens_per_s / known[key]:.3f}" if key in known else ""
            for key in ((rate.batch, rate.way, "torch"), (rate.batch, "compiled", "torch"))
        ]
        print(
            f"{rate.batch:>5} {rate.way:<9} {rate.kernels:<14} {rate.tokens_per_s:>10.1f} {rate.slowest:>10.1f} "
            f"{rate.fastest:>10.1f} {ratios[0]:>11} {ratios[1]:>14} {rate.logits_error:>14.2g}"
        )
