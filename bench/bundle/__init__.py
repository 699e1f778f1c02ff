"""The bundle: its format, its manifest, its archive, its signature, and how it is written whole."""

from .bundle import (
    GOLDEN,
    IMAGENET,
    MODEL,
    Bundle,
    FileEntry,
    InputSpec,
    Preprocess,
    check_target,
    create,
    find_bundle,
    from_manifest,
    is_bundle,
    read_manifest,
    sha256,
    strangers,
)

__all__ = [
    "GOLDEN",
    "IMAGENET",
    "MODEL",
    "Bundle",
    "FileEntry",
    "InputSpec",
    "Preprocess",
    "check_target",
    "create",
    "find_bundle",
    "from_manifest",
    "is_bundle",
    "read_manifest",
    "sha256",
    "strangers",
]
