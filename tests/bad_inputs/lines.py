"""Commands with one mistake in their line, by verb; `tiny.json` is a run's config."""

from collections.abc import Iterator

from bad_inputs import Row, row

LINES = {
    # list
    "list --json more": "unrecognized arguments: more",
    "list --no-such": "unrecognized arguments: --no-such",
    # main
    "": "the following arguments are required: VERB",
    "trian": r"invalid choice: 'trian'",
    # train
    "train": "required: CONFIG",
    "train toy_selfdistil": r"no recipe 'toy_selfdistil'; did you mean toy_selfdistill",
    "train missing.json": "config missing.json cannot be read: No such file",
    "train toy_study": "is a study; use `jaxdistill study toy_study`",
    "train toy_grpo --set optimizer.peek_lr=1": r"unknown setting.*optimizer.peak_lr",
    "train toy_grpo --set steps=many": "steps: expected int | None, got 'many'",
    "train toy_grpo --set steps": r"expected path=value",
    "train toy_grpo --set steps=-1": "`steps` must be at least 0, got -1",
    "train toy_grpo --set seed=-1": "`seed` must be an integer from 0 to 4294967295, got -1",
    "train toy_grpo --set compute.micro_batches=0": "`compute.micro_batches` must be at least 1",
    "train toy_grpo --set compute.micro_batches=5": "must divide the 48 rows",
    "train toy_grpo --set objective=CrossEntropy()": "requires `experience` Supervised",
    "train toy_grpo --set teacher=EMA(rate=2)": r"teacher: `rate` must lie in \(0, 1\]",
    "train toy_grpo --set model.world=mars": "toy base 'mars'",
    "train toy_grpo --set experience.task.pool=mars": "`pool` must be one of",
    "train toy_grpo --set mesh.data=4096": "mesh",
    "train toy_pretrain --set experience.world=mars": "must be one of main, control, got 'mars'",
    "train toy_grpo --set model=Pretrained('nowhere')": "there is no folder nowhere",
    "train tiny.json --set model.tokenizer=nowhere": "there is no folder nowhere",
    "train tiny.json --set experience.task=MathTask('no.parquet')": "no.parquet.*no such file",
    "train tiny.json --set experience.task=MathTask('tiny.json')": "tiny.json",
    "train tiny.json --set lexicon=LexiconFile('no.json')": "lexicon no.json cannot be read",
    "train tiny.json --set lexicon=LexiconFile('tiny.json')": "tiny.json: no field `words`",
    "train toy_grpo --set epistemic_words=(wait,)": "unknown setting 'epistemic_words'",
    "study toy_grpo": "is one run, not a study; use `jaxdistill train toy_grpo`",
    "study toy_study --profile huge": "`--profile` must be quick or full, got 'huge'",
    "study toy_study --set optimizer.peak=1": r"unknown setting 'optimizer.peak'.*peak_lr",
    # sample
    "sample nowhere --prompt hi": "there is no folder nowhere",
    "sample toy:mars --prompt hi": "toy base 'mars'",
    "sample toy:main": "required: --prompt",
    "sample toy:main --prompt hi --samples 0": "--samples must be at least 1, got 0",
    "sample nowhere --prompt hi --temperature -1": "--temperature -1.0: expected a value >= 0",
    "sample nowhere --prompt hi --top-p 0": "--top-p 0.0: expected a value in",
    "sample nowhere --prompt hi --max-new-tokens 0": "--max-new-tokens 0: expected a value >= 1",
    "eval nowhere --data toy:train --min-p 2": "--min-p 2.0: expected a value in",
    "eval nowhere --data toy:train --out tiny.json": "--out .* is a file; name a folder",
    "sample toy:main --prompt hi --max-new-tokens x": "invalid int value: 'x'",
    "eval toy:main --data toy:mars": "'toy:mars' is unknown",
    "eval toy:main --data no.parquet": "no.parquet.*no such file",
    "eval toy:main --data toy:train --samples 0": "--samples must be at least 1, got 0",
    "eval toy:main --data toy:train --limit 0": "--limit must be at least 1, got 0",
    "eval nowhere --data toy:train": "there is no folder nowhere",
    "eval nowhere --data toy:train --kind maths": "invalid choice: 'maths'",
    "eval nowhere --data toy:train --data toy:train": "--data toy:train is named twice",
    "eval nowhere --data hub:MATH-500": "expected hub:OWNER/NAME",
    "eval nowhere --data x.csv --kind math --column promt=x": "'promt' is no field of a question",
    "eval nowhere --data x.csv --kind math --column question": "must be pairs .field, column.",
    "eval nowhere --data toy:train --bad-rows skip": "'toy:train' is a toy's split; .* bad_rows",
    "eval nowhere --task x.py:X --instruction none": "instruction: a --task says itself",
    # analyze
    "analyze": "required: PATH",
    "analyze no.jsonl": "no.jsonl: cannot be read: No such file",
    "analyze tiny.json": "tiny.json:1: no response field among name",
    "analyze tiny.json --field name --out tiny.json": "--out tiny.json is also read",
    "analyze tiny.json --field name --mode token": "mode `token` counts ids.*add --model MODEL",
    "analyze tiny.json --field name --mode letters": "invalid choice: 'letters'",
    "analyze tiny.json --field name --words wait,,hmm": "`words` must not be blank",
    "analyze tiny.json --field steps": "tiny.json:1: field `steps`: expected text.*got int 2",
    "analyze tiny.json --field name --model nowhere": "there is no folder nowhere",
    "analyze tiny.json --field name --model toy:mars": "toy base 'mars'",
    "analyze tiny.json --field name --lexicon tiny.json": "tiny.json: no field `words`",
    "analyze tiny.json --field name --lexicon no.json": "lexicon no.json cannot be read",
    "analyze tiny.json --field name --out no/where.json": "--out no/where.json: expected a file",
    "analyze tiny.json --field name --out .": "--out .: expected a file in a folder",
    "analyze tiny.json --field name --propose 3": "of a tokenizer: add --model MODEL",
    "analyze tiny.json --field name --propose 3 --model toy:main": "a lexicon: add --out FILE",
    "analyze tiny.json --field name --propose 0 --model toy:main --out a": "--propose must be at",
    "analyze tiny.json --field name --control -1 --model toy:main --out a": "--control is a seed",
    "analyze tiny.json --field name --propose 3 --model toy:main --out a": "no text in `question`",
    # convert
    "convert nowhere out": "there is no folder nowhere",
    # report
    "report nowhere": "nowhere",
}


def rows() -> Iterator[Row]:
    for command, expected in LINES.items():
        yield row(f"line: {command}", command.split(), expected)
