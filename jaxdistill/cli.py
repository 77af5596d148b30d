"""The command line: thin verbs over the library."""

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxdistill.errors import UserError
from jaxdistill.files import write_whole

# The system refused a path that the user chose.
REFUSED = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; but for 0 and a broken pipe with one line on stderr.

    0: done; 2: a user's mistake; 1: a fault of ours; 130: Ctrl-C; 141: nobody reads our output.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.function(options)
        sys.stdout.flush()  # a broken pipe shows here and not while Python shuts down
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        code, line = explain(error)
    if code == 141:
        # What is still buffered goes nowhere, instead of failing once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif not options.debug:
        print(f"jaxdistill: {line}", file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of a failure and one line about it."""
    text = " ".join(str(error).split())
    match error:
        case UserError():
            return 2, text
        case KeyboardInterrupt():
            return 130, "interrupted"
        case BrokenPipeError():
            return 141, text
        case OSError() if isinstance(error, REFUSED):
            return 2, f"{error.filename}: {error.strerror}"
        case RuntimeError() if "RESOURCE_EXHAUSTED: Out of memory" in text:  # of a device, in all
            said = text.partition("RESOURCE_EXHAUSTED: ")[2]
            return 1, (
                f"{said[:120]}; compute less at a time (rows, slots, micro-batches, chunk), keep "
                "less (remat), or on a GPU let JAX have more than 0.75 of it: "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=0.93; --debug shows the traceback"
            )
        case _:
            kind = type(error).__name__
            return 1, f"internal error, {kind}: {text[:200]}; --debug shows the traceback"


def entry() -> None:
    sys.exit(main())


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage before it."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxdistill",
        description="Self-distillation of reasoning models, and what it does to their doubt.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, summary):
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(function=function)
        return sub

    sub = verb("train", train, "Run a recipe: pre-training, self-distillation or GRPO.")
    sub.add_argument("config", metavar="CONFIG", help="a recipe's name or path, or a config.json")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides")
    sub.add_argument("--run-dir", type=Path, help="default: runs/NAME")
    sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")
    sub = verb("sample", sample, "Sample responses from a Hugging Face folder or a run.")
    sub.add_argument("model", metavar="MODEL", help="a Hugging Face folder, a run, or toy:main")
    sub.add_argument("--prompt", action="append", required=True, help="a user turn; repeatable")
    sub.add_argument("--system", help="a system turn before it")
    sub.add_argument("--samples", type=int, default=1, help="responses per prompt")
    add_sampling(sub)

    sub = verb("eval", evaluate, "avg@k and pass@k with intervals, lengths, epistemic counts.")
    sub.add_argument("model", metavar="MODEL", help="a Hugging Face folder, a run, or toy:main")
    sub.add_argument(
        "--data",
        required=True,
        help="a .parquet or .jsonl file, or toy:train, toy:heldout, toy:ood",
    )
    sub.add_argument("--samples", type=int, default=4, help="responses per question (k)")
    sub.add_argument("--limit", type=int, help="the first N questions (toy: 128)")
    sub.add_argument("--out", type=Path, help="folder for NAME.jsonl and summary.json")
    add_sampling(sub)

    sub = verb("analyze", analyze, "Lengths and epistemic counts of responses in JSONL files.")
    sub.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                     help="JSONL files, run folders, or folders of JSONL files")  # fmt: skip
    sub.add_argument("--field", metavar="NAME", help="the field that holds the response")
    sub.add_argument("--model", help="a tokenizer's or model's folder, a run, or toy:main")
    sub.add_argument("--mode", default="all", choices=("paper", "word", "token", "all"),
                     help="substrings as published, whole words, token ids; default: all three, "
                     "the last with --model alone")  # fmt: skip
    chosen = sub.add_mutually_exclusive_group()
    chosen.add_argument("--words", metavar="A,B,C", default="ten",
                        help="default: ten, the paper's; core and hedge are its tiers")  # fmt: skip
    chosen.add_argument("--lexicon", type=Path, metavar="FILE", help="words and ids of a lexicon")
    made = sub.add_mutually_exclusive_group()
    made.add_argument("--propose", type=int, metavar="N",
                      help="write the N ids that a teacher with a solution says less")  # fmt: skip
    made.add_argument("--control", type=int, metavar="SEED",
                      help="write random ids as frequent as the lexicon's")  # fmt: skip
    sub.add_argument("--min-count", type=int, default=5, help="of a proposed id; default 5")
    sub.add_argument("--seed", type=int, default=0, help="chooses the solutions of --propose")
    sub.add_argument("--out", type=Path, metavar="FILE",
                     help="the counts as JSON, or the lexicon")  # fmt: skip
    sub.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    add_thinking(sub)

    sub = verb("study", study, "Run a grid of runs, then write the comparison report.")
    sub.add_argument("config", metavar="STUDY", help="a study recipe's name or path: toy_study")
    sub.add_argument("--profile", default="quick", help="quick (2 CPU cores) or full (one GPU)")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
                     help="override a field of every trained run")  # fmt: skip
    sub.add_argument(
        "--run-dir", type=Path, help="default: runs/NAME_PROFILE; an unfinished study goes on"
    )
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = verb("report", report, "Figures and a self-contained HTML page from run folders.")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or one study")
    sub.add_argument("--out", type=Path, help="an .html file or a folder; default: the first RUN")
    sub.add_argument("--markdown", action="store_true", help="print a study's tables as Markdown")

    add_bench(verb("bench", bench, "Speed and memory beside what the device allows, as JSON."))

    sub = verb("convert", convert, "Hugging Face folder <-> run folder (Orbax), by what SRC is.")
    sub.add_argument("source", metavar="SRC", type=Path)
    sub.add_argument("destination", metavar="DST", type=Path)
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                     help="default: as in SRC; of a trained run, as in its base")  # fmt: skip
    sub.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def add_sampling(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    sub.add_argument("--top-k", type=int, default=0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--min-p", type=float, default=0.0)
    sub.add_argument("--max-new-tokens", type=int, default=128)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    add_cache_dtype(sub)
    add_thinking(sub)


def add_cache_dtype(sub: argparse.ArgumentParser) -> None:
    # As in `models.quantized`, which would import JAX for every command.
    sub.add_argument("--cache-dtype", default="auto", choices=("auto", "int8"),
                     help="of keys and values while sampling; default: auto, that of matrix "
                     "products")  # fmt: skip


def add_thinking(sub: argparse.ArgumentParser) -> None:
    thinking = sub.add_mutually_exclusive_group()
    thinking.add_argument("--thinking", dest="thinking", action="store_true", default=None)
    thinking.add_argument("--no-thinking", dest="thinking", action="store_false")


def add_bench(sub: argparse.ArgumentParser) -> None:
    what = sub.add_subparsers(required=True, metavar="WHAT")
    sub = what.add_parser("decode", help="the sampler, with random weights and prompts")
    add_sizes(sub, {
        "rows": (64, "responses in all"),
        "rollouts": (1, "responses per prompt"),
        "slots": (0, "rows decoded at a time; 0: all rows"),
        "pages": (0, "pages of 128 positions that the slots share; 0: each slot has a cache of "
                     "the longest row"),
        "prompt": (256, "tokens of a prompt"),
        "new": (512, "tokens of a response at most"),
        "mean": (0, "mean of long-tailed lengths; 0: all are --new tokens long"),
        "top-k": (0, "most likely tokens that are kept; 0: all"),
    })  # fmt: skip
    sub.add_argument("--busy", action="store_true", help="with --mean: also time the same slots "
                     "when all are busy, at the same mean context; default: off")  # fmt: skip
    for flag, default, what_it_is in (
        ("--temperature", 1.0, "of the samples; 0 is greedy"),
        ("--top-p", 1.0, "probability that the kept tokens have together"),
        ("--min-p", 0.0, "least probability of a kept token, as a share of the largest"),
    ):
        sub.add_argument(flag, type=float, default=default,
                         help=f"{what_it_is}; default: {default:g}")  # fmt: skip
    add_placing(sub)
    add_cache_dtype(sub)
    add_profile(sub)
    add_measuring(sub, decode_bench, repeats=5)

    sub = what.add_parser("step", help="the train step, on full rows of random tokens")
    add_sizes(sub, {
        "rows": (4, "rows of the batch"),
        "tokens": (4096, "of a row: prompt and completion"),
        "prompt": (256, "of them the prompt; the teacher's is as long"),
    })  # fmt: skip
    add_training(sub)
    add_profile(sub)
    add_measuring(sub, step_bench, repeats=5)

    sub = what.add_parser("train", help="a whole on-policy iteration: sampling and a step")
    add_sizes(sub, {
        "questions": (8, "prompts"),
        "rollouts": (8, "responses per prompt"),
        "slots": (0, "rows decoded at a time; 0: as many as memory allows"),
        "prompt": (256, "tokens of a prompt"),
        "context": (1024, "tokens of the teacher's prompt"),
        "new": (1024, "tokens of a response at most"),
        "mean": (0, "mean of long-tailed lengths; 0: all are --new tokens long"),
        "pack": (0, "positions of a packed row; 0: rows are padded to the longest"),
    })  # fmt: skip
    add_training(sub)
    add_cache_dtype(sub)
    add_measuring(sub, train_bench, repeats=3)


def add_sizes(sub: argparse.ArgumentParser, sizes: dict[str, tuple[int, str]]) -> None:
    sub.add_argument("--model", default="Qwen3-1.7B",
                     help="preset whose sizes are taken; default: Qwen3-1.7B")  # fmt: skip
    for name, (default, text) in sizes.items():
        sub.add_argument(f"--{name}", type=int, default=default, metavar="N",
                         help=f"{text}; default: {default}")  # fmt: skip


def add_profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", type=int, default=0, metavar="N",
                     help="also list the N kernels that take longest; default: 0")  # fmt: skip


def add_placing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--attention", default="auto", choices=("auto", "xla", "cudnn", "splash"),
                     help="implementation; default: auto, the best of the device")  # fmt: skip
    sub.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"),
                     help="of matrix products; default: auto, float32 on a CPU")  # fmt: skip
    for axis, text in (
        ("data", "parts of the rows"),
        ("fsdp", "parts of the rows and of each weight"),
        ("tensor", "parts of heads and vocabulary"),
    ):
        sub.add_argument(f"--{axis}", type=int, default=1, metavar="N",
                         help=f"{text}, a device each; default: 1")  # fmt: skip


def add_training(sub: argparse.ArgumentParser) -> None:
    from jaxdistill.models.remat import REMATS

    sub.add_argument("--objective", default="sdpo", metavar="PRESET",
                     help="a distillation is over the full vocabulary; default: sdpo")  # fmt: skip
    sub.add_argument("--remat", default="auto", choices=("auto", *REMATS),
                     help="what a layer's backward pass computes again; default: auto, as little "
                     "as memory allows")  # fmt: skip
    sub.add_argument("--moments", default="float32", choices=("float32", "bfloat16"),
                     help="how Adam's are stored; default: float32")  # fmt: skip
    sub.add_argument("--moments-on", default="device", choices=("device", "host"),
                     help="where they lie between steps; default: device")  # fmt: skip
    sub.add_argument("--micro-batches", type=int, default=1, metavar="N",
                     help="parts of the batch, one at a time; default: 1")  # fmt: skip
    sub.add_argument("--chunk", type=int, default=512, metavar="N",
                     help="positions whose logits live at once; default: 512")  # fmt: skip
    add_placing(sub)


def add_measuring(sub: argparse.ArgumentParser, measured, repeats: int) -> None:
    sub.add_argument("--repeats", type=int, default=repeats, metavar="N",
                     help=f"timed runs; the median counts; default: {repeats}")  # fmt: skip
    sub.add_argument("--out", type=Path, metavar="FILE.json",
                     help="also write the result here; default: print it only")  # fmt: skip
    sub.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error; default: off",
    )
    sub.set_defaults(measured=measured)


def bench(options: argparse.Namespace) -> None:
    if options.out and not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    text = json.dumps(options.measured(options), indent=1)
    print(text)
    if options.out:
        write_whole(options.out, text + "\n")


def decode_bench(options: argparse.Namespace) -> dict:
    from jaxdistill.bench.decode import Decode, bench_decode
    from jaxdistill.sampling import Sampling

    return bench_decode(
        Decode(
            model=options.model,
            rows=options.rows,
            rollouts=options.rollouts,
            slots=options.slots,
            pages=options.pages,
            busy=options.busy,
            prompt=options.prompt,
            new=options.new,
            mean=options.mean,
            dtype=options.dtype,
            sampling=Sampling(
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                max_new_tokens=options.new,
                min_p=options.min_p,
            ),
            repeats=options.repeats,
            profile=options.profile,
            attention=options.attention,
            cache_dtype=options.cache_dtype,
            mesh=mesh_of(options),
        )
    )


def step_bench(options: argparse.Namespace) -> dict:
    from jaxdistill.bench.step import Step, bench_step

    return bench_step(
        Step(
            model=options.model,
            rows=options.rows,
            tokens=options.tokens,
            prompt=options.prompt,
            profile=options.profile,
            **training_of(options),
        )
    )


def train_bench(options: argparse.Namespace) -> dict:
    from jaxdistill.bench.iteration import Iteration, bench_iteration

    return bench_iteration(
        Iteration(
            model=options.model,
            questions=options.questions,
            rollouts=options.rollouts,
            slots=options.slots,
            prompt=options.prompt,
            context=options.context,
            new=options.new,
            mean=options.mean,
            **training_of(options),
        )
    )


def training_of(options: argparse.Namespace) -> dict:
    from jaxdistill.precision import compute_dtype
    from jaxdistill.training.compute import Compute
    from jaxdistill.training.optimizer import Optimizer

    dtype: Any = str(compute_dtype(options.dtype))
    try:
        compute = Compute(
            dtype=dtype,
            chunk=options.chunk,
            micro_batches=options.micro_batches,
            remat=options.remat,
            attention=options.attention,
            # Of `train` alone.
            pack=getattr(options, "pack", 0),
            cache_dtype=getattr(options, "cache_dtype", "auto"),
        )
    except UserError as error:  # which names fields: `micro_batches`, `pack=16`
        flag = lambda field: "--" + field[1].replace("_", "-").replace("=", " ")  # noqa: E731
        raise UserError(re.sub(r"`([a-z_]+(=-?\d+)?)`", flag, str(error))) from None
    return {
        "objective": options.objective,
        "compute": compute,
        # The first step moves: with warm-up its rate is 0.
        "optimizer": Optimizer(
            warmup_steps=0, moments=options.moments, moments_on=options.moments_on
        ),
        "mesh": mesh_of(options),
        "repeats": options.repeats,
    }


def mesh_of(options: argparse.Namespace) -> Any:
    from jaxdistill.sharding import MeshConfig

    return MeshConfig(options.data, options.fsdp, options.tensor)


def study(options: argparse.Namespace) -> None:
    from jaxdistill.config import load_study_recipe
    from jaxdistill.run.study import Study, run_study, with_overrides

    chosen = load_study_recipe(options.config, options.profile)
    if not isinstance(chosen, Study):
        raise UserError(f"recipe {options.config!r} returned {type(chosen).__name__}, not a Study")
    chosen = with_overrides(chosen, options.overrides)
    study_dir = options.run_dir or Path("runs") / f"{chosen.name}_{chosen.profile}"
    print(run_study(chosen, study_dir, quiet=options.quiet))


def train(options: argparse.Namespace) -> None:
    from jaxdistill.config import load_recipe
    from jaxdistill.run.loop import run

    config = load_recipe(options.config, options.overrides)
    run_dir = options.run_dir or Path("runs") / config.name
    run(config, run_dir, resume=options.resume, quiet=options.quiet)
    print(run_dir)


def sample(options: argparse.Namespace) -> None:
    from jaxdistill.sampling import Address
    from jaxdistill.sampling.engine import Engine
    from jaxdistill.storage.loading import open_named
    from jaxdistill.tasks.questions import Question

    require_positive(options.samples, "--samples")
    policy = open_named(options.model, progress=True)
    questions = [
        Question(f"prompt:{i}", prompt, "", options.system)
        for i, prompt in enumerate(options.prompt)
    ]
    engine = Engine(policy, dtype=options.dtype, cache_dtype=options.cache_dtype)
    rollouts = engine.rollouts(
        policy.params,
        questions,
        sampling_of(options),
        options.samples,
        Address(seed=options.seed, purpose="sample"),
        enable_thinking=options.thinking,
    )
    for row, response in enumerate(rollouts.responses):
        ending = "" if rollouts.finished_B[row] else " (cut at --max-new-tokens)"
        print(f"# {rollouts.question_of(row).prompt}{ending}\n{response}\n")


def evaluate(options: argparse.Namespace) -> None:
    from jaxdistill.evaluation import evaluate as evaluation
    from jaxdistill.evaluation.records import write_evaluation
    from jaxdistill.sampling.engine import Engine
    from jaxdistill.storage.loading import open_named

    require_positive(options.samples, "--samples")
    require_positive(1 if options.limit is None else options.limit, "--limit")
    split = evaluation.named_split(options.data, options.limit)
    policy = open_named(options.model, progress=True)
    config = evaluation.Evaluation(
        splits=(split,), samples=options.samples, sampling=sampling_of(options), seed=options.seed
    )
    records = evaluation.evaluate_split(
        Engine(policy, dtype=options.dtype, cache_dtype=options.cache_dtype),
        policy.params,
        split,
        config,
        enable_thinking=options.thinking,
        show_progress=True,
    )
    for line in evaluation.summary_lines(records, options.samples):
        print(line)
    if options.out:
        write_evaluation(options.out, {split.name: records})
        print(options.out)


def analyze(options: argparse.Namespace) -> None:
    from jaxdistill.epistemic import LexiconFile, Words, expand, open_lexicon, read_lexicon
    from jaxdistill.evaluation import analyze as analysis
    from jaxdistill.evaluation.responses import read_responses

    makes_lexicon = options.propose is not None or options.control is not None
    check_analyze(options, makes_lexicon)
    words = expand(options.words.split(","))
    source = LexiconFile(str(options.lexicon)) if options.lexicon else Words(words)
    responses = read_responses(options.paths, options.field)
    if options.propose is not None:
        propose(options, responses)
        return
    vocabulary = None
    if options.model:
        tokenizer = open_tokenizer(options.model)
        vocabulary = analysis.Vocabulary(tokenizer, open_lexicon(source, tokenizer))
        words = vocabulary.lexicon.words
    elif options.lexicon:
        words = read_lexicon(options.lexicon).words
    if options.control is not None:
        write_control(options, responses, vocabulary)
        return
    modes = [mode for mode in analysis.MODES if vocabulary or mode != "token"]
    modes = modes if options.mode == "all" else [options.mode]
    found = analysis.analyze(responses, words, modes, vocabulary)
    for line in analysis.table(found):
        print(line)
    if options.out:
        write_whole(options.out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(options.out)


def check_analyze(options: argparse.Namespace, makes_lexicon: bool) -> None:
    """Options that do not go together are found before any work."""
    if makes_lexicon and not options.model:
        raise UserError("--propose and --control choose ids of a tokenizer: add --model DIR")
    if makes_lexicon and not options.out:
        raise UserError("--propose and --control write a lexicon: add --out FILE")
    if options.propose is not None:
        require_positive(options.propose, "--propose")
        require_positive(options.min_count, "--min-count")
    if options.control is not None and options.control < 0:
        raise UserError(f"--control is a seed, 0 or above, got {options.control}")
    if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out}: expected a file in a folder that exists")
    read = [*options.paths, *([Path(options.lexicon)] if options.lexicon else [])]
    if options.out and any(options.out.resolve() == path.resolve() for path in read):
        raise UserError(f"--out {options.out} is also read: it would be lost; choose another file")


def open_tokenizer(name: str):
    """The tokenizer of a folder, a run, a bundled base or a model of the hub."""
    from jaxdistill.storage import tokenizer

    kind, _, world = name.partition(":")
    if kind == "toy":
        from jaxdistill.storage.toy import toy_base_folder

        return tokenizer.load(toy_base_folder(world))
    is_run = (Path(name) / "model" / "tokenizer.json").is_file()
    return tokenizer.load(Path(name) / "model" if is_run else name)


def propose(options: argparse.Namespace, responses) -> None:
    """`analyze --propose`: score the responses with and without a solution, rank, write."""
    from jaxdistill.epistemic import mean_surprise, write_lexicon
    from jaxdistill.epistemic import propose as propose_lexicon
    from jaxdistill.evaluation.lexicon_proposals import score_pmi
    from jaxdistill.precision import compute_dtype
    from jaxdistill.storage.loading import open_named

    policy = open_named(options.model, progress=True)
    stats, num_rows = score_pmi(
        policy, responses, seed=options.seed, enable_thinking=options.thinking,
        dtype=str(compute_dtype(options.dtype)),
    )  # fmt: skip
    lexicon = propose_lexicon(policy.tokenizer, stats, options.propose, options.min_count)
    write_lexicon(options.out, lexicon, policy.tokenizer)
    mean_V = mean_surprise(stats)
    print(f"{num_rows} of {len(responses)} responses scored, with a correct sibling that fits")
    print(f"{'nats':>8}  {'count':>8}  {'id':>7}  token")
    for i in lexicon.ids:
        token = policy.tokenizer.decode([i])
        print(f"{mean_V[i]:>8.3f}  {stats.count_V[i]:>8}  {i:>7}  {token!r}")
    print(options.out)


def write_control(options: argparse.Namespace, responses, vocabulary) -> None:
    """`analyze --control`: random ids of the frequencies that the lexicon has in the responses."""
    from jaxdistill.epistemic import matched_control, write_lexicon
    from jaxdistill.evaluation.analyze import count_tokens

    tokenizer = vocabulary.tokenizer
    count_V = count_tokens(tokenizer, responses)
    lexicon = matched_control(tokenizer, vocabulary.lexicon, count_V, options.control)
    write_lexicon(options.out, lexicon, tokenizer)
    print(lexicon.made)
    print(options.out)


def sampling_of(options: argparse.Namespace):
    from jaxdistill.sampling import Sampling

    return Sampling(
        options.temperature, options.top_k, options.top_p, options.max_new_tokens, options.min_p
    )


def require_positive(value: int, name: str) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")


def report(options: argparse.Namespace) -> None:
    from jaxdistill.report import study_markdown, write_run_report, write_study_report

    if options.markdown:
        if len(options.runs) != 1:
            raise UserError("--markdown prints one study's tables; give one STUDY folder")
        print(study_markdown(options.runs[0]), end="")
    elif len(options.runs) == 1 and (options.runs[0] / "study.json").exists():
        if options.out:
            raise UserError("--out goes with run folders; a study's page is STUDY/report.html")
        print(write_study_report(options.runs[0]))
    else:
        print(write_run_report(options.runs, options.out or options.runs[0]))


def convert(options: argparse.Namespace) -> None:
    from jaxdistill.storage.convert import convert as convert_folder

    print(
        convert_folder(
            options.source, options.destination, options.dtype, progress=not options.quiet
        )
    )
