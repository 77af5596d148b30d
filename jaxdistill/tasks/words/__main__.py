"""Write the texts that `words_base` is fine-tuned on: `python -m jaxdistill.tasks.words FILE`."""

import argparse
import sys
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.tasks.words.texts import write_rows

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="jaxdistill.tasks.words", description=__doc__)
    parser.add_argument("file", type=Path, help="the new .jsonl file")
    parser.add_argument("--count", type=int, default=51_200, help="texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: %(default)s)")
    options = parser.parse_args()
    try:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        write_rows(options.file, options.count, options.seed)
    except (UserError, OSError) as error:
        print(f"jaxdistill.tasks.words: {error}", file=sys.stderr)
        sys.exit(2)
