"""How a command ends: one sentence for a user's mistake, never a traceback."""

import sys

from absl import app, flags

from imagepiece_jax.errors import InputError


def run(main):
    """Parse the flags, call `main()` and exit with its status.

    An `InputError` becomes one line on stderr and exit status 2.
    """

    def guarded(argv):
        if len(argv) > 1:
            print(f"error: unexpected argument {argv[1]!r}", file=sys.stderr)
            return 2
        try:
            return main() or 0
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    app.run(guarded, flags_parser=_parse)


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        message = str(error).strip().splitlines()[0] if str(error) else repr(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
