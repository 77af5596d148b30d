"""`analyze` counts epistemic words in responses and builds lexicons from responses."""

import argparse
import json
import sys
from typing import Any

from jaxdistill.cli.flags import (
    MODEL_HELP,
    add_dtype,
    add_mesh,
    add_out,
    add_thinking,
    path,
    require_positive,
)
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "analyze",
        analyze,
        "Print lengths and epistemic counts of responses, in files of this or of other tools.",
    )
    sub.add_argument(
        "paths",
        nargs="+",
        type=path,
        metavar="PATH",
        help="files (.jsonl, .json, .parquet, .csv; also of lm-eval, vLLM, TRL and verl), run "
        "folders, or folders of such files",
    )
    field = sub.add_argument("--field", metavar="NAME", help="the field that holds the response")
    describe_default(field, "the first known name that a record has")
    sub.add_argument(
        "--model",
        metavar="MODEL",
        help=f"the model whose tokenizer (with --propose, also weights) to use: {MODEL_HELP}",
    )
    sub.add_argument(
        "--mode",
        default="all",
        choices=("paper", "word", "token", "all"),
        help="what to count: substrings as published (paper), whole words (word), token ids "
        "(token, needs --model), or each of them (all)",
    )
    counted = sub.add_mutually_exclusive_group()
    counted.add_argument(
        "--words",
        metavar="A,B,C",
        default="ten",
        help="words to count; ten is the paper's list, core and hedge are its two parts",
    )
    counted.add_argument(
        "--lexicon", type=path, metavar="FILE", help="read words and ids from this lexicon instead"
    )
    made = sub.add_mutually_exclusive_group()
    made.add_argument(
        "--propose",
        type=int,
        metavar="N",
        help="write a lexicon of the N token ids whose log-probability falls most when the model "
        "is shown a solution",
    )
    made.add_argument(
        "--control",
        type=int,
        metavar="SEED",
        help="write a control lexicon: random ids, as frequent as the lexicon's",
    )
    sub.add_argument(
        "--min-count",
        type=int,
        default=5,
        metavar="N",
        help="--propose considers only ids that occur at least N times",
    )
    sub.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the choice of solutions for --propose",
    )
    add_out(
        sub,
        "also write the counts as JSON to this file; with --propose or --control, the lexicon",
        metavar="FILE",
    )
    add_dtype(sub)
    add_mesh(sub)
    add_thinking(sub)


def analyze(options: argparse.Namespace) -> None:
    from jaxdistill.epistemic import LexiconFile, Words, expand, open_lexicon, read_lexicon
    from jaxdistill.evaluation import analyze as analysis
    from jaxdistill.evaluation.responses import read_responses

    check(options)
    words = expand(options.words.split(","))
    source = LexiconFile(str(options.lexicon)) if options.lexicon else Words(words)
    read = read_responses(options.paths, options.field)
    responses = read.responses
    for note in read.notes:
        print(note, file=sys.stderr)
    # A proposal is computed from the responses and the model, without a list of words.
    if options.propose is not None:
        propose(options, responses)
        return
    vocabulary = None
    if options.model is not None:
        from jaxdistill.storage import tokenizer as tokenizers
        from jaxdistill.storage.loading import tokenizer_folder

        tokenizer = tokenizers.load(tokenizer_folder(options.model))
        vocabulary = analysis.Vocabulary(tokenizer, open_lexicon(source, tokenizer))
        words = vocabulary.lexicon.words
    elif options.lexicon:
        words = read_lexicon(options.lexicon).words
    if options.control is not None:
        assert vocabulary is not None  # `check` asks for --model
        write_control(options, responses, vocabulary)
        return
    # Token ids can be counted only with a tokenizer; `all` means each mode that is possible.
    modes = [mode for mode in analysis.MODES if vocabulary or mode != "token"]
    modes = modes if options.mode == "all" else [options.mode]
    found = analysis.analyze(responses, words, modes, vocabulary)
    found |= {"missing": read.num_missing, "notes": read.notes}
    for line in analysis.table(found):
        print(line)
    if options.out:
        write_whole(options.out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(options.out)


def check(options: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, before any model is read."""
    makes_lexicon = options.propose is not None or options.control is not None
    if makes_lexicon and not options.model:
        raise UserError("--propose and --control choose ids of a tokenizer: add --model MODEL")
    if makes_lexicon and not options.out:
        raise UserError("--propose and --control write a lexicon: add --out FILE")
    if options.propose is not None:
        require_positive(options.propose, "--propose")
        require_positive(options.min_count, "--min-count")
    if options.control is not None and options.control < 0:
        raise UserError(f"--control is a seed, 0 or above, got {options.control}")
    if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out}: expected a file in a folder that exists")
    read = [*options.paths, *([options.lexicon] if options.lexicon else [])]
    if options.out and any(options.out.resolve() == path.resolve() for path in read):
        raise UserError(
            f"--out {options.out} is also read and would be overwritten; choose another file"
        )


def propose(options: argparse.Namespace, responses: list[Any]) -> None:
    from jaxdistill.epistemic import write_lexicon
    from jaxdistill.evaluation.lexicon_proposals import pairs_of, propose_lexicon
    from jaxdistill.run.devices import start_line
    from jaxdistill.sharding import make_mesh
    from jaxdistill.storage.loading import open_model
    from jaxdistill.training.compute import Compute

    mesh = make_mesh(options.mesh)
    pairs_of(responses, options.seed)  # a mistake is found before weights are read
    policy = open_model(options.model, mesh, progress=True)
    print(start_line(mesh, policy.config, Compute(dtype=options.dtype)), file=sys.stderr)
    proposal = propose_lexicon(
        policy,
        responses,
        num_ids=options.propose,
        min_count=options.min_count,
        seed=options.seed,
        enable_thinking=options.thinking,
        dtype=options.dtype,
        mesh=mesh,
    )
    write_lexicon(options.out, proposal.lexicon, policy.tokenizer)
    # The others have no correct sibling, or one that is too long to be shown.
    print(
        f"scored {proposal.num_scored} of {len(responses)} responses, those with a correct sibling "
        "that fits"
    )
    for line in proposal.table(policy.tokenizer):
        print(line)
    print(options.out)


def write_control(options: argparse.Namespace, responses: list[Any], vocabulary: Any) -> None:
    from jaxdistill.epistemic import write_lexicon
    from jaxdistill.evaluation.lexicon_proposals import control_lexicon

    lexicon = control_lexicon(vocabulary, responses, seed=options.control)
    write_lexicon(options.out, lexicon, vocabulary.tokenizer)
    print(lexicon.made)
    print(options.out)
