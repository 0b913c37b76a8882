"""How is a run asked to stop? By a signal, which it answers between two steps."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted in `signum`; a second one kills."""

    def __init__(self):
        self.signum = None

    def __enter__(self):
        try:
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        except ValueError:  # not in the main thread, where signals do not arrive
            self._before = {}
        return self

    def __exit__(self, *error):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum, frame):
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)
