"""Uploading a student."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from llmdistill.errors import ConfigError


def push(folder: Path, repository: str) -> str:
    """Upload a folder, with the hub's own login and address; a repository that is not there yet is made, private.

    Returns:
        the address of the commit.

    Raises:
        ConfigError: the hub refuses.

    """
    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Upload the student"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the hub does not take the student: {reason}",
            where=f"export.push_to_hub: {repository}",
            fix="log in with `hf auth login`; the folder itself is written and complete",
        ) from None
