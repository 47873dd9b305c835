"""Weights from timm's hub: from the local cache, or over the network, with an answer in seconds either way."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from dinomed.errors import WeightsError

_FILE = "model.safetensors"
_PROBE_TIMEOUT_S = 5.0


def fetch_hub_weights(name: str, hub_model: str | None) -> Path:
    """Find the weights of the backbone `name` in the cache or download them.

    Args:
        name: The backbone's name, for the message.
        hub_model: Repository under timm's account, or None where there is none.

    Raises:
        WeightsError: Neither the cache nor the network gives them; the message names the other ways.
    """
    if hub_model is None:
        raise WeightsError(
            f"timm's hub has no weights for {name}: "
            'download them from their authors and pass weights="/path/to/file.pth"'
        )
    repository = f"timm/{hub_model}"
    if isinstance(cached := try_to_load_from_cache(repository, _FILE), str):
        return Path(cached)
    if (problem := _probe(hf_hub_url(repository, _FILE))) is None:
        try:
            return Path(hf_hub_download(repository, _FILE, etag_timeout=_PROBE_TIMEOUT_S))
        except Exception as error:  # whatever the hub's client raises, the way out is the same
            problem = error
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
    raise WeightsError(
        f"weights of {name} cannot be fetched from timm's hub ({reason}): "
        'pass weights="/path/to/file.pth" with the official file that Meta gives out under its licence '
        "(https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/), pass the folder of a Hugging Face "
        f"download, or run `hf download {repository}` where there is a network and copy that cache here"
    ) from problem


def _probe(url: str) -> Exception | None:
    """Ask for the file's head once, without the many retries of a download; give the error, or None if it is there."""
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=_PROBE_TIMEOUT_S)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    # A thread, because looking up a name can hang for longer than any timeout of the request.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _PROBE_TIMEOUT_S)
    return outcome[0] if outcome else TimeoutError(f"no answer within {2 * _PROBE_TIMEOUT_S:.0f} s")
