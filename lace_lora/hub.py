"""A package to Hugging Face: a repository of its own, private until its owner makes it public there.

The token comes from the environment (HF_TOKEN), from Colab's secrets, or from an earlier `hf auth login`; it is sent to
the Hub and stands nowhere else.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from lace_lora import colab
from lace_lora.errors import LaceError, MachineError, SettingsError
from lace_lora.machine import in_colab

TOKEN = "HF_TOKEN"
HTTP_CLIENTS = ("httpx", "httpx2", "requests")
TOKENS_PAGE = "huggingface.co/settings/tokens"


def token() -> SecretStr:
    """The token to upload with. Raises SettingsError with where to put one where there is none."""
    kept = colab.key(TOKEN)
    if kept is None and not in_colab():
        from huggingface_hub import get_token

        kept = SecretStr(get_token() or "")
    if kept is None or not kept.get_secret_value():
        raise SettingsError(
            f"push_to_hub needs a token that may write: make one at {TOKENS_PAGE}, and put it into Colab's secrets "
            f"(the key on the left) or into the environment variable, both under the name {TOKEN}. The package is "
            "made; only its upload is missing."
        )
    return kept


def push(package: Path, repository: str, files: list[str]) -> str:
    """Upload the files of a package in one commit, and return the address of the repository.

    repository  owner/name, or a name alone for the token's own account; made, private, where it is not there. One that
                is there keeps its visibility.
    files       names in the package's folder; what else is in the repository stays

    Raises SettingsError where the name or the token will not do, MachineError where the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    secret = token()
    disable_progress_bars()
    with _sentences(repository):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=secret.get_secret_value())
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=package,
            allow_patterns=files,
            commit_message="A LoRA by Lace LoRA",
        )
        return str(made)


# -- inside --


@contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """Turn what the Hub and the network say into a sentence; none of them holds the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise SettingsError(
            f"push_to_hub is {repository!r} but must be a name as Hugging Face has them, such as my-name/lace: "
            "letters, digits, hyphens, dots and underscores, 96 at most."
        ) from error
    except OfflineModeIsEnabled as error:
        raise MachineError(
            "Nothing was uploaded: HF_HUB_OFFLINE is set, which forbids it. Unset it and run lace-lora package again."
        ) from error
    except Exception as error:
        for one in _behind(error):  # of a large file the client says only which one it was
            if isinstance(one, HfHubHTTPError):
                raise _refusal(repository, one.response.status_code) from None
            # The client has changed what it speaks HTTP with, and no two of these share their errors.
            if isinstance(one, OSError) or type(one).__module__.partition(".")[0] in HTTP_CLIENTS:
                raise MachineError(
                    f"Hugging Face does not answer ({type(one).__name__}), so nothing or not all was uploaded. The "
                    "package is made; look at your connection and run lace-lora package again."
                ) from error
        raise


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _refusal(repository: str, status: int) -> LaceError:
    if status == 401:
        return SettingsError(
            f"Hugging Face does not know the token in {TOKEN} (401). Make a new one that may write at {TOKENS_PAGE}."
        )
    if status == 403:
        return SettingsError(
            f"The token in {TOKEN} may not write to {repository} (403). Give it write access at {TOKENS_PAGE}, or set "
            "push_to_hub to a name under your own account."
        )
    if status == 404:
        return SettingsError(f"There is no account for {repository} on Hugging Face (404). Correct push_to_hub.")
    if status == 429:
        return MachineError("Hugging Face asks to wait (429: too many requests). Run lace-lora package again later.")
    return MachineError(
        f"Hugging Face refused the upload to {repository} (status {status}). The package is made; run lace-lora "
        "package again later."
    )
