"""A student's bill of material as an SPDX 3.0.1 document, of the profiles AI and dataset with what they stand on.

The classes of `spdx-python-model` are made from the specification's own shapes (SHACL), and refuse what these do not
allow.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

from potstill.sign.material import Material

_BASE = "urn:potstill"


def spdx_of(material: Material) -> str:
    """The document as JSON-LD. Its identifiers hang on the files' digests alone, so that the same student has the same.

    Raises:
        ValueError: a value is not allowed by the specification.
    """
    from cyclonedx.spdx import fixup_id, is_expression
    from spdx_python_model import v3_0_1 as spdx

    model: Any = spdx
    base = f"{_BASE}:{material.name}:{_short(material)}#"
    made = model.CreationInfo(specVersion="3.0.1", created=_time(material.made))
    agent = model.SoftwareAgent(_id=f"{base}potstill", name="potstill", creationInfo=made)
    made.createdBy = [agent]
    elements: list[Any] = [agent]

    def add(element: Any) -> Any:
        elements.append(element)
        return element

    def relate(source: Any, kind: str, targets: list[Any]) -> None:
        if targets:
            add(
                model.Relationship(
                    _id=f"{base}relationship-{len(elements)}",
                    creationInfo=made,
                    from_=source,
                    relationshipType=getattr(model.RelationshipType, kind),
                    to=targets,
                )
            )

    def licensed(element: Any, named: str) -> None:
        if named:
            expression = fixup_id(named) or (named if is_expression(named) else f"LicenseRef-{len(elements)}")
            licence = model.simplelicensing_LicenseExpression(
                _id=f"{base}licence-{len(elements)}",
                creationInfo=made,
                simplelicensing_licenseExpression=expression,
                comment=named,
            )
            relate(element, "hasDeclaredLicense", [add(licence)])

    def entry(key: str, value: str) -> Any:
        return model.DictionaryEntry(key=key, value=value)

    student = add(
        model.ai_AIPackage(
            _id=f"{base}student",
            name=material.name,
            creationInfo=made,
            software_packageVersion=material.made,
            software_primaryPurpose=model.software_SoftwarePurpose.model,
            software_downloadLocation="https://spdx.org/rdf/3.0.1/terms/Core/NoAssertionElement",
            releaseTime=_time(material.made),
            ai_domain=[material.task],
            ai_typeOfModel=[material.architecture or "unknown", "distilled student"],
            ai_informationAboutTraining=" ".join(material.made_by),
            ai_limitation=" ".join(material.limits),
            comment="\n".join([*material.answers, *(f"Overridden: {text}" for text in material.overrides)]),
            ai_hyperparameter=[entry(name, value) for name, value in material.settings.items()],
            ai_metric=[entry(metric.label, _figure(metric)) for metric in material.metrics],
        )
    )
    licensed(student, material.licence)
    data = add(
        model.dataset_DatasetPackage(
            _id=f"{base}data",
            name=material.data,
            creationInfo=made,
            dataset_datasetType=[_kind_of_data(model, material)],
        )
    )
    if material.records is not None:
        data.dataset_datasetSize = material.records
    licensed(data, material.data_licence)
    relate(student, "trainedOn", [data])
    if material.teacher is not None:
        teacher = add(
            model.ai_AIPackage(
                _id=f"{base}teacher",
                name=material.teacher.name,
                creationInfo=made,
                software_primaryPurpose=model.software_SoftwarePurpose.model,
            )
        )
        if material.teacher.revision:
            teacher.software_packageVersion = material.teacher.revision
        licensed(teacher, material.teacher.licence)
        relate(student, "descendantOf", [teacher])
    files = [
        add(
            model.software_File(
                _id=f"{base}file-{number}",
                name=name,
                creationInfo=made,
                verifiedUsing=[model.Hash(algorithm=model.HashAlgorithm.sha256, hashValue=digest)],
            )
        )
        for number, (name, digest) in enumerate(material.files.items())
    ]
    relate(student, "contains", files)
    document = model.SpdxDocument(
        _id=f"{base}document",
        creationInfo=made,
        name=f"{material.name}, distilled by potstill",
        rootElement=[student],
        element=list(elements),
        profileConformance=[
            getattr(model.ProfileIdentifierType, name)
            for name in ("core", "software", "ai", "dataset", "simpleLicensing")
        ],
    )
    objects = model.SHACLObjectSet([document, made, *elements])
    written = io.BytesIO()
    model.JSONLDSerializer().write(objects, written, indent=1)
    return json.dumps(json.loads(written.getvalue()), indent=1, ensure_ascii=False) + "\n"


def _short(material: Material) -> str:
    from potstill.types import digest

    return digest(dict(material.files))[:16]


def _figure(metric: Any) -> str:
    interval = f" [{metric.low:.6g}, {metric.high:.6g}]" if metric.low is not None and metric.high is not None else ""
    return f"{metric.value:.6g}{interval} {metric.unit}".strip()


def _kind_of_data(model: Any, material: Material) -> Any:
    kinds = model.dataset_DatasetType
    return kinds.image if material.task.startswith("image") else kinds.text


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
