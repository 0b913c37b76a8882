"""The endings of a command that are meant for the person at the keyboard."""


class InputError(ValueError):
    """A mistake in what was typed or in a file, told in one sentence.

    The sentence names the field or file, what was found and what is allowed. Commands
    print it without a traceback and exit with status 2 (see `imagepiece_jax.cli`).
    """


class RunError(RuntimeError):
    """A run that cannot go on (a loss that is not finite), told in one sentence.

    Commands print it without a traceback and exit with status 1.
    """


class Stopped(Exception):
    """A run that was asked to stop, once its state is saved; `signum` asked for it."""

    def __init__(self, signum, step):
        super().__init__(f"stopped at step {step}; the same command resumes from there")
        self.signum = signum
