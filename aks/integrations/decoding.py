"""Decode steps of Hugging Face models with random weights, timed: what patching and quantising are worth there."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (  # pyright: ignore[reportMissingImports]  # the extra of that name brings it
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    StaticCache,
)

from aks.core.errors import BenchError
from aks.integrations.fusing import FUSIONS
from aks.integrations.patching import patch, unpatch
from aks.integrations.quantized import PRECISIONS
from aks.integrations.quantized_ops import vendor_only
from aks.integrations.quantizing import SKIPPED, exchange, kind_of, reason_to_skip, settle
from aks.integrations.summary import linear_layers
from aks.ops.quantize_rows.spec import QUANTIZE_ROWS

WAYS = ("eager", "graph", "compiled")
"""How a step runs: op by op; replayed from a CUDA graph; by ``torch.compile(mode="max-autotune")``."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What runs a model.

    fusions: of ``aks.patch``; None: it is not patched. precision: what ``aks.quantize`` makes of it first, with these
    options; empty: it stays as it is. vendor: ops of quantised layers that PyTorch's kernels do (``torch._scaled_mm``,
    ``torch._int_mm``, tinygemm).
    """

    fusions: Collection[str] | None = None
    precision: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    vendor: Collection[str] = ()


_QUANTIZED: dict[str, tuple[str, tuple[tuple[str, Any], ...]]] = {
    **{name: (name, ()) for name in PRECISIONS},
    "fp8-block": ("fp8", (("scaling", "block"),)),
}
"""Precision and options of ``aks.quantize`` by name."""


def _quantized_kernels(name: str, fusions: Collection[str] | None, *more: str) -> Kernels:
    """Kernels of an entry of ``_QUANTIZED`` with products by the vendor, and these ops."""
    precision, options = _QUANTIZED[name]
    return Kernels(fusions, precision, options, (PRECISIONS[precision].op.name, *more))


KERNELS = {
    "torch": Kernels(),
    "aks": Kernels(FUSIONS),
    **{name: Kernels(FUSIONS, *how) for name, how in _QUANTIZED.items()},
    **{f"{name}-vendor-mm": _quantized_kernels(name, FUSIONS) for name in _QUANTIZED},
    **{f"{name}-vendor": _quantized_kernels(name, None, QUANTIZE_ROWS.name) for name in _QUANTIZED},
}
"""By name: PyTorch's kernels; a patched model; quantised and patched; that, but for its products, which are the
vendor's; quantised, and all by PyTorch's kernels."""
BF16_KERNELS = {name: KERNELS[name] for name in ("torch", "aks")}
EACH_FUSION = {
    "torch": Kernels(),
    **{"+".join(("linear", *FUSIONS[:count])): Kernels(FUSIONS[:count]) for count in range(len(FUSIONS) + 1)},
}
"""The same with one fusion more each."""
_WARM_STEPS = 3
_COMMON = {"max_position_embeddings": 8192, "use_cache": True}


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, **rest: Any) -> Any:
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocab, **_COMMON, **rest,
    )  # fmt: skip


# Sizes as their makers publish them; tiny is for trying the command.
MODELS: dict[str, Callable[[], Any]] = {
    "llama-8b": lambda: _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-1b": lambda: _llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
    "qwen2-7b": lambda: Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, **_COMMON,
    ),
    "qwen3-8b": lambda: Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, **_COMMON,
    ),
    "gemma3-4b": lambda: Gemma3TextConfig(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8,
        num_key_value_heads=4, head_dim=256, vocab_size=262208, sliding_window=1024, **_COMMON,
    ),
    "gpt-oss-20b": lambda: GptOssConfig(
        hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64,
        num_key_value_heads=8, head_dim=64, num_local_experts=32, num_experts_per_tok=4, vocab_size=201088,
        sliding_window=128, **_COMMON,
    ),
    "tiny": lambda: _llama(256, 512, 2, 4, 2, 1024),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """Tokens a second of one way to decode: the median of the rounds, the slowest and the fastest.

    logits_error is that of the first step's logits against PyTorch's kernels in eager mode: the norm of
    the difference over the norm.
    """

    batch: int
    way: str
    kernels: str
    tokens_per_s: float
    slowest: float
    fastest: float
    logits_error: float


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens in the cache before the first step, steps of a round, and rounds."""

    context: int = 128
    steps: int = 64
    rounds: int = 5


def make_model(name: str, *, device: str, dtype: torch.dtype = torch.bfloat16, layers: int = 0, seed: int = 0) -> Any:
    """A causal language model of that config with random weights, in evaluation mode.

    Parameters
    ----------
    name : str
        One of ``MODELS``.
    layers : int
        How many, instead of the config's; 0: its own.

    Raises
    ------
    BenchError
        If the name is unknown.
    """
    if name not in MODELS:
        raise BenchError(f"no model {name!r}; known: {', '.join(MODELS)}")
    config = MODELS[name]()
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


class Decoder:
    """One batch of sequences that a model goes on with, greedily, a token each at every step.

    Memory is allocated once and stays where it is, as CUDA graphs need it. ``rewind`` goes back to the
    context, so that every round does the same.
    """

    def __init__(self, model: Any, batch: int, length: Length, *, seed: int = 0) -> None:
        self.model = model
        self._context = length.context
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        prompt = torch.randint(model.config.vocab_size, (batch, length.context + 1), device=device, generator=generator)
        self._cache = StaticCache(config=model.config, max_cache_len=length.context + length.steps + _WARM_STEPS + 1)
        self._first = prompt[:, -1:]
        self._tokens = self._first.clone()
        self._position = torch.full((1, 1), length.context, device=device)
        self._run(model, prompt[:, :-1], torch.arange(length.context, device=device)[None])
        self.rewind()

    def rewind(self) -> None:
        """Forget the steps that were made."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._context)  # type: ignore[attr-defined]
            if hasattr(layer, "cumulative_length_int"):
                layer.cumulative_length_int = self._context  # type: ignore[attr-defined]
        self._position.fill_(self._context)
        self._tokens.copy_(self._first)

    def step(self, call: Callable[..., Any]) -> Tensor:
        """One token more, ``call`` being the model or what compiles it: logits [batch, vocabulary]."""
        logits = self._run(call, self._tokens, self._position)
        self._tokens.copy_(logits.argmax(-1, keepdim=True))
        self._position.add_(1)
        return logits

    def _run(self, call: Callable[..., Any], tokens: Tensor, position: Tensor) -> Tensor:
        output = call(
            input_ids=tokens, position_ids=position, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1]


@torch.no_grad()
def bench_decode(
    model: Any,
    batches: Sequence[int],
    ways: Sequence[str] = WAYS,
    length: Length | None = None,
    *,
    kernels: Mapping[str, Kernels] = BF16_KERNELS,
    static_weights: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[DecodeRate]:
    """Decode rates of a model (``make_model``) with each kind of kernels, of each batch and way.

    Of each way the kinds of kernels take turns, round by round; the ways come one after the other:
    with PyTorch 2.11's own kernels too, a graph that was captured by hand and one of
    ``torch.compile(mode="max-autotune")`` in turns ended in illegal memory accesses. static_weights is
    for ``aks.patch``. The model is left as it came; quantised layers take memory beside it.

    Raises
    ------
    BenchError
        If a way is unknown or needs a GPU that is not there, or a sequence outgrows a sliding window.
    """
    length = length or Length()
    _check(model, batches, ways, length)

    quantized = {how: _quantized(model, *how) for how in {(one.precision, one.options) for one in kernels.values()}}

    @contextmanager
    def patched(kind: str) -> Iterator[None]:
        one = kernels[kind]
        layers, fusions = quantized[one.precision, one.options], one.fusions
        exchange(model, layers)
        if fusions is not None:
            patch(model, static_weights=static_weights, fuse=fusions, verbose=False)
        try:
            with vendor_only(one.vendor):
                yield
        finally:
            if fusions is not None:
                unpatch(model, verbose=False)
            exchange(model, {new: old for old, new in layers.items()})

    def in_turns(decoder: Decoder, reference: Tensor, batch: int, way: str) -> Iterator[DecodeRate]:
        torch.compiler.reset()
        runs: dict[str, Callable[[], Tensor]] = {}
        seconds: dict[str, list[float]] = {}
        errors: dict[str, float] = {}
        # A compiler that has many versions of a function refuses the next.
        with torch._dynamo.config.patch(recompile_limit=8 * len(kernels)):
            for kind in kernels:
                say(f"batch {batch}: preparing {way}, {kind}")
                with patched(kind):
                    run = runs[kind] = _PREPARE[way](decoder)
                    decoder.rewind()
                    error = (run().float() - reference).norm() / reference.norm()
                    errors[kind], seconds[kind] = float(error), []
            for _ in range(length.rounds):
                for kind, run in runs.items():
                    with patched(kind):
                        seconds[kind].append(_time(decoder, run, length.steps))
        for kind in kernels:
            taken = [batch * length.steps / one for one in seconds[kind]]
            yield DecodeRate(batch, way, kind, median(taken), min(taken), max(taken), errors[kind])

    rates = []
    for batch in batches:
        decoder = Decoder(model, batch, length)
        reference = decoder.step(model).float().clone()
        for way in ways:
            rates += in_turns(decoder, reference, batch, way)
    return rates


def _quantized(model: nn.Module, precision: str, options: tuple[tuple[str, Any], ...]) -> dict[nn.Module, nn.Module]:
    """Layers of a model, and what they are at that precision: those that ``aks.quantize`` replaces."""
    if not precision:
        return {}
    kind = kind_of(precision)
    made: dict[nn.Module, nn.Module] = {
        layer: kind.from_linear(layer, **dict(options))
        for name, layer in linear_layers(model)
        if not reason_to_skip(name, layer, SKIPPED, kind, **dict(options))
    }
    settle(made.values())
    return made


def _check(model: Any, batches: Sequence[int], ways: Sequence[str], length: Length) -> None:
    unknown = set(ways) - set(WAYS)
    if unknown or not ways or not batches or min(batches) < 1:
        raise BenchError(f"ways {', '.join(ways)}, batches {batches}; wanted of {', '.join(WAYS)}, and from 1 up")
    if min(length.context, length.steps, length.rounds) < 1:
        raise BenchError(f"{length}; wanted at least 1 of each")
    if set(ways) != {"eager"} and next(model.parameters()).device.type != "cuda":
        raise BenchError(f"ways {', '.join(ways)} need a CUDA GPU; the model is on none: leave all but eager out")
    longest = length.context + length.steps + _WARM_STEPS + 1
    window = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None) or []
    if window and "sliding_attention" in kinds and longest > window:
        raise BenchError(
            f"{longest} tokens (context, steps and a few) outgrow the sliding window of {window}, which a CUDA graph "
            "of one step cannot follow; shorten the context or the steps"
        )
    if longest > model.config.max_position_embeddings:
        raise BenchError(f"{longest} tokens are more than the model's {model.config.max_position_embeddings}; shorten")


def _time(decoder: Decoder, run: Callable[[], Tensor], steps: int) -> float:
    """Seconds of so many steps."""
    decoder.rewind()
    run()
    decoder.rewind()
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _prepare_eager(decoder: Decoder) -> Callable[[], Tensor]:
    def run() -> Tensor:
        return decoder.step(decoder.model)

    return _warm(decoder, run)


def _prepare_graph(decoder: Decoder) -> Callable[[], Tensor]:
    run = _prepare_eager(decoder)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _warm(decoder, run)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        logits = run()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def _prepare_compiled(decoder: Decoder) -> Callable[[], Tensor]:
    model: nn.Module = decoder.model
    compiled = torch.compile(model.forward, mode="max-autotune", fullgraph=True, dynamic=False)

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return decoder.step(compiled)

    return _warm(decoder, run)


def _warm(decoder: Decoder, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What is compiled or allocated at a first step is there after these."""
    decoder.rewind()
    for _ in range(_WARM_STEPS):
        run()
    return run


_PREPARE = {"eager": _prepare_eager, "graph": _prepare_graph, "compiled": _prepare_compiled}
