"""The bill of materials of a bundle, as CycloneDX 1.6 JSON (ECMA-424).

The model is a component of the type machine-learning-model with its files' hashes; beside it stand
the images that it was trained on and every package that had a part in its history. The same bundle
gives the same text: its serial number comes from the manifest's hash, its time from the history.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vcompress.bench.bundle import MODEL, Bundle, sha256
from vcompress.bench.bundle.manifest import MANIFEST
from vcompress.bench.errors import EnvironmentLacks, UserError, to_install
from vcompress.bench.text import printable

from . import licences

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}")


def bill_of_materials(bundle: Bundle) -> str:
    """The text of the bill of materials of `bundle`, every file of which is checked.

    Raises:
        UserError: a file that was changed, or a history that vcompress did not write.
        EnvironmentLacks: `cyclonedx-python-lib` is missing.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise EnvironmentLacks(
            f"a bill of materials needs cyclonedx-python-lib, which cannot be imported ({error}). "
            f"Install it: {to_install('release')}."
        ) from None
    bundle.verify()
    if not bundle.history:
        raise UserError(f"{bundle.path}: its history is empty, so it does not say what it is.")
    try:
        model, data = _model(bundle), list(_data(bundle))
        packages = list(_packages(bundle))
        made = datetime.fromisoformat(str(bundle.history[-1].started))
    except ValueError as error:
        raise UserError(
            f"{bundle.path}: its history is not one that vcompress writes ({error}). Make the "
            f"bundle again."
        ) from None
    bom = Bom(
        components=[*data, *packages],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{sha256(bundle.path / MANIFEST)}"),
        metadata=BomMetaData(component=model, timestamp=made),
    )
    bom.register_dependency(model, [*data, *packages])
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    return text


def _model(bundle: Bundle) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    def hashes(name: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=bundle.files[name].sha256)]

    last = bundle.history[-1]
    stages = [
        Property(name=f"vcompress:stage:{number}", value=_text(f"{e.stage} {e.model}"))
        for number, e in enumerate(bundle.history, 1)
    ]
    unknown = [
        Property(name=f"vcompress:licence:{name}", value=licences.UNKNOWN)
        for name in ("data", "weights")
        if getattr(licences.recorded(bundle), name) == licences.UNKNOWN
    ]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=_text(last.model),
        version=sha256(bundle.path / MANIFEST)[:16],
        bom_ref="model",
        description=_text(f"{bundle.task}, {len(bundle.labels)} classes, made by vcompress"),
        hashes=hashes(MODEL) if MODEL in bundle.files else [],
        licenses=_licences(licences.recorded(bundle).weights),
        properties=[
            Property(name="vcompress:bytes", value=str(bundle.size_bytes)), *stages, *unknown
        ],
        components=[
            Component(
                type=ComponentType.FILE, name=_text(name), hashes=hashes(name),
                bom_ref=f"file:{number}",
            )
            for number, name in enumerate(sorted(bundle.files))
        ],
    )  # fmt: skip


def _data(bundle: Bundle) -> Iterator[Component]:
    """The images of the last stage."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    record = bundle.data
    if record is None:
        return
    fingerprint = str(record["fingerprint"])
    known = len(fingerprint) == 64 and all(c in "0123456789abcdef" for c in fingerprint)
    yield Component(
        type=ComponentType.DATA,
        name=_text(record["source"]),
        bom_ref="data",
        description="images that the model was trained and measured on",
        # Of names, sizes, labels and splits; not of one file.
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=fingerprint)] if known else [],
        licenses=_licences(licences.recorded(bundle).data),
        properties=[
            Property(name=f"vcompress:images:{_text(name)}", value=str(count))
            for name, count in record["splits"].items()
        ],
    )


def _packages(bundle: Bundle) -> Iterator[Component]:
    """Every package and version that the history names, once each."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found: set[tuple[str, str]] = set()
    for entry in bundle.history:
        for name, version in (*entry.versions.items(), *entry.packages.items()):
            if not (_PLAIN.fullmatch(name) and _PLAIN.fullmatch(version)):
                raise ValueError(f"{name!r:.80} {version!r:.80} is no package and version")
            found.add((name, version))
    for name, version in sorted(found):
        python = name == "python"
        yield Component(
            type=ComponentType.PLATFORM if python else ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"package:{name}@{version}",
            purl=None if python else PackageURL("pypi", None, name.lower(), version),
        )


def _licences(text: str) -> list[Any]:
    """As an SPDX identifier or expression where it is one, else by its name; none if unknown."""
    from cyclonedx import spdx
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    if text == licences.UNKNOWN:
        return []
    if (known := spdx.fixup_id(text)) is not None:
        return [DisjunctiveLicense(id=known)]
    if spdx.is_expression(text):
        return [LicenseExpression(text)]
    return [DisjunctiveLicense(name=_text(text))]


def _text(value: Any) -> str:
    return printable(str(value))[:1000]
