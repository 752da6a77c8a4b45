"""Calls of the Hub's client that end: within a time, and in one line where the Hub refuses."""
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from threading import Thread
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base of what a failed connection raises, whatever library the client uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from ..utils.errors import UserError, one_line

__all__ = ['ANSWER_SECONDS', 'LOGIN', 'SLOWEST', 'call_hub', 'hub_errors', 'impatient']

# how long the Hub may take to answer a request, and the slowest upload that is waited for, in
# bytes a second
ANSWER_SECONDS = 60.0
SLOWEST = 50_000

LOGIN = 'with `hf auth login`, or put it into $HF_TOKEN'


def call_hub(seconds: float, function: Callable, *args, **kwargs) -> Any:
    """Call a function of the Hub's client, and wait for it no longer than a time.

    Timeouts of connections are not enough: they begin again with each byte and with each of the
    client's attempts. So the call has a thread of its own, which is left behind; an interrupt is
    noticed at once.

    Args:
        seconds: Time for the whole call.
        function: Function of the client.
        *args: Positional arguments of the function.
        **kwargs: Keyword arguments of the function.

    Raises:
        UserError: The time is over.
    """
    future: Future = Future()

    def work():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as e:
            future.set_exception(e)

    # a daemon: it does not keep the process from ending
    Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()

    try:
        return future.result(seconds)
    except FutureTimeout as e:
        if future.done():  # the call itself has raised it
            raise
        raise UserError(f'{constants.ENDPOINT} did not answer within {seconds:g} seconds') from e


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Let connections of the Hub's client time out, which by itself would wait for ever.

    Args:
        seconds: Time without a byte from the Hub after which a request fails.
    """
    session = get_session()
    before = getattr(session, 'timeout', None)
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


@contextmanager
def hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into a `UserError`.

    Args:
        repo_id: Repository that the block talks about.
        revision: Branch, tag or commit of the repository.

    Raises:
        UserError: Names the Hub and what is wrong.
    """
    endpoint = constants.ENDPOINT
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as e:
        raise UserError(_answer(e, endpoint, repo_id, revision)) from e
    except HFValidationError as e:
        raise UserError(f'{repo_id!r} is no name of a repository of the Hub: {one_line(e)}') from e
    except (HTTPError, OfflineModeIsEnabled) as e:
        raise UserError(f'cannot reach {endpoint}: {one_line(e) or type(e).__name__}') from e
    except LocalEntryNotFoundError as e:
        raise UserError(
            f'cannot reach {endpoint}, and {repo_id} was not downloaded before: {one_line(e)}') from e
    except OSError as e:
        raise UserError(f'cannot keep or read {repo_id}: {one_line(e)}') from e
    except (ValueError, RuntimeError, LookupError, TypeError) as e:
        # the fault of what was sent, or an answer that makes no sense
        cause = e.__cause__ if isinstance(e.__cause__, HTTPError) else ''
        raise UserError(f'{endpoint} refuses {repo_id}: {one_line(f"{e} {cause}")}') from e


def _answer(error: HfHubHTTPError, endpoint: str, repo_id: str, revision: str | None) -> str:
    """Return what an error of the Hub means for a user."""
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no revision {revision}'
    if isinstance(error, RepositoryNotFoundError):
        return f'{endpoint} shows no model repository {repo_id} to this token'

    status = error.response.status_code
    if status == 401:
        return f'{endpoint} does not accept the token (401): give a valid one {LOGIN}'
    if status == 403:
        return (
            f'the token may not write to {repo_id} (403): it needs the right to write, in this '
            'namespace')
    return f'{endpoint} answers {status} for {repo_id}: {one_line(error.server_message or error)}'
