"""A student's bill of material as CycloneDX 1.6, written and validated by `cyclonedx-python-lib`.

The library has no model card (11.12), so that one part is put into its JSON, in the words of the schema, which is
strict about it.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.errors import PotstillError
from potstill.sign.material import Material


def cyclonedx_of(material: Material) -> str:
    """The ML-BOM as JSON.

    Raises:
        PotstillError: it does not satisfy the schema.
    """
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.spdx import fixup_id, is_expression
    from cyclonedx.validation.json import JsonStrictValidator

    def licences(named: str) -> list[Any]:
        """By its SPDX identifier, or as an expression of several, where there is one; else by name."""
        if known := fixup_id(named):
            return [DisjunctiveLicense(id=known)]
        if is_expression(named):
            return [LicenseExpression(named)]
        return [DisjunctiveLicense(name=named)] if named else []

    data = Component(
        name=material.data, type=ComponentType.DATA, bom_ref="data", licenses=licences(material.data_licence)
    )
    teacher = None
    if material.teacher is not None:
        teacher = Component(
            name=material.teacher.name,
            version=material.teacher.revision or None,
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref="teacher",
            licenses=licences(material.teacher.licence),
            description=" ".join(material.teacher.notes) or None,
        )
    student = Component(
        name=material.name,
        version=material.made,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="student",
        licenses=licences(material.licence),
        description=" ".join(material.made_by) or None,
        pedigree=Pedigree(ancestors=[teacher]) if teacher is not None else None,
        properties=[
            *(Property(name=f"potstill:training:{name}", value=value) for name, value in material.settings.items()),
            *(Property(name=f"potstill:policy:answer:{n}", value=text) for n, text in enumerate(material.answers, 1)),
            *(Property(name=f"potstill:policy:override:{n}", value=o) for n, o in enumerate(material.overrides, 1)),
        ],
    )
    files = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        )
        for name, digest in material.files.items()
    ]
    programs = [
        Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"program:{name}")
        for name, version in material.versions.items()
    ]
    bom = Bom(components=[data, *files, *programs])
    bom.metadata.component = student
    bom.register_dependency(student, [data, *files, *programs])
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(material)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise PotstillError(f"the CycloneDX document does not satisfy its schema: {str(error).splitlines()[0]}")
    return text


def _model_card(material: Material) -> dict[str, Any]:
    figures = []
    for metric in material.metrics:
        figure: dict[str, Any] = {"type": metric.label, "value": f"{metric.value:.6g}", "slice": "held-out records"}
        if metric.low is not None and metric.high is not None:
            figure["confidenceInterval"] = {"lowerBound": f"{metric.low:.6g}", "upperBound": f"{metric.high:.6g}"}
        figures.append(figure)
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": material.task,
        "datasets": [{"ref": "data"}],
    }
    if material.architecture:
        parameters["modelArchitecture"] = material.architecture
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": figures},
        "considerations": {"technicalLimitations": list(material.limits)},
    }
