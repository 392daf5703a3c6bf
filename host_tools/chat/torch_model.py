"""The model of a Hugging Face folder as transformers runs it: the oracle, and what is traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.torch_export import quiet


def torch_model(folder: Path) -> Any:
    """Return it in FP32, ready to be asked; raises ExportError if transformers cannot read it.

    Nothing but safetensors is read, and no code that lies in the folder is run.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # the library leaves it untyped
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except FOREIGN_ERRORS as error:
        raise ExportError(f"transformers cannot read {folder}: {root_cause(error)}") from error
    model.eval()
    return model
