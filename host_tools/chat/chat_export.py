"""From a Hugging Face folder to a folder that `pack` takes: graphs, tokenizer, and chat.json.

chat.json         what is here, see `ChatExport`
tokenizer.json    as a device opens it
template.jinja    if the model has a chat template
PRECISION.onnx    a graph for each precision, and its weights beside it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

import msgspec

from calibration.errors import GateError
from edge import __version__
from edge.chat.quality_facts import ChatQuality
from edge.chat.sampling_defaults import SamplingDefaults
from edge.chat.spec import GOLDEN_ROWS, DecoderSpec, Form
from edge.chat.template import ChatTemplate
from edge.chat.tokenizer import MAX_PROMPT_CHARACTERS, ChatTokenizer
from edge.errors import UsageError
from edge.files import atomic_directory, read_capped, storage_errors
from edge.manifest import Precision
from host_tools.chat.build_engines import source_sha256
from host_tools.chat.calibrate import calibrate_chat
from host_tools.chat.compare import compare_with_transformers
from host_tools.chat.fitting import check_export, check_graph, known_device
from host_tools.chat.layerwise import IntArray
from host_tools.chat.llm_spec import has_writer, llm_spec_from_folder
from host_tools.chat.plan import Widths, widths_of
from host_tools.chat.quality import LIMITS, WINDOW, measure_quality, quality_problems, token_windows
from host_tools.chat.scaling import Calibration, Quantized
from host_tools.chat.sizes import Head
from host_tools.chat.talk_files import TalkFiles, talk_files_from_folder
from host_tools.chat.traced import write_traced
from host_tools.chat.writer import DEFAULT_CONTEXT, WriteOptions, write_decoder
from host_tools.graph import Say

RECORD_NAME = "chat.json"
TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "template.jinja"
MAX_RECORD_BYTES = 4 << 20
SCHEMA = 1
DEFAULT_HEAD: Head = "int8"
MAX_TEXT_BYTES = 64 << 20
HELD_OUT = 4  # a part of so many is judged on
CALIBRATION_TOKENS = 4096
QUALITY_TOKENS = 2048  # a minute of two cores for a model of 250 million parameters
# The most exact first: golden logits come from the first there is.
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "w8a8", "int4")
# Those that text makes better, or possible at all.
CALIBRATED: tuple[Quantized, ...] = ("int8", "w8a8", "int4")
GOLDEN_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and rests in the shade of an old oak.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "1, 1, 2, 3, 5, 8, 13, 21, 34,",
)
GOLDEN_QUESTION = "What is the capital of France, and which river runs through it?"
GOLDEN_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatExportOptions:
    """What to export.

    adapters: see `WriteOptions`. text: a file of plain text that the model should be good at; the
    quality of each precision is measured on its end. force: write what fails its limits too.
    compare: with transformers, which needs memory for the model in fp32. head: of int4.
    target: a device that everything must fit, as far as anyone knows beforehand. trace: trace the
    module of transformers although there is a writer for it.
    """

    folder: Path
    out: Path
    precisions: tuple[Precision, ...] = ("fp32",)
    form: Form = "scatter-primitive"
    context: int | None = None
    adapters: tuple[Path, ...] = ()
    text: Path | None = None
    force: bool = False
    compare: bool = True
    head: Head = DEFAULT_HEAD
    target: str | None = None
    trace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedVariant:
    """One graph of the folder. quality: against the most exact one of them."""

    precision: Precision
    file: str
    decoder: DecoderSpec
    quality: ChatQuality | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatExport:
    """The content of chat.json.

    source, source_sha256: the folder's name, and the digest of all that the weights come from.
    widths: what the memory of a step is counted with.
    golden: prompts of at least GOLDEN_ROWS tokens.
    """

    schema: int
    source: str
    source_sha256: str
    widths: Widths
    has_template: bool
    tokens: dict[str, str]
    sampling: SamplingDefaults
    golden: tuple[tuple[int, ...], ...]
    variants: tuple[ExportedVariant, ...]
    tools: dict[str, str]


# Writes the graphs into a folder, and says what the record holds of them.
Write = Callable[[Path], tuple[Widths, list[ExportedVariant]]]


def export_chat(options: ChatExportOptions, *, say: Say) -> ChatExport:
    """Write options.out, whole or not at all, and return its record.

    Raises UsageError, ExportError or ModelError for a folder that cannot be exported, ParityError
    if the most exact graph does not compute what transformers does, and GateError if a precision
    loses more than its limits.
    """
    talk = talk_files_from_folder(options.folder)
    golden = golden_prompts(talk)
    is_traced = options.trace or not has_writer(options.folder)
    write = _tracing(options, say) if is_traced else _writing(options, talk, say)
    with storage_errors("write", options.out), atomic_directory(options.out) as scratch:
        (scratch / TOKENIZER_NAME).write_bytes(talk.tokenizer)
        if talk.template is not None:
            (scratch / TEMPLATE_NAME).write_text(talk.template, encoding="utf-8")
        widths, variants = write(scratch)
        if options.compare and options.adapters:
            say("not compared with transformers, which does not know the adapters")
        elif options.compare:
            say(compare_with_transformers(options.folder, scratch / variants[0].file, golden))
        record = ChatExport(
            schema=SCHEMA,
            source=options.folder.resolve().name,
            source_sha256=source_sha256(options.folder, options.adapters),
            widths=widths,
            has_template=talk.template is not None,
            tokens=talk.tokens,
            sampling=talk.sampling,
            golden=golden,
            variants=tuple(variants),
            tools={"edge-kit": __version__, "onnx": installed_version("onnx")},
        )
        content = msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1)
        (scratch / RECORD_NAME).write_bytes(content + b"\n")
    return record


def usual_precisions(folder: Path, *, trace: bool) -> tuple[Precision, ...]:
    """Return what to export where nobody says; a traced model has one precision."""
    return ("fp32",) if trace or not has_writer(folder) else ("fp32", "int8")


def read_export(folder: Path) -> ChatExport:
    """Return the record of a folder that `export_chat` wrote; raises UsageError."""
    path = folder / RECORD_NAME
    if not path.is_file():
        raise UsageError(f"no {RECORD_NAME} in {folder}; give a folder that export-chat wrote")
    content = read_capped(path, max_bytes=MAX_RECORD_BYTES, follow_links=True)
    try:
        record = msgspec.json.decode(content, type=ChatExport)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is malformed: {error}; export the model again") from error
    if record.schema != SCHEMA or not record.variants or not record.golden:
        raise UsageError(f"{path} is of another version of edge-kit; export the model again")
    return record


def golden_prompts(talk: TalkFiles) -> tuple[tuple[int, ...], ...]:
    """Return the prompts of the golden set: texts, and a question as the template writes it."""
    tokenizer = ChatTokenizer.open(talk.tokenizer)
    texts = [tokenizer.encode(text, special=True) for text in GOLDEN_TEXTS]
    if talk.template is not None:
        template = ChatTemplate.open(talk.template, tokens=talk.tokens)
        asked = template.render([{"role": "user", "content": GOLDEN_QUESTION}])
        texts.append(tokenizer.encode(asked))
    prompts = [tuple(tokens[:GOLDEN_TOKENS]) for tokens in texts if len(tokens) >= GOLDEN_ROWS]
    if not prompts:
        raise UsageError("the tokenizer makes no tokens of English text; is it that of the model?")
    return tuple(prompts)


def _writing(options: ChatExportOptions, talk: TalkFiles, say: Say) -> Write:
    """Return what writes a graph for each precision, from the weights; raises what is known now."""
    spec = llm_spec_from_folder(options.folder)
    texts = None
    if options.text is not None:
        texts = _texts(options.text, talk, min(spec.context, options.context or spec.context))
    elif "w8a8" in options.precisions:
        raise UsageError("w8a8 needs --text, which the ranges of activations come from")
    chosen = [precision for precision in PRECISIONS if precision in options.precisions]
    if options.target is not None:
        for precision in chosen:
            check_export(
                spec,
                options.target,
                precision,
                form=options.form,
                head=options.head,
                context=options.context or min(spec.context, DEFAULT_CONTEXT),
                force=options.force,
                say=say,
            )

    def write(scratch: Path) -> tuple[Widths, list[ExportedVariant]]:
        variants = [_variant(options, precision, texts, scratch, say) for precision in chosen]
        return widths_of(spec), variants

    return write


def _variant(
    options: ChatExportOptions,
    precision: Precision,
    texts: _Texts | None,
    scratch: Path,
    say: Say,
) -> ExportedVariant:
    write = WriteOptions(
        form=options.form,
        weights=precision,
        context=options.context,
        adapters=options.adapters,
        head="int8" if (precision, options.head) == ("int4", "int8") else None,
        calibration=None if texts is None else _calibration(options, precision, texts, say),
    )
    written = write_decoder(options.folder, scratch / f"{precision}.onnx", write, say=say)
    say(f"{precision}: {written.weight_bytes / 1e6:,.1f} MB of weights")
    quality = None
    if texts is not None:
        quality = _judged(options, precision, written.path, texts.held_out, say)
    return ExportedVariant(
        precision=precision, file=written.path.name, decoder=written.decoder, quality=quality
    )


def _tracing(options: ChatExportOptions, say: Say) -> Write:
    """Return what writes the one graph that can be had of any architecture."""
    if set(options.precisions) != {"fp32"}:
        raise UsageError("a traced model has --precision fp32 alone")
    if options.text is not None:
        raise UsageError("a traced model is not quantized, so --text has nothing to judge")
    if options.adapters:
        raise UsageError(
            "adapters of a traced model are not merged here; save what PEFT's merge_and_unload() "
            "returns, and export that"
        )
    if options.target is not None:
        known_device(options.target)

    def write(scratch: Path) -> tuple[Widths, list[ExportedVariant]]:
        say("torch traces what transformers runs: fp32, served by ONNX Runtime, without engines")
        traced = write_traced(options.folder, scratch / "fp32.onnx", context=options.context)
        written = traced.written
        say(f"fp32: {written.weight_bytes / 1e6:,.1f} MB of weights")
        if options.target is not None:
            check_graph(
                written.decoder,
                traced.widths,
                options.target,
                "fp32",
                weights=written.weight_bytes,
                force=options.force,
                say=say,
            )
        file = written.path.name
        return traced.widths, [
            ExportedVariant(precision="fp32", file=file, decoder=written.decoder)
        ]

    return write


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Windows of tokens [N, S]: what calibration reads, and what it never sees."""

    calibration: IntArray
    held_out: IntArray


def _texts(path: Path, talk: TalkFiles, context: int) -> _Texts:
    length = min(WINDOW, context)
    content = read_capped(path, max_bytes=MAX_TEXT_BYTES, follow_links=True)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}; give plain text") from error
    cut = len(text) - len(text) // HELD_OUT
    tokenizer = ChatTokenizer.open(talk.tokenizer)
    begin = talk.tokens.get("bos_token")
    first = None if begin is None else tokenizer.token_of(begin)
    seen, held_out = (
        token_windows(
            tokenizer.encode(part[:MAX_PROMPT_CHARACTERS]), length=length, most=most, begin=first
        )
        for part, most in ((text[:cut], CALIBRATION_TOKENS), (text[cut:], QUALITY_TOKENS))
    )
    return _Texts(calibration=seen, held_out=held_out)


def _calibration(
    options: ChatExportOptions,
    precision: Precision,
    texts: _Texts,
    say: Say,
) -> Calibration | None:
    """Return what the text says of a precision; None for those that need no text."""
    kind = next((kind for kind in CALIBRATED if kind == precision), None)
    if kind is None:
        return None
    return calibrate_chat(
        options.folder, texts.calibration, kind, adapters=options.adapters, say=say
    )


def _judged(
    options: ChatExportOptions,
    precision: Precision,
    graph: Path,
    held_out: IntArray,
    say: Say,
) -> ChatQuality:
    """Return the quality of a graph; raises GateError if it is not good enough."""
    quality = measure_quality(options.folder, graph, held_out, adapters=options.adapters)
    say(
        f"{precision}: perplexity {quality.perplexity:.3f} (fp32 {quality.fp32_perplexity:.3f}), "
        f"KL {quality.kl_mean:.4f} nats, same token {quality.top1_agreement_percent:.1f} %, on "
        f"{quality.tokens} tokens"
    )
    problems = quality_problems(quality, LIMITS[precision])
    if problems and not options.force:
        raise GateError(
            f"{precision} loses too much: {'; '.join(problems)}; leave it out, or take it as it is "
            "with --force"
        )
    for problem in problems:
        say(f"{precision}: {problem}; written all the same")
    return quality
