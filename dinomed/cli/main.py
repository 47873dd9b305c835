"""The entry point of the `dinomed` command: arguments in, exit status out.

Exit status: 0 done, 1 our fault, 2 the user's input or arguments, 130 stopped by Ctrl-C, 143 ended by SIGTERM; each but
0 with one sentence on stderr. Verbs import what is heavy when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from dinomed import __version__
from dinomed.cli import bundle, classify, data, doctor, embed, evaluate, export, propagate, segment, train
from dinomed.errors import DinomedError, InputError

DONE, OUR_FAULT, USERS_FAULT, STOPPED, ENDED = 0, 1, 2, 130, 143


class Ended(BaseException):
    """SIGTERM came: leave by way of every `finally`, so that no half file stays."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="dinomed", description="DINOv3 for CT and MRI: from a scan to a label map on its own grid."
    )
    parser.add_argument("--version", action="version", version=f"dinomed {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in (segment, propagate, classify, embed, train, evaluate, export, data, bundle, doctor):
        module.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: What was typed after `dinomed`; by default that of this process.
    """
    parsed = build_parser().parse_args(arguments)  # leaves with status 2 by itself
    before = signal.signal(signal.SIGTERM, _end)
    try:
        status = parsed.run(parsed)
        sys.stdout.flush()
        return int(status)
    except InputError as error:
        return _say(str(error), USERS_FAULT)
    except KeyboardInterrupt:
        return _say("stopped", STOPPED)
    except Ended:
        return _say("ended by SIGTERM", ENDED)
    except BrokenPipeError:  # the reader of our output has gone, as in `dinomed bundle list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except DinomedError as error:
        return _say(str(error), OUR_FAULT)
    except Exception as error:
        return _say(f"internal error, please report it: {describe(error)}", OUR_FAULT)
    finally:
        signal.signal(signal.SIGTERM, before)


def describe(error: BaseException) -> str:
    """Return kind, text and origin of an unexpected error on one line; of a wrapped one, those of its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = f" ({os.path.basename(last.tb_frame.f_code.co_filename)}:{last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def _say(sentence: str, status: int) -> int:
    print(f"dinomed: {sentence}", file=sys.stderr)
    return status


def _end(_number: int, _frame: FrameType | None) -> None:
    raise Ended
